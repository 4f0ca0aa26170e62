"""A model's architecture for display: modules, kinds and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_factory.descriptor.codec import Programs
from model_factory.descriptor.tree import Descriptor, ModuleNode, ProgramNode, SourceNode, TensorRef
from model_factory.program.recorded_program import FORWARD, RecordedProgram
from model_factory.program.runtime.lookup import join_path
from model_factory.wording import html_table, printable, shortened

_CONTAINERS = frozenset({"nn.ModuleList", "nn.ModuleDict"})

_MAX_CELL_CHARS = 400
"""All cells of a column are as wide as the widest cell."""

UNRECORDED = "recorded at its first call: no example inputs"
"""Reason for a block whose portability shows at its first call."""

NONE = "none"
"""Kind of a module without a portable form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One module, with the module's own tensors only."""

    path: str
    """Path as in ``named_modules``; empty for the root."""
    type: str
    """Class name."""
    kind: str
    """``stock``, ``program``, ``graph`` or ``source``; ``none`` for a module without a portable form."""
    shapes: tuple[tuple[str, tuple[int, ...] | None], ...]
    """Name and shape of the own parameters, buffers and plain tensors; None for a lazy tensor without a shape."""
    parameters: int
    """Count of numbers in the own parameters."""
    bytes: int
    """Size of the own parameters, buffers and plain tensors, in bytes."""
    reason: str
    """Reason for the kind; empty for torch's own modules, for graphs, and without a portability check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Portability:
    """Result of a server's portability check."""

    programs: Programs
    """Recorded programs, by path of the module."""
    refused: Mapping[str, str]
    """Reason for the refusal of a build, by path of the module."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The module tree of a model, with sizes; ``str()`` writes a readable table.

    Example:
        >>> from model_factory.descriptor.tree import StockNode, TensorNode
        >>> weight = TensorNode(
        ...     name="weight", dtype="float32", shape=(2, 3), requires_grad=True, parameter=True
        ... )
        >>> layer = StockNode(type="nn.Linear", training=True, parameters=(("weight", 0), ("bias", None)))
        >>> architecture = Architecture(Descriptor(modules=(layer,), tensors=(weight,)))
        >>> architecture.parameters, architecture.bytes
        (6, 24)
        >>> architecture.modules[0].shapes
        (('weight', (2, 3)),)
    """

    descriptor: Descriptor
    """Source of the architecture."""
    portability: Portability | None = None
    """Result of the portability check; None without a check."""

    @property
    def modules(self) -> tuple[ModuleRow, ...]:
        """Every module once, in the order of ``named_modules``. A shared tensor counts at the first module only."""
        seen: set[int] = set()
        reasons = {} if self.portability is None else _reasons(self.descriptor, self.portability)
        return tuple(
            self._row(path, self.descriptor.modules[index], seen, reasons.get(path, ""))
            for index, path in self.descriptor.paths().items()
        )

    @property
    def parameters(self) -> int:
        """Count of numbers in all parameters."""
        return sum(row.parameters for row in self.modules)

    @property
    def bytes(self) -> int:
        """Size of all parameters, buffers and plain tensors, in bytes."""
        return sum(row.bytes for row in self.modules)

    def _row(self, path: str, node: ModuleNode, seen: set[int], reason: str) -> ModuleRow:
        parameters = [(name, index) for name, index in node.parameters if index is not None]
        buffers = [(name, index) for name, index, _ in node.buffers if index is not None]
        plain = [(name, value.index) for name, value in node.attributes.items() if isinstance(value, TensorRef)]
        fresh = {index for _, index in parameters + buffers + plain} - seen
        tensors = self.descriptor.tensors
        seen |= fresh
        return ModuleRow(
            path=path,
            type=node.type,
            kind=NONE if self.portability is not None and path in self.portability.refused else node.kind,
            shapes=tuple((name, tensors[index].shape) for name, index in parameters + buffers + plain),
            parameters=sum(tensors[index].elements for _, index in parameters if index in fresh),
            bytes=sum(tensors[index].nbytes for index in fresh),
            reason=reason,
        )

    def __repr__(self) -> str:
        return f"<Architecture of {len(self.descriptor.modules)} modules, {self.parameters:,} parameters>"

    def _repr_html_(self) -> str:
        header, *rows = self._table()
        return html_table(header, rows)

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = [_line(row, widths) for row in table]
        rule = "-" * sum(widths[:-1], 2 * (len(widths) - 2))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def _table(self) -> list[tuple[str, ...]]:
        """Return header, a row for each module, and the total."""
        header = ("name", "type", "kind", "shapes", "parameters", "bytes", "" if self.portability is None else "why")
        rows = [
            (
                *map(_cell, (row.path or "(model)", row.type, row.kind, _shapes_text(row))),
                *(f"{row.parameters:,}", f"{row.bytes:,}", printable(shortened(row.reason))),
            )
            for row in self.modules
        ]
        total = ("total", f"{len(rows)} modules", "", "", f"{self.parameters:,}", f"{self.bytes:,}", "")
        return [header, *rows, total]


def _cell(text: str) -> str:
    return printable(shortened(text, _MAX_CELL_CHARS))


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(row[4:6], widths[4:6], strict=True)]
    return "  ".join([*left, *right, row[6]]).rstrip()


def _reasons(descriptor: Descriptor, portability: Portability) -> dict[str, str]:
    """Return the reason for each module's kind, by path; torch's own modules and graphs need no reason."""
    paths = descriptor.paths()
    recorded: dict[str, list[RecordedProgram]] = {}
    for path, item in portability.programs:
        recorded.setdefault(path, []).append(item)
    nodes = {path: descriptor.modules[index] for index, path in paths.items()}
    reasons: dict[str, str] = {}
    for index, path in paths.items():
        node = descriptor.modules[index]
        if path in portability.refused:
            reasons[path] = f"not portable: {portability.refused[path]}"
        elif isinstance(node, SourceNode):
            reasons[path] = f"source: {node.source.reason}"
        elif isinstance(node, ProgramNode):
            known = path in recorded
            reasons[path] = _recorded_text(recorded[path]) if known else _unrecorded_text(path, nodes, recorded)
    return reasons


def _recorded_text(programs: list[RecordedProgram]) -> str:
    texts = []
    for method in dict.fromkeys(item.method for item in programs):
        count = len({item.call_signature for item in programs if item.method == method})
        texts.append(
            f"{'' if method == FORWARD else f'{method} '}recorded for {count} call signature{'s' * (count > 1)}"
        )
    return ", ".join(texts)


def _unrecorded_text(
    path: str, nodes: Mapping[str, ModuleNode], recorded: Mapping[str, Sequence[RecordedProgram]]
) -> str:
    """Return the reason for a program module without programs: part of a caller's program, or not recorded yet."""
    inlined = {
        join_path(owner, inner): reason
        for owner, programs in recorded.items()
        for item in programs
        for inner, reason in item.inlined
    }
    reason = f": {inlined[path]}" if path in inlined else ""
    while path:
        path = path.rpartition(".")[0]
        above = nodes.get(path)
        if isinstance(above, ProgramNode):
            return f"part of the program of {path or 'the model'}{reason}"
        if above is not None and above.type not in _CONTAINERS:
            break  # called by torch, by the graph or by source: the module needs its own programs
    return UNRECORDED


def _shapes_text(row: ModuleRow) -> str:
    return " ".join(f"{name}{'(lazy)' if shape is None else list(shape)}" for name, shape in row.shapes)
