"""Checks of convolutions and poolings: windows that move over an input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from model_factory.errors import GraphExecutionError

Op: TypeAlias = Callable[..., Any]

MAX_STRIDE = 4096
"""Stride of a convolution."""

MAX_STRIDE_TRANSPOSED = 32
"""Stride of a transposed convolution whose kernel is not larger."""

MAX_DISTANCE = 65536
"""Dilation and padding of a convolution; each integer of a pooling, if the input is not larger."""

MAX_STRIDE_CHANNELS = 2**17
MAX_STRIDES = 2**16
"""Product of a convolution's largest stride and channels, and product of the strides. Above 2**18 and 2**36, oneDNN's
gradient for the input writes beyond the tensor, whatever the size of the input."""

MIN_CHANNELS = 16
"""Channels that count at least."""


def fault_of_strides(channels: int, strides: Sequence[Any]) -> str | None:
    """Return the allowed products of channels and strides of a convolution, if a product is larger.

    Example:
        >>> fault_of_strides(4, (2, 2)), fault_of_strides(4096, (2000,)) is None
        (None, False)
    """
    counted = max(MIN_CHANNELS, channels)
    if counted * max([1, *strides]) <= MAX_STRIDE_CHANNELS and math.prod(strides) <= MAX_STRIDES:
        return None
    return (
        f"a product of at most {MAX_STRIDE_CHANNELS} with the {counted} channels, and of at most {MAX_STRIDES} of all "
        "strides"
    )


def stride_limits(kernel: Sequence[int]) -> list[int]:
    """Return the largest allowed stride of a transposed convolution along each axis of a kernel.

    Example:
        >>> stride_limits((3, 64))
        [32, 64]
    """
    return [max(MAX_STRIDE_TRANSPOSED, width) for width in kernel]


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, *names: str) -> Any:
    """Return an argument by its position or a name; None if the call has no such argument.

    Example:
        >>> given((1, 2), {"padding": 3}, 1, "stride"), given((1, 2), {"padding": 3}, 2, "padding")
        (2, 3)
    """
    if position < len(args):
        return args[position]
    for name in names:
        if name in kwargs:
            return kwargs[name]
    return None


def check_max_pool(input: torch.Tensor, axes: int, padding: Any = 0, dilation: Any = 1) -> None:  # noqa: A002
    """Check that each window of a max pooling over the last axes has a number of the input.

    For a window without a number, the kernel of the gradient writes outside of the input.

    Raises:
        GraphExecutionError: a dilation is larger than the input, along an axis with padding.

    Example:
        >>> check_max_pool(torch.zeros(1, 2, 3, 6), 2, padding=[1, 1], dilation=2)
    """
    if dilation == 1 or padding == 0:
        return
    paddings, dilations = (_per_axis(value, axes) for value in (padding, dilation))
    for size, padded, apart in zip(input.shape[-axes:], paddings, dilations, strict=False):
        if padded and apart > size:
            raise GraphExecutionError(
                f"a max pooling of an input of the shape {tuple(input.shape)} has the dilation {apart} and the padding "
                f"{padded}; with padding, at most the dilation {size} is allowed there"
            )


def _per_axis(value: Any, axes: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * axes if len(values) == 1 else values


def max_pool(axes: int) -> Callable[..., Any]:
    """Return the check of ``max_poolNd`` for a number of axes."""

    def pool(op: Op, *args: Any, **kwargs: Any) -> Any:
        padding, dilation = given(args, kwargs, 3, "padding"), given(args, kwargs, 4, "dilation")
        check_max_pool(given(args, kwargs, 0, "input"), axes, 0 if padding is None else padding, dilation or 1)
        return slide(op, *args, **kwargs)

    return pool


def convolve(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Convolve with bounded distances; a stride larger than the input is as good as the input's size.

    Kernels generate code for each stride, and the gradient of a larger stride writes outside of the input.
    """
    stride, padding = given(args, kwargs, 3, "stride"), given(args, kwargs, 4, "padding")
    dilation = given(args, kwargs, 5, "dilation")
    for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        _check_distances(name, value, MAX_STRIDE if name == "stride" else MAX_DISTANCE)
    if stride in (None, 1) or padding == "same":
        return op(*args, **kwargs)
    sizes, kernel = given(args, kwargs, 0, "input").shape, given(args, kwargs, 1, "weight").shape[2:]
    axes = len(kernel)
    if torch.compiler.is_compiling():
        _check_strides(args, kwargs, _per_axis(stride, axes))
        return op(*args, **kwargs)
    strides, paddings, dilations = (
        _per_axis(default if value in (None, "valid") else value, axes)
        for value, default in ((stride, 1), (padding, 0), (dilation, 1))
    )
    useful = [
        min(step, max(1, size + 2 * around - apart * (width - 1)))
        for step, size, around, apart, width in zip(strides, sizes[-axes:], paddings, dilations, kernel, strict=True)
    ]
    _check_strides(args, kwargs, useful)
    return with_argument(op, args, kwargs, 3, "stride", useful)


