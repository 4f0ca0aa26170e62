"""Names that torch has gained since the oldest supported version.

A model with one of these names is refused by a client whose torch lacks the name. The table gives the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch

_OUT_DTYPE = ("addmm", "baddbmm", "bmm", "mm")

SINCE: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "float8_e8m0fnu": (2, 7),
        "nn.LinearCrossEntropyLoss": (2, 13),
        "torch._grouped_mm": (2, 8),
        "torch.nn.functional.huber_loss(weight)": (2, 7),
        "torch.nn.functional.l1_loss(weight)": (2, 7),
        "torch.nn.functional.mse_loss(weight)": (2, 7),
        "torch.nn.functional.scaled_dot_product_attention(enable_gqa)": (2, 5),
        "torch.stft(align_to_window)": (2, 7),
        "torch.Tensor.stft(align_to_window)": (2, 7),
        **{f"{owner}.{name}(out_dtype)": (2, 8) for owner in ("torch", "torch.Tensor") for name in _OUT_DTYPE},
    }
)
"""Name of an op, argument of an op, class or dtype -> a version of torch with the name: the first that was tried."""


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
