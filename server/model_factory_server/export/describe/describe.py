"""From a module to its descriptor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from model_factory.descriptor.attributes import described, settable
from model_factory.descriptor.stock import STOCK_NAMES, stock_attributes, stock_type
from model_factory.descriptor.torch_internals import restored_hooks
from model_factory.descriptor.tree import (
    Descriptor,
    GraphNode,
    ModuleNode,
    ProgramNode,
    SourceClass,
    SourceNode,
    StockNode,
    TensorNode,
    TensorRef,
)
from model_factory.digest import Blob
from model_factory.errors import FormatError, NotPortableError
from model_factory.program.codec import encode_value
from model_factory.program.forward_signature import ForwardParameter, ForwardSignature
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.lookup import get_module
from model_factory.program.runtime.program_module import ProgramModule
from model_factory.program.torch_names import torch_name
from model_factory_server.export.describe.declared_methods import declared_methods
from model_factory_server.export.describe.refused import (
    refuse_class,
    refuse_hooks,
    refuse_methods,
    refuse_shared_memory,
    refuse_slots,
    refuse_tensor,
)
from model_factory_server.export.describe.training_modes import frozen_modules

_INTERNALS = frozenset(nn.Module().__dict__)
_PROGRAM_ATTRIBUTES = frozenset(ProgramModule("", ForwardSignature(()), "", None, ()).__dict__)


def describe(
    module: nn.Module,
    sources: Mapping[nn.Module, SourceClass] = MappingProxyType({}),
    bundle: Blob | None = None,
    refused: dict[str, str] | None = None,
) -> Descriptor:
    """Describe a module and everything below it.

    Args:
        module: The model.
        sources: Those of its modules that travel as their real class.
        bundle: Where these classes are; none if there are none.
        refused: Where given, gets what cannot be carried, by path of the module; nothing is raised then.

    Raises:
        NotPortableError: something about it cannot be carried; the message names the module, the thing and the remedy.
    """
    table = _Table(sources, refused)
    table.add_module(module, "")
    with table.noting(""):
        refuse_shared_memory(table.values)
    nodes = tuple(node for node in table.modules if node is not None)
    return Descriptor(modules=nodes, tensors=tuple(table.tensors), bundle=bundle)


def named_tensors(module: nn.Module, descriptor: Descriptor) -> dict[str, torch.Tensor]:
    """The tensors of a described module by the names its descriptor gives them, lazy ones left out.

    Raises:
        NotPortableError: one is on the meta device.
    """
    tensors = planned_tensors(module, descriptor)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise NotPortableError(f"the tensor {name!r} is on the meta device. Remedy: give it values")
    return tensors


def planned_tensors(module: nn.Module, descriptor: Descriptor) -> dict[str, torch.Tensor]:
    """As :func:`named_tensors`, of a module that may be on the meta device."""
    tensors = {}
    for node in descriptor.tensors:
        owner, _, name = node.name.rpartition(".")
        holder = get_module(module, owner)
        tables: tuple[Mapping[str, Any], ...] = (holder._parameters, holder._buffers, holder.__dict__)
        value: torch.Tensor = next(table[name] for table in tables if name in table)
        if node.shape is not None:
            tensors[node.name] = value.permute(node.order) if node.order else value
    return tensors


class _Table:
    def __init__(self, sources: Mapping[nn.Module, SourceClass], refused: dict[str, str] | None) -> None:
        self._sources = sources
        self._refused = refused
        self.modules: list[ModuleNode | None] = []
        self.tensors: list[TensorNode] = []
        self.values: dict[str, torch.Tensor] = {}
        self._module_index: dict[int, int] = {}
        self._tensor_index: dict[int, int] = {}

    @contextmanager
    def noting(self, path: str) -> Iterator[None]:
        """Note what is refused inside rather than to raise it, where notes are wanted."""
        try:
            yield
        except NotPortableError as error:
            if self._refused is None:
                raise
            self._refused.setdefault(path, str(error))

    def add_module(self, module: nn.Module, path: str) -> int:
        known = self._module_index.get(id(module))
        if known is not None:
            return known
        index = self._module_index[id(module)] = len(self.modules)
        self.modules.append(None)  # its place, before its children's
        where = f"{path or 'the model'} ({type(module).__name__})"
        with self.noting(path):
            refuse_class(module, where)
            self.modules[index] = self._node(module, path, where)
        if self.modules[index] is None:  # refused: what is inside may be of no shape that is known
            self.modules[index] = ProgramNode(type=type(module).__name__, training=True, signature=ForwardSignature(()))
        return index

    def _node(self, module: nn.Module, path: str, where: str) -> ModuleNode:
        stock = stock_type(module)
        with self.noting(path):
            if stock is None and not isinstance(module, GraphModel) and module not in self._sources:
                refuse_methods(module, where)
            refuse_hooks(module, where, restored_hooks(_real_class(module, stock, self._sources), module))
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
        common: dict[str, Any] = {
            "training": module.training,
            "children": children,
            "parameters": parameters,
            "buffers": buffers,
        }
        if isinstance(module, GraphModel):
            return GraphNode(type=type(module).__name__, program=module.runner.program, **common)
        if module in self._sources:
            return self._source_node(common, module, path, where)
        if stock is None:
            return self._program_node(common, module, path, where)
        node = StockNode(type=STOCK_NAMES[stock], **common)
        with self.noting(path):
            return replace(node, attributes=self._with_tensors(_stock_attributes(module, stock, where), path))
        return node

    def _program_node(self, common: dict[str, Any], module: nn.Module, path: str, where: str) -> ProgramNode:
        node = ProgramNode(type=type(module).__name__, signature=_signature(module.forward), **common)
        with self.noting(path):
            methods = declared_methods(module, where)
            return replace(
                node,
                attributes=self._with_tensors(_program_attributes(module, methods, where), path),
                frozen=frozen_modules(module, where),
                declared_methods=tuple((name, _signature(getattr(module, name))) for name in methods),
            )
        return node

    def _source_node(self, common: dict[str, Any], module: nn.Module, path: str, where: str) -> SourceNode:
        cls = real_class(module)
        node = SourceNode(type=cls.__name__, source=self._sources[module], **common)
        with self.noting(path):
            refuse_slots(cls, where)
            return replace(node, attributes=self._with_tensors(_stock_attributes(module, cls, where), path))
        return node

    def _with_tensors(self, attributes: dict[str, Any], path: str) -> dict[str, Any]:
        return {name: self._attribute(value, _join(path, name)) for name, value in attributes.items()}

    def _attribute(self, value: Any, name: str) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        index = self._add_tensor(value, name)
        assert index is not None
        return TensorRef(index)

    def _add_tensor(self, tensor: torch.Tensor | None, name: str) -> int | None:
        if tensor is None:
            return None
        known = self._tensor_index.get(id(tensor))
        if known is not None:
            return known
        with self.noting(name.rpartition(".")[0]):
            refuse_tensor(tensor, name)
        lazy = is_lazy(tensor)
        self.tensors.append(
            TensorNode(
                name=name,
                dtype=torch_name(tensor.dtype),
                shape=None if lazy else tuple(tensor.shape),
                requires_grad=tensor.requires_grad,
                parameter=isinstance(tensor, nn.Parameter),
                order=() if lazy else _memory_order(tensor),
                attributes={},
            )
        )
        with self.noting(name.rpartition(".")[0]):
            self.tensors[-1] = replace(self.tensors[-1], attributes=_tensor_attributes(tensor, name))
        if not lazy and tensor.layout is torch.strided:
            self.values[name] = tensor
        self._tensor_index[id(tensor)] = len(self.tensors) - 1
        return len(self.tensors) - 1


def _memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The axes of a dense tensor as they lie in memory; empty if that is their own order, or it is not dense."""
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return ()
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))
    return order if tensor.permute(order).is_contiguous() else ()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _stock_attributes(module: nn.Module, cls: type[nn.Module], where: str) -> dict[str, Any]:
    try:
        return stock_attributes(module, cls)
    except FormatError as error:
        raise NotPortableError(f"{where}: {error}. Remedy: delete it, or use what torch.nn.functional has") from None