def convolve_transposed(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Convolve; along an axis of size 1, a stride has no meaning, and must only exceed the output padding.

    Kernels for bfloat16 write outside of the result if a large stride exceeds the kernel's size.
    """
    stride, output_padding = given(args, kwargs, 3, "stride"), given(args, kwargs, 5, "output_padding") or 0
    distances = (given(args, kwargs, 4, "padding"), output_padding, given(args, kwargs, 7, "dilation"))
    for name, value in zip(("padding", "output padding", "dilation"), distances, strict=True):
        _check_distances(name, value, MAX_DISTANCE)
    sizes, kernel = given(args, kwargs, 0, "input").shape, given(args, kwargs, 1, "weight").shape[2:]
    if stride in (None, 1):
        return op(*args, **kwargs)
    axes = len(kernel)
    for step, most in zip(_per_axis(stride, axes), stride_limits(kernel), strict=True):
        _check_distances("stride", step, most)
    if torch.compiler.is_compiling():
        _check_strides(args, kwargs, _per_axis(stride, axes))
        return op(*args, **kwargs)
    useful = [
        min(step, around + 1) if size == 1 else step
        for step, around, size in zip(
            _per_axis(stride, axes), _per_axis(output_padding, axes), sizes[-axes:], strict=True
        )
    ]
    _check_strides(args, kwargs, useful)
    return with_argument(op, args, kwargs, 3, "stride", useful)


def _check_strides(args: tuple[Any, ...], kwargs: Mapping[str, Any], strides: Sequence[Any]) -> None:
    """Check the strides of a convolution against the channels of input and weight."""
    sizes, weight = given(args, kwargs, 0, "input").shape, given(args, kwargs, 1, "weight").shape
    channels = max([0, *weight[:2], *sizes[-1 - len(strides) : -len(strides)]])
    allowed = fault_of_strides(channels, strides)
    if allowed is not None:
        raise GraphExecutionError(f"the stride of a convolution is {tuple(strides)}; allowed: {allowed}")


def with_argument(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any) -> Any:
    """Call an op with another value of an argument.

    Example:
        >>> with_argument(max, (1, 2), {}, 1, "other", 3)
        3
    """
    if position < len(args):
        return op(*args[:position], value, *args[position + 1 :], **kwargs)
    return op(*args, **{**kwargs, name: value})


def slide(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Move a window over an input; a number larger than the input has no use, and kernels compute in 32 bits."""
    most = max(MAX_DISTANCE, *given(args, kwargs, 0, "input").shape)
    for value in (*args[1:], *kwargs.values()):
        _check_distances("argument", value, most)
    return op(*args, **kwargs)


def _check_distances(name: str, values: Any, most: int) -> None:
    for value in values if isinstance(values, (list, tuple)) else (values,):
        if isinstance(value, int) and value > most:
            raise GraphExecutionError(f"the {name} of a convolution or window is {value}; at most {most} is allowed")
