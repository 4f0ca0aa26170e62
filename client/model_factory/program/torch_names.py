"""Names of torch's dtypes, memory formats and layouts, and the names that torch has gained lately.

A model with a newer name is refused by a client whose torch lacks the name; the error has the version to install.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from model_factory.errors import FormatError

_OUT_DTYPE = ("addmm", "baddbmm", "bmm", "mm")

SINCE: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "float8_e8m0fnu": (2, 7),
        "nn.LinearCrossEntropyLoss": (2, 13),
        "torch._grouped_mm": (2, 8),
        "torch.nn.functional.huber_loss(weight)": (2, 6),
        "torch.nn.functional.l1_loss(weight)": (2, 6),
        "torch.nn.functional.mse_loss(weight)": (2, 6),
        "torch.nn.functional.scaled_dot_product_attention(enable_gqa)": (2, 5),
        "torch.stft(align_to_window)": (2, 7),
        "torch.Tensor.stft(align_to_window)": (2, 7),
        **{f"{owner}.{name}(out_dtype)": (2, 8) for owner in ("torch", "torch.Tensor") for name in _OUT_DTYPE},
    }
)
"""Op, argument of an op, class or dtype -> a version of torch with the name; for arguments, the first one."""


def remedy(name: str) -> str:
    """Return the end of an error about a name that this torch lacks; empty for a name that no torch has.

    Example:
        >>> remedy("nn.Unheard"), remedy("torch._grouped_mm").partition(".")[0]
        ('', '; torch 2')
    """
    if name not in SINCE:
        return ""
    version = ".".join(map(str, SINCE[name]))
    return (
        f"; torch {version} has the name, this is torch {torch.__version__}. Remedy: install torch {version} or later"
    )


def lacking(op: str, arguments: Iterable[str]) -> str | None:
    """Return the first argument of an op that this torch lacks, as a name in ``SINCE``.

    Example:
        >>> lacking("torch.bmm", ["mat2"])
    """
    names = (f"{op}({argument})" for argument in arguments)
    return next((name for name in names if SINCE.get(name, (0, 0)) > _THIS), None)


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


_THIS = _release(torch.__version__)

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