def real_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module as its author wrote it: of a parametrised one the class before."""
    cls: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return cls


def _real_class(
    module: nn.Module, stock: type[nn.Module] | None, sources: Mapping[nn.Module, SourceClass]
) -> type[nn.Module] | None:
    """The class that a module is rebuilt as; None where it is a program's."""
    return real_class(module) if module in sources else stock


def _program_attributes(module: nn.Module, methods: tuple[str, ...], where: str) -> dict[str, Any]:
    """What a trainer may want to read off a block, and the tensors that its program reads.

    The forward needs no other: a program has them inside. So what cannot travel is left out here.
    """
    for name in (*module._parameters, *module._buffers, *module._modules):
        if name in _PROGRAM_ATTRIBUTES:
            raise NotPortableError(f"{where}: the name {name!r} is taken in rebuilt modules. Remedy: rename it")
    attributes: dict[str, Any] = {}
    for name, value in module.__dict__.items():
        if name in _INTERNALS:
            continue
        free = settable(ProgramModule, _PROGRAM_ATTRIBUTES, name) and name not in methods
        if isinstance(value, torch.Tensor):
            if not free:
                raise NotPortableError(f"{where}: the tensor attribute {name!r} hides a method. Remedy: rename it")
            attributes[name] = value
        elif free:
            with suppress(FormatError):
                attributes[name] = described(value)
    if type(module)._version != nn.Module._version:
        attributes["_version"] = type(module)._version
    return attributes


def _tensor_attributes(tensor: torch.Tensor, name: str) -> dict[str, Any]:
    attributes = {}
    for key, value in tensor.__dict__.items():
        try:
            attributes[key] = described(value)
        except FormatError as error:
            raise NotPortableError(
                f"the tensor {name!r} has the attribute {key!r}, which cannot travel: {error}. Remedy: set it on the "
                "rebuilt tensor"
            ) from None
    return attributes


def _signature(method: Callable[..., Any]) -> ForwardSignature:
    return ForwardSignature(tuple(_portable_default(parameter) for parameter in ForwardSignature.of(method).parameters))


def _portable_default(parameter: ForwardParameter) -> ForwardParameter:
    """A default that cannot travel must be given by those who call the module themselves."""
    try:
        encode_value(parameter.default)
    except FormatError:
        return ForwardParameter(parameter.name, parameter.kind)
    return parameter
