"""Texts of errors: the path and class of the block, and tensors, modules and functions unknown to programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from model_factory.errors import BuildError, CallSignatureError, ModelFactoryError
from model_factory.program.runtime.graph_model import GRAPH_MODULES

_Named = TypeVar("_Named", bound=ModelFactoryError)


def foreign_tensor(module: nn.Module, where: str = "") -> str:
    """Return the text for a tensor from outside the module."""
    hidden = ", ".join(repr(path) for path in hidden_in(module, torch.Tensor))
    hint = f"; tensors are hidden in the plain attribute {hidden}" if hidden else ""
    return (
        f"the forward uses a tensor that is neither an input nor a parameter or buffer of the module{where}{hint}. "
        "Remedy: register the tensor with register_buffer(name, tensor, persistent=False), or use an nn.ParameterList "
        "for several parameters"
    )


def hidden_in(module: nn.Module, kind: type) -> list[str]:
    """Attributes below a module with an instance of ``kind`` in a plain list, tuple or dict.

    Example:
        >>> module = nn.Module()
        >>> module.layers = [nn.ReLU()]
        >>> hidden_in(module, nn.Module)
        ['layers']
    """
    found = []
    for path, item in module.named_modules():
        for name, value in item.__dict__.items():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if not name.startswith("_") and any(isinstance(entry, kind) for entry in items):
                found.append(f"{path}.{name}" if path else name)
    return found


def function_text(func: Any) -> str:
    """Return the name of a torch function with its module.

    Example:
        >>> function_text(torch.nn.functional.relu)
        'torch.nn.functional.relu'
    """
    module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__name__", "torch")
    return f"{module}.{getattr(func, '__name__', func)}"


def named(path: str, block: nn.Module, error: _Named) -> _Named:
    """Return an error with path and class of a block before the text.

    Example:
        >>> named("graph_modules.head", nn.ReLU(), BuildError("no memory"))
        BuildError('head (ReLU): no memory')
    """
    where = path.removeprefix(f"{GRAPH_MODULES}.") or "the model"
    return type(error)(f"{where} ({type(block).__name__}): {error}")


@contextmanager
def naming(path: str, block: nn.Module) -> Iterator[None]:
    """Put path and class of a block before the text of every error inside."""
    try:
        yield
    except (BuildError, CallSignatureError) as error:
        raise named(path, block, error) from error
