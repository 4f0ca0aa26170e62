"""An architecture for people: what a model is made of, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model_factory.descriptor.tree import Descriptor, ModuleNode, TensorNode, TensorRef
from model_factory.graph.runner import torch_const


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One module, its own tensors only."""

    path: str
    """As in ``named_modules``; empty for the root."""
    type: str
    """Its class."""
    kind: str
    """``stock``, ``program`` or ``graph``."""
    shapes: tuple[tuple[str, tuple[int, ...] | None], ...]
    """Name and shape of its own parameters, buffers and plain tensors; no shape yet for lazy ones."""
    parameters: int
    """Numbers in its own parameters."""
    bytes: int
    """Of its own parameters, buffers and plain tensors."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The module tree of a model and its sizes; ``str()`` of it is a readable table."""

    descriptor: Descriptor
    """What it was read from."""

    @property
    def modules(self) -> tuple[ModuleRow, ...]:
        """Every module once, in the order of ``named_modules``. A shared tensor counts where it appears first."""
        seen: set[int] = set()
        return tuple(
            self._row(path, self.descriptor.modules[index], seen) for index, path in self.descriptor.paths().items()
        )

    @property
    def parameters(self) -> int:
        """Numbers in all parameters."""
        return sum(row.parameters for row in self.modules)

    @property
    def bytes(self) -> int:
        """Of all parameters, buffers and plain tensors."""
        return sum(row.bytes for row in self.modules)

    def _row(self, path: str, node: ModuleNode, seen: set[int]) -> ModuleRow:
        parameters = [(name, index) for name, index in node.parameters if index is not None]
        buffers = [(name, index) for name, index, _ in node.buffers if index is not None]
        plain = [(name, value.index) for name, value in node.attributes.items() if isinstance(value, TensorRef)]
        fresh = {index for _, index in parameters + buffers + plain} - seen
        tensors = self.descriptor.tensors
        seen |= fresh
        return ModuleRow(
            path=path,
            type=node.type,
            kind=node.kind,
            shapes=tuple((name, tensors[index].shape) for name, index in parameters + buffers + plain),
            parameters=sum(tensors[index].elements for _, index in parameters if index in fresh),
            bytes=sum(_bytes(tensors[index]) for index in fresh),
        )

    def __str__(self) -> str:
        header = ("name", "type", "shapes", "parameters", "bytes")
        rows = [
            (row.path or "(model)", row.type, _shapes_text(row), f"{row.parameters:,}", f"{row.bytes:,}")
            for row in self.modules
        ]
        total = ("total", f"{len(rows)} modules", "", f"{self.parameters:,}", f"{self.bytes:,}")
        table = [header, *rows, total]
        widths = [max(len(row[column]) for row in table) for column in range(len(header))]
        lines = [_line(row, widths) for row in table]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
    return "  ".join(left + right)


def _shapes_text(row: ModuleRow) -> str:
    return " ".join(f"{name}{'(lazy)' if shape is None else list(shape)}" for name, shape in row.shapes)


def _bytes(node: TensorNode) -> int:
    dtype: torch.dtype = torch_const(node.dtype)
    return node.elements * dtype.itemsize
