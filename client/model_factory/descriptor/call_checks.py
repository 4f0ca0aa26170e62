"""Checks of the arguments of stock modules whose kernels trust the values or shapes of tensors.

Each check is a forward pre-hook of a rebuilt module, so that every call is checked: by a program, by a container, by
the trainer. The describer knows the hooks, see ``restored_hooks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import conv
from torch.nn.parameter import is_lazy

from model_factory.descriptor.stock_checks import channels_of
from model_factory.errors import GraphExecutionError
from model_factory.program.checked_ops import check_bag, check_classes, check_kind_of_indices
from model_factory.program.checks.values import require
from model_factory.program.checks.windows import check_max_pool, fault_of_strides
from model_factory.program.torch_private import SpectralNorm, WeightNorm

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

Check = Callable[[Any, tuple[Any, ...], dict[str, Any]], "Arguments | None"]
"""A forward pre-hook, which may return other arguments."""


def check_weight_norm(module: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Check that the magnitudes have the shape of the norms of the directions, and that there are directions.

    Raises:
        GraphExecutionError: the kernel would read or write beyond a tensor, or divide by zero.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
        >>> norm = layer.parametrizations.weight
        >>> check_weight_norm(norm[0], (norm.original0, norm.original1), {})
    """
    if len(args) != 2 or not all(isinstance(arg, Tensor) for arg in args):
        raise GraphExecutionError("a weight norm takes two tensors, magnitudes and directions, by position")
    magnitudes, directions = args
    dim = module.dim
    shape = tuple(size if axis == dim else 1 for axis, size in enumerate(directions.shape)) if dim != -1 else ()
    if not -1 <= dim < directions.dim() or tuple(magnitudes.shape) != shape or 0 in directions.shape:
        raise GraphExecutionError(
            f"a weight norm over axis {dim} of directions {tuple(directions.shape)} has magnitudes "
            f"{tuple(magnitudes.shape)}; allowed: {shape}, and directions with elements"
        )


def check_bag_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check indices and offsets of an ``nn.EmbeddingBag``.

    Raises:
        GraphExecutionError: an index or offset is wrong.

    Example:
        >>> check_bag_call(nn.EmbeddingBag(5, 3), (torch.tensor([0, 4]), torch.tensor([0])), {})
    """
    named = dict(zip(("input", "offsets"), args, strict=False)) | kwargs
    indices, offsets = named.get("input"), named.get("offsets")
    if isinstance(indices, Tensor):
        check_kind_of_indices(indices)
    if not isinstance(indices, Tensor) or not _has_values(indices):
        return
    check_bag(indices, module.weight, offsets, module.include_last_offset)


def check_ctc_call(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """Check the targets of an ``nn.CTCLoss``; a kernel reads beyond targets whose elements share memory.

    Returns:
        The arguments with a copy of such targets; None for the same arguments.

    Raises:
        GraphExecutionError: a target is no class.

    Example:
        >>> check_ctc_call(nn.CTCLoss(), (torch.zeros(5, 1, 3), torch.tensor([[2]]), (5,), (1,)), {})
    """
    named = dict(zip(("log_probs", "targets"), args, strict=False)) | kwargs
    log_probs, targets = named.get("log_probs"), named.get("targets")
    if not isinstance(targets, Tensor):
        return None
    if isinstance(log_probs, Tensor) and _has_values(targets):
        check_classes(log_probs, targets)
    if targets.is_contiguous():
        return None
    if "targets" in kwargs:
        return args, {**kwargs, "targets": targets.contiguous()}
    return (args[0], targets.contiguous(), *args[2:]), kwargs


def check_window(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that each window of a max pooling has a number of the input.

    Raises:
        GraphExecutionError: the dilation is larger than the input.

    Example:
        >>> check_window(nn.MaxPool1d(2, padding=1, dilation=2), (torch.zeros(1, 2, 5),), {})
    """
    given = kwargs.get("input", args[0] if args else None)
    if isinstance(given, Tensor):
        axes = next(axes for cls, axes in _AXES.items() if isinstance(module, cls))
        check_max_pool(given, axes, module.padding, module.dilation)


