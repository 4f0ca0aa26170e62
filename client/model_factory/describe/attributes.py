"""Attributes, classes and signatures of modules and tensors, as entries of a descriptor."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from model_factory.descriptor.attributes import described, settable
from model_factory.descriptor.stock import stock_attributes
from model_factory.errors import FormatError, NotPortableError
from model_factory.program.forward_signature import ForwardSignature
from model_factory.program.ir import Program
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.program_module import ProgramModule

_INTERNALS = frozenset(nn.Module().__dict__)
_PROGRAM_ATTRIBUTES = frozenset(ProgramModule("", ForwardSignature(()), "", None, ()).__dict__)
_GRAPH_ATTRIBUTES = frozenset(GraphModel(Program(inputs=(), steps=(), result=None), {}).__dict__)


def real_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module in the author's code: for a parametrised module, the class before parametrisation.

    Example:
        >>> real_class(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))).__name__
        'Linear'
    """
    cls: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return cls


def module_attributes(
    module: nn.Module, cls: type[nn.Module], where: str, left_out: Collection[str] = ()
) -> dict[str, Any]:
    """The attributes of a module except ``left_out``, to be rebuilt as an instance of ``cls``.

    Raises:
        NotPortableError: an attribute is not plain data, or hides a method.
    """
    try:
        return stock_attributes(module, cls, left_out)
    except FormatError as error:
        raise NotPortableError(
            f"{where}: {error}. Remedy: delete the attribute, or use a function of torch.nn.functional"
        ) from None


def program_attributes(module: nn.Module, methods: tuple[str, ...], where: str) -> dict[str, Any]:
    """The attributes of a block or graph, to be rebuilt as ``ProgramModule`` or ``GraphModel``: plain data and tensors.

    Other attributes are left out, since the program of the forward does not need them.

    Raises:
        NotPortableError: a name is taken in rebuilt modules.
    """
    is_graph = isinstance(module, GraphModel)
    cls, taken = (GraphModel, _GRAPH_ATTRIBUTES) if is_graph else (ProgramModule, _PROGRAM_ATTRIBUTES)
    for name in (*module._parameters, *module._buffers, *module._modules):
        if name in taken:
            raise NotPortableError(f"{where}: the name {name!r} is taken in rebuilt modules. Remedy: rename it")
    attributes: dict[str, Any] = {}
    for name, value in module.__dict__.items():
        if name in _INTERNALS or (is_graph and name in taken):
            continue
        free = settable(cls, taken, name) and name not in methods
        if isinstance(value, torch.Tensor):
            if not free:
                raise NotPortableError(f"{where}: the tensor attribute {name!r} hides a method. Remedy: rename it")
            attributes[name] = value
        elif free:
            with suppress(FormatError):
                attributes[name] = described(value)
    if type(module)._version != nn.Module._version and not is_graph:
        attributes["_version"] = type(module)._version
    return attributes


def tensor_attributes(tensor: torch.Tensor, name: str) -> dict[str, Any]:
    """The attributes of a tensor besides values.

    Raises:
        NotPortableError: an attribute is not plain data.
    """
    attributes = {}
    for key, value in tensor.__dict__.items():
        try:
            attributes[key] = described(value)
        except FormatError as error:
            raise NotPortableError(
                f"the tensor {name!r} has the attribute {key!r}, which is not portable: {error}. Remedy: set the "
                "attribute on the rebuilt tensor"
            ) from None
    return attributes
