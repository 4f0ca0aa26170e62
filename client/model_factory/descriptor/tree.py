"""The descriptor: a tree of modules as plain data.

Modules and tensors are kept in two flat tables and referred to by position, so a shared module or a tied tensor is
written once. Module 0 is the root.
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
    """A function or constant of torch's own, as an attribute or in one."""

    name: str
    """A key of ``STOCK_VALUES``."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a plain attribute, neither parameter nor buffer of its module."""

    index: int
    """Its position in the tensor table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClass:
    """The real class of a source module, and why it needs it."""

    module: str
    """Name of the module that defines it, in the descriptor's bundle."""
    qualname: str
    """Its name there."""
    reason: str
    """Why its forward is no program, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNode:
    """A parameter, buffer or plain tensor attribute."""

    name: str
    """The first state-dict-like name it is reached by; its key in the weights file."""
    dtype: str
    """As torch names it: ``float32``."""
    shape: tuple[int, ...] | None
    """``None`` for a lazy parameter or buffer that has no shape yet; it is not in the weights file."""
    requires_grad: bool
    """Whether autograd computes its gradient."""
    parameter: bool
    """Whether it is an ``nn.Parameter``."""
    order: tuple[int, ...] = ()
    """Its axes as they lie in memory, outermost first, where that is not their own order (``channels_last``): kernels
    add up in the order of memory. The weights file holds it with its axes in this order."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Plain attributes of the tensor object, such as the ``_no_weight_decay`` that optimisers look for."""

    @property
    def nbytes(self) -> int:
        """What it takes; nothing as long as it has no shape.

        Raises:
            FormatError: its dtype is none.
        """
        try:
            return self.elements * torch_dtype(self.dtype).itemsize
        except FormatError as error:
            raise FormatError(f"tensor {self.name!r}: {error}") from None

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
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
    """A whole model without its weights."""

    modules: tuple[ModuleNode, ...]
    """Module 0 is the root."""
    tensors: tuple[TensorNode, ...]
    """Each tensor once, in the order of first appearance."""
    bundle: Blob | None = None
    """The source that the classes of source nodes are in; None where there are none."""

    @property
    def source_reasons(self) -> dict[str, str]:
        """Why each source module needs its source, by path and class: ``router (Router)``."""
        return {
            f"{path or 'the model'} ({node.type})": node.source.reason
            for index, path in self.paths().items()
            if isinstance(node := self.modules[index], SourceNode)
        }

    def paths(self) -> dict[int, str]:
        """The first path at which each module is reached, root first, in the order of ``named_modules``."""
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
