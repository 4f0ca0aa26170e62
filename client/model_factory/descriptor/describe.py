"""From a module to its descriptor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from model_factory.descriptor.stock import STOCK_FUNCTION_NAMES, STOCK_NAMES, is_stock, torch_name
from model_factory.descriptor.tree import (
    GRAPH,
    PROGRAM,
    STOCK,
    Descriptor,
    FunctionRef,
    ModuleNode,
    TensorNode,
)
from model_factory.errors import FormatError, NotPortableError
from model_factory.graph.codec import encode_value
from model_factory.graph.modules import GraphModel
from model_factory.graph.program import TorchConst
from model_factory.graph.signature import Parameter, Signature

MODULE_INTERNALS = frozenset(nn.Module().__dict__)

# Derived from other attributes by torch; rebuilt by it, too.
DERIVED_ATTRIBUTES = {nn.RNNBase: frozenset({"_flat_weights", "_flat_weight_refs"})}
LAZY_ATTRIBUTES = frozenset({"_load_hook", "_initialize_hook"})

_HOOKS = tuple(name for name in sorted(MODULE_INTERNALS) if name.endswith("_hooks"))


def describe(module: nn.Module) -> Descriptor:
    """Describe a module and everything below it.

    Raises:
        NotPortableError: something about it cannot be carried; the message names the module, the thing and the remedy.
    """
    table = _Table()
    table.add_module(module, "")
    return Descriptor(modules=tuple(node for node in table.modules if node is not None), tensors=tuple(table.tensors))


def named_tensors(module: nn.Module, descriptor: Descriptor) -> dict[str, torch.Tensor]:
    """The tensors of a described module by the names its descriptor gives them, lazy ones left out."""
    every = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {node.name: every[node.name] for node in descriptor.tensors if node.shape is not None}


class _Table:
    def __init__(self) -> None:
        self.modules: list[ModuleNode | None] = []
        self.tensors: list[TensorNode] = []
        self._module_index: dict[nn.Module, int] = {}
        self._tensor_index: dict[int, int] = {}

    def add_module(self, module: nn.Module, path: str) -> int:
        if module in self._module_index:
            return self._module_index[module]
        index = self._module_index[module] = len(self.modules)
        self.modules.append(None)  # its place, before its children's
        _refuse_hooks(module, path)
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
        kind = STOCK if is_stock(module) else GRAPH if isinstance(module, GraphModel) else PROGRAM
        self.modules[index] = ModuleNode(
            kind=kind,
            type=STOCK_NAMES[type(module)] if kind == STOCK else type(module).__name__,
            training=module.training,
            attributes=_stock_attributes(module, path) if kind == STOCK else _plain_attributes(module),
            children=children,
            parameters=parameters,
            buffers=buffers,
            signature=_signature(module, path) if kind == PROGRAM else None,
            program=module.runner.program if isinstance(module, GraphModel) else None,
        )
        return index

    def _add_tensor(self, tensor: torch.Tensor | None, name: str) -> int | None:
        if tensor is None:
            return None
        known = self._tensor_index.get(id(tensor))
        if known is not None:
            return known
        self.tensors.append(
            TensorNode(
                name=name,
                dtype=torch_name(tensor.dtype),
                shape=None if is_lazy(tensor) else tuple(tensor.shape),
                requires_grad=tensor.requires_grad,
            )
        )
        self._tensor_index[id(tensor)] = len(self.tensors) - 1
        return len(self.tensors) - 1


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refuse_hooks(module: nn.Module, path: str) -> None:
    lazy = is_stock(module) and isinstance(module, nn.modules.lazy.LazyModuleMixin)
    for name in _HOOKS:
        if getattr(module, name) and not lazy:
            raise NotPortableError(
                f"{path or 'the model'} ({type(module).__name__}) has a hook in {name}, and hooks are code. "
                "Remedy: register the hook on the rebuilt module"
            )


def _stock_attributes(module: nn.Module, path: str) -> dict[str, Any]:
    skipped = MODULE_INTERNALS | LAZY_ATTRIBUTES
    for base, derived in DERIVED_ATTRIBUTES.items():
        skipped |= derived if isinstance(module, base) else frozenset()
    attributes = {}
    for name, value in module.__dict__.items():
        if name in skipped:
            continue
        try:
            attributes[name] = _attribute(value)
        except FormatError as error:
            raise NotPortableError(
                f"{path} ({type(module).__name__}) has the attribute {name!r}, which cannot travel: {error}"
            ) from None
    return attributes


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a trainer may want to read off a block. Its forward does not need them: the program has them inside."""
    attributes = {}
    for name, value in module.__dict__.items():
        if name.startswith("_") or name in MODULE_INTERNALS or name in {"inputs", "runner"}:
            continue
        try:
            attributes[name] = _attribute(value)
        except FormatError:
            continue
    return attributes


def _attribute(value: Any) -> Any:
    """Turn an attribute into what a descriptor can hold.

    Raises:
        FormatError: it cannot be turned.
    """
    if isinstance(value, torch.dtype):
        return TorchConst(torch_name(value))
    if isinstance(value, torch.Size):
        return tuple(value)
    name = STOCK_FUNCTION_NAMES.get(id(value))
    if name is not None:
        return FunctionRef(name)
    encode_value(value)
    return value


def _signature(module: nn.Module, path: str) -> Signature:
    signature = Signature.of(module.forward)
    return Signature(tuple(_portable_default(parameter, module, path) for parameter in signature.parameters))


def _portable_default(parameter: Parameter, module: nn.Module, path: str) -> Parameter:
    try:
        encode_value(parameter.default)
    except FormatError as error:
        raise NotPortableError(
            f"{path} ({type(module).__name__}): the forward's default for {parameter.name!r} cannot travel: {error}"
        ) from None
    return parameter
