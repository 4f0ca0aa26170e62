"""Checks of stock modules, before torch uses attributes and tensors as sizes and indices.

A descriptor comes from an untrusted peer, and so do the arguments in a config. Most kernels of torch check their
arguments. A rule here covers each attribute and tensor that a kernel, or a loop of torch, trusts. Attributes that torch
only shows (``in_features``) have no rule: pruning and resizing leave stale values there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import conv, pooling
from torch.nn.parameter import is_lazy

from model_factory.errors import FormatError
from model_factory.limits import MAX_INTEGER
from model_factory.program.checks.windows import (
    MAX_DISTANCE,
    MAX_STRIDE,
    fault_of_strides,
    stride_limits,
)
from model_factory.program.torch_private import SpectralNorm
from model_factory.wording import quoted

_SEQUENCES = (list, tuple)  # torch.Size is a tuple

MAX_POWER_ITERATIONS = 1000
"""Iterations of a spectral norm at each call; torch's default is 1."""

MAX_STEP = 2**20
"""Kernel size, stride, dilation and padding of a pooling: kernels compute in 32 bits, or walk over the kernel size."""

UNKNOWN_CHANNELS = 512
"""Channels of a lazy or parametrized convolution; a check of each call counts the real channels."""


class Rule(NamedTuple):
    """What an attribute may be."""

    holds: Callable[[Any], bool]
    """Whether a value is allowed."""
    text: str
    """The allowed values, for error messages."""


def _is_whole(value: Any, low: int = -MAX_INTEGER, high: int = MAX_INTEGER) -> bool:
    return isinstance(value, int) and low <= value <= high