_AXES: Mapping[type[nn.Module], int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}


def check_convolution(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check the strides of a convolution against channels that only a call shows.

    Raises:
        GraphExecutionError: the strides are too large for the channels.

    Example:
        >>> check_convolution(nn.LazyConv1d(4, 3, stride=2), (torch.zeros(1, 8, 9),), {})
    """
    given = kwargs.get("input", args[0] if args else None)
    strides = module.stride if isinstance(module.stride, (list, tuple)) else [module.stride]
    if not isinstance(given, Tensor) or _all_are(strides, 1):
        return
    axes = next(axes for cls, axes in _CONVOLUTIONS.items() if isinstance(module, cls))
    channels = max(_weight_channels(module), *given.shape[-1 - axes : -axes], 0)
    allowed = fault_of_strides(channels, strides)
    if allowed is not None:
        raise GraphExecutionError(f"stride of a {type(module).__name__} is {tuple(strides)}; allowed: {allowed}")


def _weight_channels(module: Any) -> int:
    """Return the larger number of channels of a convolution's weight, at a call."""
    if "parametrizations" in module._modules and "weight" in module.parametrizations:
        steps = module.parametrizations.weight
        if all(type(step) in _SHAPE_KEEPING for step in steps):
            tensors = (*steps._parameters.values(), *steps._buffers.values())
            return max([0, *[channels_of(module, tensor) for tensor in tensors]])
        with torch.no_grad():
            return channels_of(module, module.weight)
    if is_lazy(module.weight):
        return int(module.out_channels)
    return channels_of(module, module.weight)


_CONVOLUTIONS: Mapping[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
_SHAPE_KEEPING = (WeightNorm, SpectralNorm)


def check_samples(module: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Check the ``_random_samples`` of a fractional pooling, which choose positions.

    Raises:
        GraphExecutionError: a number is outside of 0 to 1, or NaN.

    Example:
        >>> check_samples(nn.FractionalMaxPool2d(2, output_size=2, _random_samples=torch.rand(1, 1, 2)), (), {})
    """
    samples = module._random_samples
    if samples is None or not _has_values(samples):
        return
    holds = ((samples >= 0) & (samples < 1)).all()
    require(holds, "the random samples of a fractional pooling must be numbers from 0 to below 1")


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor has numbers to look at: not on the meta device, not in a trace."""
    return torch.compiler.is_compiling() or (type(tensor) in _PLAIN and not tensor.is_meta)


_PLAIN = (Tensor, nn.Parameter)

CALL_CHECKS: Mapping[type[nn.Module], Check] = MappingProxyType(
    {
        WeightNorm: check_weight_norm,
        nn.EmbeddingBag: check_bag_call,
        nn.CTCLoss: check_ctc_call,
        nn.FractionalMaxPool2d: check_samples,
        nn.FractionalMaxPool3d: check_samples,
    }
)
"""The check of each class."""


def call_check(cls: type[nn.Module], module: nn.Module) -> Check | None:
    """Return the check of the calls of a module of the stock class ``cls``, or None.

    A max pooling needs the check with padding and dilation only, and a convolution without a plain weight only.

    Example:
        >>> call_check(nn.Linear, nn.Linear(2, 3)), call_check(nn.CTCLoss, nn.CTCLoss()).__name__
        (None, 'check_ctc_call')
    """
    if cls in _AXES:
        padding, dilation = module.__dict__.get("padding", 0), module.__dict__.get("dilation", 1)
        return None if _all_are(padding, 0) or _all_are(dilation, 1) else check_window
    if issubclass(cls, conv._ConvNd):
        weight = module._parameters.get("weight")
        return check_convolution if weight is None or is_lazy(weight) else None
    return CALL_CHECKS.get(cls)


def _all_are(value: Any, number: int) -> bool:
    return all(item == number for item in (value if isinstance(value, (list, tuple)) else [value]))
