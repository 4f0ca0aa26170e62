"""Modules with a declared method as forward."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from model_factory.program.recorded_program import FORWARD


def as_forward(module: nn.Module, method: str) -> nn.Module:
    """Return a view of ``module`` with ``method`` as forward: the same tensors, children, flags and attributes.

    Example:
        >>> class Autoencoder(nn.Module):
        ...     def encode(self, x):
        ...         return x + 1
        >>> as_forward(Autoencoder(), "encode")(1)
        2
    """
    if method == FORWARD:
        return module
    function = getattr(type(module), method)

    @functools.wraps(function)
    def forward(_view: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return getattr(module, method)(*args, **kwargs)

    def train(view: nn.Module, mode: bool = True) -> nn.Module:
        module.train(mode)  # the class may have a train() of its own, which freezes children
        return view

    name = f"{type(module).__name__}.{method}"
    cls = type(name, (nn.Module,), {FORWARD: forward, "train": train})
    view: nn.Module = object.__new__(cls)
    view.__dict__ = module.__dict__  # shared: a change of one is a change of the other
    return view
