"""Reads a module and everything below into a descriptor.

A class decides the kind of node: graph, source code, torch's own, or program. Modules and tensors are numbered in the
order of the walk, parents before children. Shared modules and tied tensors are equal numbers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from model_factory.describe.attributes import (
    module_attributes,
    program_attributes,
    real_class,
)
from model_factory.describe.declared_methods import declared_methods
from model_factory.describe.refusals import (
    Refusals,
    refuse_class,
    refuse_hooks,
    refuse_methods,
    refuse_slots,
)
from model_factory.describe.tensor_table import TensorTable
from model_factory.describe.training_modes import frozen_modules
from model_factory.descriptor.stock import STOCK_NAMES, stock_type
from model_factory.descriptor.torch_state import restored_hooks
from model_factory.descriptor.tree import (
    Descriptor,
    GraphNode,
    ModuleNode,
    ProgramNode,
    SourceClass,
    SourceNode,
    StockNode,
    TensorRef,
)
from model_factory.digest import Blob
from model_factory.errors import NotPortableError
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.lookup import get_module
from model_factory.program.runtime.program_module import ProgramModule


def describe(
    module: nn.Module,
    sources: Mapping[nn.Module, SourceClass] = MappingProxyType({}),
    bundle: Blob | None = None,
    refused: dict[str, str] | None = None,
    left_out: Container[tuple[int, str]] = (),
    *,
    is_trained: bool = False,
) -> Descriptor:
    """Describe a module and everything below.

    A rebuilt block is described like the block of its class; :func:`programs_of` returns the programs.

    Args:
        module: The model.
        sources: Modules of the model to be sent as source code, with their classes.
        bundle: The bundle with these classes; ``None`` without source code.
        refused: If given, receives the reason for each refused module, by path, and no error is raised.
        left_out: Attributes of modules without a place in the descriptor: ``id`` of the module's ``__dict__``, and
            name.
        is_trained: Whether gradients are left out; by default a tensor with a gradient is refused.

    Raises:
        NotPortableError: a module or tensor is not portable; the message names the module, the fault and a remedy.

    Example:
        >>> [node.type for node in describe(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).modules]
        ['nn.Sequential', 'nn.Linear', 'nn.ReLU']
    """
    walk = _Walk(sources, Refusals(refused), left_out, is_trained=is_trained)
    walk.add_module(module, "")
    tensors = walk.tensors.finish()
    nodes = tuple(node for node in walk.modules if node is not None)
    return Descriptor(modules=nodes, tensors=tensors, bundle=bundle)


def named_tensors(module: nn.Module, descriptor: Descriptor) -> dict[str, torch.Tensor]:
    """The tensors of a described module by their names in the descriptor, without lazy tensors.

    Raises:
        NotPortableError: a tensor is on the meta device.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> list(named_tensors(layer, describe(layer)))
        ['weight', 'bias']
    """
    tensors = planned_tensors(module, descriptor)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise NotPortableError(f"the tensor {name!r} is on the meta device. Remedy: give the tensor values")
    return tensors


def planned_tensors(module: nn.Module, descriptor: Descriptor) -> dict[str, torch.Tensor]:
    """As :func:`named_tensors`, also for a module on the meta device."""
    tensors = {}
    for node in descriptor.tensors:
        owner, _, name = node.name.rpartition(".")
        holder = get_module(module, owner)
        tables: tuple[Mapping[str, Any], ...] = (holder._parameters, holder._buffers, holder.__dict__)
        value: torch.Tensor = next(table[name] for table in tables if name in table)
        if node.shape is not None:
            tensors[node.name] = value.permute(node.order) if node.order else value
    return tensors


class _Walk:
    """Walks a model once and makes the tables of its descriptor."""

    def __init__(
        self,
        sources: Mapping[nn.Module, SourceClass],
        refusals: Refusals,
        left_out: Container[tuple[int, str]],
        *,
        is_trained: bool,
    ) -> None:
        self._sources = sources
        self._left_out = left_out
        self._refusals = refusals
        self._positions: dict[int, int] = {}  # by id of the module
        self.modules: list[ModuleNode | None] = []
        self.tensors = TensorTable(refusals, is_trained=is_trained)

    def add_module(self, module: nn.Module, path: str) -> int:
        """Add a module, unless known, and return the module's position."""
        known = self._positions.get(id(module))
        if known is not None:
            return known
        position = self._positions[id(module)] = len(self.modules)
        self.modules.append(None)  # the position comes before the children's
        where = f"{path or 'the model'} ({type(module).__name__})"
        with self._refusals.noted(path):
            refuse_class(module, where)
            self.modules[position] = self._node(module, path, where)
        if self.modules[position] is None:  # refused: the inside may be of any kind
            self.modules[position] = ProgramNode(
                type=type(module).__name__, training=True, signature=ForwardSignature(())
            )
        return position

    def _node(self, module: nn.Module, path: str, where: str) -> ModuleNode:
        stock = stock_type(module)
        cls = real_class(module) if module in self._sources else stock
        with self._refusals.noted(path):
            if cls is None and not isinstance(module, GraphModel):
                refuse_methods(module, where)
            refuse_hooks(module, where, restored_hooks(cls, module))
        tables = self._tables(module, path)
        if isinstance(module, GraphModel):
            attributes = self._without_left_out(module, program_attributes(module, (), where))
            program = module.runner.program
            described = self._with_tensors(attributes, path)
            return GraphNode(type=type(module).__name__, program=program, attributes=described, **tables)
        if cls is None:
            return self._program_node(tables, module, path, where)
        if module in self._sources:
            return self._source_node(tables, module, path, where)
        node = StockNode(type=STOCK_NAMES[cls], **tables)
        with self._refusals.noted(path):
            return replace(node, attributes=self._kept_attributes(module, cls, path, where))
        return node

    def _tables(self, module: nn.Module, path: str) -> dict[str, Any]:
        """The fields of every kind of node."""
        add = self.tensors.add
        transient = module._non_persistent_buffers_set
        return {
            "training": module.training,
            "parameters": tuple((name, add(item, _join(path, name))) for name, item in module._parameters.items()),
            "buffers": tuple(
                (name, add(item, _join(path, name)), name not in transient) for name, item in module._buffers.items()
            ),
            "children": tuple(
                (name, None if child is None else self.add_module(child, _join(path, name)))
                for name, child in module._modules.items()
            ),
        }

    def _program_node(self, tables: dict[str, Any], module: nn.Module, path: str, where: str) -> ProgramNode:
        node = ProgramNode(type=real_class(module).__name__, signature=ForwardSignature.of(module.forward), **tables)
        with self._refusals.noted(path):
            if isinstance(module, ProgramModule):
                frozen, methods = module._frozen, module._declared_methods
            else:
                names = declared_methods(module, where)
                frozen = frozen_modules(module, where)
                methods = {name: ForwardSignature.of(getattr(module, name)) for name in names}
            kept = self._without_left_out(module, program_attributes(module, tuple(methods), where))
            return replace(
                node,
                attributes=self._with_tensors(kept, path),
                frozen=frozen,
                declared_methods=tuple(methods.items()),
            )
        return node

    def _source_node(self, tables: dict[str, Any], module: nn.Module, path: str, where: str) -> SourceNode:
        cls = real_class(module)
        node = SourceNode(type=cls.__name__, source=self._sources[module], **tables)
        with self._refusals.noted(path):
            refuse_slots(cls, where)
            return replace(node, attributes=self._kept_attributes(module, cls, path, where))
        return node

    def _kept_attributes(self, module: nn.Module, cls: type[nn.Module], path: str, where: str) -> dict[str, Any]:
        left_out = {name for name in module.__dict__ if (id(module.__dict__), name) in self._left_out}
        return self._with_tensors(module_attributes(module, cls, where, left_out), path)

    def _without_left_out(self, module: nn.Module, attributes: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in attributes.items() if (id(module.__dict__), name) not in self._left_out}

    def _with_tensors(self, attributes: dict[str, Any], path: str) -> dict[str, Any]:
        """Attributes with positions in the table in the place of tensors."""
        return {name: self._attribute(value, _join(path, name)) for name, value in attributes.items()}

    def _attribute(self, value: Any, name: str) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        position = self.tensors.add(value, name)
        assert position is not None
        return TensorRef(position)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
