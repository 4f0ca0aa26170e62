"""The closed tables of what a stock node may be: ``torch.nn`` classes and the functions their attributes hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from model_factory.graph.ops import OPS


def _stock_classes() -> dict[str, type[nn.Module]]:
    classes = {
        f"nn.{name}": value
        for name in nn.modules.__all__
        if isinstance(value := getattr(nn, name), type) and issubclass(value, nn.Module) and value is not nn.Module
    }
    # The out_proj of nn.MultiheadAttention, which torch.nn does not export.
    classes["nn.modules.linear.NonDynamicallyQuantizableLinear"] = NonDynamicallyQuantizableLinear
    return classes


STOCK_CLASSES: Mapping[str, type[nn.Module]] = MappingProxyType(_stock_classes())
"""Type name in a descriptor -> class."""

STOCK_NAMES: Mapping[type[nn.Module], str] = MappingProxyType({cls: name for name, cls in STOCK_CLASSES.items()})

_ACTIVATIONS = "relu gelu silu elu selu celu leaky_relu mish hardswish softplus sigmoid tanh"

STOCK_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {name: OPS[name] for name in OPS if name.startswith(("torch.nn.functional.", "torch.special."))}
    | {f"torch.{name}": OPS[f"torch.{name}"] for name in _ACTIVATIONS.split() if f"torch.{name}" in OPS}
)
"""Name -> function, for attributes such as the activation of ``nn.TransformerEncoderLayer``."""

STOCK_FUNCTION_NAMES: Mapping[int, str] = MappingProxyType(
    {id(function): name for name, function in reversed(list(STOCK_FUNCTIONS.items()))}
)
"""``id`` of a function -> its name; of several names for one function the first."""


def is_stock(module: nn.Module) -> bool:
    """Whether a module is exactly one of torch's own, its forward not replaced."""
    return type(module) in STOCK_NAMES and "forward" not in module.__dict__


def torch_name(value: torch.dtype | torch.memory_format | torch.layout) -> str:
    """The name of a torch constant without the ``torch.`` before it."""
    return str(value).removeprefix("torch.")
