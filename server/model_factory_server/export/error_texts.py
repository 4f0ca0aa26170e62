"""Texts of errors for tensors, modules and functions unknown to programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


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
