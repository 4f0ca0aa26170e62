"""From a module to its descriptor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from model_factory.descriptor.attributes import described, settable, torch_name
from model_factory.descriptor.derived import derived_hooks
from model_factory.descriptor.modes import frozen_modules
from model_factory.descriptor.refused import (
    refuse_class,
    refuse_hooks,
    refuse_methods,
    refuse_shared_memory,
    refuse_tensor,
)
from model_factory.descriptor.stock import STOCK_NAMES, stock_attributes, stock_type
from model_factory.descriptor.tree import GRAPH, PROGRAM, STOCK, Descriptor, ModuleNode, TensorNode, TensorRef
from model_factory.errors import FormatError, NotPortableError
from model_factory.graph.codec import encode_value
from model_factory.graph.modules import GraphModel, ProgramModule
from model_factory.graph.runner import get_module
from model_factory.graph.signature import Parameter, Signature

_PROGRAM_ATTRIBUTES = frozenset(ProgramModule("", Signature(()), "", None, ()).__dict__)


def describe(module: nn.Module) -> Descriptor:
    """Describe a module and everything below it.

    Raises:
        NotPortableError: something about it cannot be carried; the message names the module, the thing and the remedy.
    """
    table = _Table()
    table.add_module(module, "")
    refuse_shared_memory(table.values)
    return Descriptor(modules=tuple(node for node in table.modules if node is not None), tensors=tuple(table.tensors))


def named_tensors(module: nn.Module, descriptor: Descriptor) -> dict[str, torch.Tensor]:
    """The tensors of a described module by the names its descriptor gives them, lazy ones left out.

    Raises:
        NotPortableError: one is on the meta device.
    """
    tensors = {}
    for node in descriptor.tensors:
        owner, _, name = node.name.rpartition(".")
        holder = get_module(module, owner)
        value = next(
            table[name] for table in (holder._parameters, holder._buffers, holder.__dict__) if table.get(name) is not None
        )
        if value.is_meta:
            raise NotPortableError(f"the tensor {node.name!r} is on the meta device. Remedy: give it values")
        if node.shape is not None:
            tensors[node.name] = value
    return tensors


def plain_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors below a module that are attributes, but neither parameters nor buffers, by path."""
    return {
        _join(path, name): value
        for path, item in module.named_modules()
        for name, value in item.__dict__.items()
        if isinstance(value, torch.Tensor)
    }


class _Table:
    def __init__(self) -> None:
        self.modules: list[ModuleNode | None] = []
        self.tensors: list[TensorNode] = []
        self.values: dict[str, torch.Tensor] = {}
        self._module_index: dict[int, int] = {}
        self._tensor_index: dict[int, int] = {}

    def add_module(self, module: nn.Module, path: str) -> int:
        known = self._module_index.get(id(module))
        if known is not None:
            return known
        index = self._module_index[id(module)] = len(self.modules)
        self.modules.append(None)  # its place, before its children's
        where = f"{path or 'the model'} ({type(module).__name__})"
        refuse_class(module, where)
        stock = stock_type(module)
        refuse_hooks(module, where, derived_hooks(stock or type(module), module))
        parameters = tuple(
            (name, self._add_tensor(item, _join(path, name))) for name, item in module._parameters.items()
        )
        transient = module._non_persistent_buffers_set
        buffers = tuple(
            (name, self._add_tensor(item, _join(path, name)), name not in transient)
            for name, item in module._buffers.items()
        )
        children = tuple(
            (name, None if child is None else self.add_module(child, _join(path, name)))
            for name, child in module._modules.items()
        )
        node = ModuleNode(
            kind=STOCK,
            type="" if stock is None else STOCK_NAMES[stock],
            training=module.training,
            children=children,
            parameters=parameters,
            buffers=buffers,
        )
        if stock is not None:
            attributes = self._stock_attributes(module, stock, path, where)
        self.modules[index] = node
        return index
