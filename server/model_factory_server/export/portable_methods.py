"""A declared method as a module whose forward it is, so that it is recorded and proven like any forward."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from model_factory.program.recorded_program import FORWARD


def as_forward(module: nn.Module, method: str) -> nn.Module:
    """Return a view of ``module`` whose forward is its ``method``: the same tensors, children, flags and attributes."""
    if method == FORWARD:
        return module
    function = getattr(type(module), method)

    @functools.wraps(function)
    def forward(_view: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return getattr(module, method)(*args, **kwargs)

    def train(view: nn.Module, mode: bool = True) -> nn.Module:
        module.train(mode)  # its own, which may keep parts of it in eval mode
        return view

    name = f"{type(module).__name__}.{method}"
    cls = type(name, (nn.Module,), {FORWARD: forward, "train": train})
    view: nn.Module = object.__new__(cls)
    view.__dict__ = module.__dict__  # the very same: what is done to one is done to the other
    return view