def _is_finite(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_bounded(value: Any) -> bool:
    """Whether all integers inside plain data are bounded."""
    if isinstance(value, int):
        return -MAX_INTEGER <= value <= MAX_INTEGER
    if isinstance(value, _SEQUENCES):
        return all(map(_is_bounded, value))
    if isinstance(value, dict):
        return all(map(_is_bounded, value)) and all(map(_is_bounded, value.values()))
    return True


def _each(holds: Callable[[Any], bool], text: str, most: int = 3) -> Rule:
    """Allow one value, or one for each axis."""

    def each(value: Any) -> bool:
        if isinstance(value, _SEQUENCES):
            return len(value) <= most and all(map(holds, value))
        return holds(value)

    return Rule(each, f"{text}; at most {most}")


def _wholes(low: int, high: int = MAX_INTEGER) -> Rule:
    return _each(lambda value: _is_whole(value, low, high), f"whole numbers from {low} to {high}")


def _or(other: Any, rule: Rule) -> Rule:
    return Rule(lambda value: value is other or rule.holds(value), f"{rule.text}; or {other}")


def _count(high: int) -> Rule:
    return Rule(lambda value: _is_whole(value, 1, high), f"a whole number from 1 to {high}")


def _factors(text: str, below: float) -> Rule:
    """Allow None, one positive finite number, or one for each axis."""
    rule = _each(lambda value: _is_finite(value) and 0 < value < below, text)
    return _or(None, rule)


_POSITIVE, _STRIDE, _PADDING = _wholes(1, MAX_STEP), _or(None, _wholes(1, MAX_STEP)), _wholes(0, MAX_STEP)
_COUNT = _count(MAX_INTEGER)
_POOL = {"kernel_size": _POSITIVE, "stride": _STRIDE, "padding": _PADDING, "dilation": _POSITIVE}
_BLOCKS = {"kernel_size": _POSITIVE, "stride": _POSITIVE, "padding": _PADDING, "dilation": _POSITIVE}
_OUTPUT = {"output_size": _each(lambda value: value is None or _is_whole(value, 0), f"None, or 0 to {MAX_INTEGER}")}
_FRACTIONAL = {"kernel_size": _POSITIVE, "output_size": _STRIDE, "output_ratio": _factors("numbers between 0 and 1", 1)}

_RULES: Mapping[type[nn.Module], Mapping[str, Rule]] = MappingProxyType(
    {
        conv._ConvNd: {
            "kernel_size": _POSITIVE,
            "stride": _wholes(1, MAX_STRIDE),
            "dilation": _wholes(1, MAX_DISTANCE),
            "padding": _each(
                lambda value: type(value) is str or _is_whole(value, 0), "whole numbers from 0, or a text"
            ),
            "output_padding": _wholes(0, MAX_DISTANCE),
            "groups": _COUNT,
        },
        pooling._MaxPoolNd: _POOL,
        pooling._AvgPoolNd: _POOL,
        pooling._LPPoolNd: _POOL,
        pooling._MaxUnpoolNd: _POOL,
        pooling._AdaptiveAvgPoolNd: _OUTPUT,
        pooling._AdaptiveMaxPoolNd: _OUTPUT,
        nn.FractionalMaxPool2d: _FRACTIONAL,
        nn.FractionalMaxPool3d: _FRACTIONAL,
        nn.Unfold: _BLOCKS,
        nn.Fold: {**_BLOCKS, "output_size": _POSITIVE},
        nn.Upsample: {"scale_factor": _factors(f"positive numbers below {MAX_INTEGER}", MAX_INTEGER), "size": _STRIDE},
        nn.GroupNorm: {"num_groups": _COUNT},
        nn.ChannelShuffle: {"groups": _COUNT},
        nn.PixelShuffle: {"upscale_factor": _COUNT},
        nn.PixelUnshuffle: {"downscale_factor": _COUNT},
        nn.LocalResponseNorm: {"size": _COUNT},
        nn.CrossMapLRN2d: {"size": _COUNT},
        nn.MultiheadAttention: {"num_heads": _COUNT, "head_dim": _COUNT, "embed_dim": _COUNT},
        nn.CTCLoss: {"blank": Rule(lambda value: _is_whole(value, 0), f"a whole number from 0 to {MAX_INTEGER}")},
        SpectralNorm: {"n_power_iterations": _count(MAX_POWER_ITERATIONS)},
    }
)


@cache
def _rules(cls: type[nn.Module]) -> Mapping[str, Rule]:
    found: dict[str, Rule] = {}
    for base in reversed(cls.__mro__):
        found.update(_RULES.get(base, {}))
    return found


def check_stock_module(module: nn.Module) -> None:
    """Check the attributes and tensors that torch would trust, without a look at the module's children.

    Raises:
        FormatError: an attribute or tensor is wrong; the message names class, attribute, value and allowed values.

    Example:
        >>> check_stock_module(nn.MaxPool1d(2, stride=2**63 - 1))
        Traceback (most recent call last):
        model_factory.errors.FormatError: stride of a MaxPool1d is 9223372036854775807; allowed: whole numbers from 1 \
to 1048576; at most 3; or None
    """
    attributes = module.__dict__
    check_attributes(type(module), attributes)
    check_tensors(module)
    for name, value in attributes.items():
        if name not in _INTERNALS and not _is_bounded(value):
            raise _refusal(type(module), name, value, f"integers from -{MAX_INTEGER} to {MAX_INTEGER}")


def check_attributes(cls: type[nn.Module], attributes: Mapping[str, Any]) -> None:
    """Check the attributes with rules of an instance of ``cls``; all integers are bounded already.

    Raises:
        FormatError: as :func:`check_stock_module`.

    Example:
        >>> check_attributes(nn.GroupNorm, {"num_groups": 2, "num_channels": 4})
    """
    for name, rule in _rules(cls).items():  # type: ignore[arg-type]  # mypy: a class is hashable
        if name in attributes and not rule.holds(attributes[name]):
            raise _refusal(cls, name, attributes[name], rule.text)


def check_tensors(module: nn.Module) -> None:
    """Check that attributes with a rule fit the tensors.

    Raises:
        FormatError: as :func:`check_stock_module`.

    Example:
        >>> check_tensors(nn.Conv1d(4096, 8, 3, stride=2000))
        Traceback (most recent call last):
        model_factory.errors.FormatError: stride of a Conv1d is (2000,); allowed: a product of at most 131072 with the \
4096 channels, and of at most 65536 of all strides
    """
    if not isinstance(module, conv._ConvNd):
        return
    stride, weight = module.__dict__.get("stride", 1), module._parameters.get("weight")
    strides = stride if isinstance(stride, _SEQUENCES) else (stride,) * 3
    channels = UNKNOWN_CHANNELS if weight is None or is_lazy(weight) else channels_of(module, weight)
    allowed = fault_of_strides(channels, strides)
    if allowed is not None:
        raise _refusal(type(module), "stride", stride, allowed)
    if isinstance(module, conv._ConvTransposeNd):
        limits = stride_limits(_kernel(module, weight, len(strides)))
        if len(limits) < len(strides) or any(step > most for step, most in zip(strides, limits, strict=False)):
            raise _refusal(type(module), "stride", stride, f"at most {limits}, or the size of a larger kernel")


def channels_of(module: nn.Module, weight: Any) -> int:
    """Return the larger number of input and output channels of a convolution.

    Example:
        >>> channels_of(layer := nn.Conv1d(6, 4, 3, groups=2), layer.weight)
        6
    """
    groups = module.__dict__.get("groups", 1)
    return max(weight.shape[0], weight.shape[1] * groups) if weight.dim() > 1 else 0


def _kernel(module: nn.Module, weight: Any, axes: int) -> Sequence[int]:
    """Return the sizes of a convolution's kernel; a parametrized weight has a shape at calls only."""
    if weight is None:
        return (1,) * axes
    if not is_lazy(weight):
        return tuple(weight.shape[2:])
    sizes = module.__dict__.get("kernel_size", 1)
    return sizes if isinstance(sizes, _SEQUENCES) else (sizes,) * axes


_INTERNALS = frozenset(nn.Module().__dict__)


def _refusal(cls: type[nn.Module], name: str, value: Any, allowed: str) -> FormatError:
    return FormatError(f"{name} of a {cls.__name__} is {quoted(value)}; allowed: {allowed}")
