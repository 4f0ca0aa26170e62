"""The descriptor: a tree of modules as plain data.

Modules and tensors are in two flat tables, and references are positions in the tables. A shared module or tied tensor
is therefore written once. Module 0 is the root.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from model_factory.digest import Blob
from model_factory.errors import FormatError
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import Program
from model_factory.program.torch_names import torch_dtype


@dataclass(frozen=True, slots=True)
class StockValue:
    """A function or constant of torch, as an attribute or in an attribute."""

    name: str
    """Key of ``STOCK_VALUES``."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a plain attribute, neither parameter nor buffer of the module."""

    index: int
    """Position in the tensor table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClass:
    """Class of a source module, and the reason for the source."""

    module: str
    """Name of the defining Python module, in the descriptor's bundle."""
    qualname: str
    """Name of the class in the Python module."""
    reason: str
    """Reason against a program, for display."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNode:
    """A parameter, buffer or plain tensor attribute."""

    name: str
    """First path of the tensor, as in a state dict; the key in the weights file."""
    dtype: str
    """Torch's name of the dtype: ``float32``."""
    shape: tuple[int, ...] | None
    """Shape; None for a lazy tensor without a shape, which is not in the weights file."""
    requires_grad: bool
    """Whether autograd computes a gradient."""
    parameter: bool
    """Whether the tensor is an ``nn.Parameter``."""
    order: tuple[int, ...] = ()
    """Order of the axes in memory and in the weights file, outermost first, if not ascending (``channels_last``). The
    order matters since kernels add up in the order of memory."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Plain attributes of the tensor object, such as the ``_no_weight_decay`` that optimisers look for."""

    @property
    def nbytes(self) -> int:
        """Size in bytes; 0 without a shape.

        Raises:
            FormatError: the dtype is unknown.

        Example:
            >>> weight = TensorNode(name="w", dtype="float16", shape=(2, 3), requires_grad=True, parameter=True)
            >>> weight.nbytes, weight.elements
            (12, 6)
        """
        try:
            return self.elements * torch_dtype(self.dtype).itemsize
        except FormatError as error:
            raise FormatError(f"tensor {self.name!r}: {error}") from None

    @property
    def elements(self) -> int:
        """Count of numbers; 0 without a shape."""
        return 0 if self.shape is None else math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNode:
    """One module: the fields of every kind. A node is of one of the four subclasses."""

    kind: ClassVar[str]
    """``stock``, ``program``, ``graph`` or ``source``."""
    type: str
    """Class name, for display; of a stock node, a key of ``STOCK_CLASSES``."""
    training: bool
    """Training flag."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Plain attributes: plain data, ``TorchConst``, ``StockValue`` and ``TensorRef``."""
    children: tuple[tuple[str, int | None], ...] = ()
    """Name and position in the module table, in order."""
    parameters: tuple[tuple[str, int | None], ...] = ()
    """Name and position in the tensor table, in order."""
    buffers: tuple[tuple[str, int | None, bool], ...] = ()
    """Name, position in the tensor table, and membership in the state dict, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StockNode(ModuleNode):
    """A module of torch's own."""

    kind: ClassVar[str] = "stock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramNode(ModuleNode):
    """A module whose forward is a recorded program."""

    kind: ClassVar[str] = "program"
    signature: ForwardSignature
    """Signature of the forward."""
    frozen: tuple[str, ...] = ()
    """Paths below the module (``""`` for the module itself) that ``train()`` leaves in eval mode, with all below."""
    declared_methods: tuple[tuple[str, ForwardSignature], ...] = ()
    """Name and signature of each declared method besides the forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode(ModuleNode):
    """A ``GraphModel``."""

    kind: ClassVar[str] = "graph"
    program: Program
    """The steps of the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNode(ModuleNode):
    """A module of a class from trusted source code."""

    kind: ClassVar[str] = "source"
    source: SourceClass
    """The class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A whole model without weights."""

    modules: tuple[ModuleNode, ...]
    """Module 0 is the root."""
    tensors: tuple[TensorNode, ...]
    """Each tensor once, in the order of first appearance."""
    bundle: Blob | None = None
    """Source of the classes of source nodes; None without source nodes."""

    @property
    def source_reasons(self) -> dict[str, str]:
        """Reason for the source of each source module, by path and class: ``router (Router)``."""
        return {
            f"{path or 'the model'} ({node.type})": node.source.reason
            for index, path in self.paths().items()
            if isinstance(node := self.modules[index], SourceNode)
        }

    def paths(self) -> dict[int, str]:
        """Return the first path of each module, root first, in the order of ``named_modules``."""
        found: dict[int, str] = {}
        pending = [(0, "")]
        while pending:
            index, path = pending.pop()
            if index in found:
                continue
            found[index] = path
            children = [(child, f"{path}.{name}" if path else name) for name, child in self.modules[index].children]
            pending.extend((child, name) for child, name in reversed(children) if child is not None)
        return found
