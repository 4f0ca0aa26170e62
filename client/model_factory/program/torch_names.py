"""Names of torch's dtypes, memory formats and layouts, as programs, descriptors and calls have them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from model_factory.errors import FormatError
from model_factory.program.newer_torch import remedy

# Dense tensors of numbers only: kernels of other layouts, and of quantised and packed dtypes, trust their arguments.
_NAMES = """
bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex32 complex64 complex128
float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu strided preserve_format contiguous_format
channels_last channels_last_3d
"""
_CONSTANTS: Mapping[str, Any] = MappingProxyType(
    {name: getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name)}
)


def torch_name(value: torch.dtype | torch.memory_format | torch.layout) -> str:
    """Return the name of a constant, without ``torch.``.

    Example:
        >>> torch_name(torch.float32)
        'float32'
    """
    return str(value).removeprefix("torch.")


def torch_const(name: str) -> Any:
    """Return the constant of a name: the inverse of :func:`torch_name`.

    Raises:
        FormatError: the name is not allowed.

    Example:
        >>> torch_const("channels_last")
        torch.channels_last
    """
    value = _CONSTANTS.get(name)
    if value is None:
        raise FormatError(f"{name!r} is not a dtype, memory format or layout that may be named here{remedy(name)}")
    return value


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name.

    Raises:
        FormatError: the name is not allowed, or names no dtype.
    """
    value = torch_const(name)
    if not isinstance(value, torch.dtype):
        raise FormatError(f"{name!r} is not a dtype")
    return value
