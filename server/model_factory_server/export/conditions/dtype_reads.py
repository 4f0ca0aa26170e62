"""Notes reads of dtypes by a forward while recorded, and limits of dtypes from ``torch.finfo``."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch

from model_factory.program.ir import FLOAT_LIMITS, TorchConst
from model_factory.program.torch_names import torch_name

HALVES = (torch.float16, torch.bfloat16)
_PRECISION_NAMES = frozenset("float16 bfloat16 half float64 finfo bits element_size itemsize".split())
_NOT_OF_FORWARDS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))


@dataclass(frozen=True, slots=True)
class ReadDtype:
    """A dtype argument that may be ``value.dtype`` of a value, before recordings are merged."""

    dtype: str
    """Torch's name of the dtype."""
    values: tuple[str, ...]
    """Values of this dtype whose dtype was read before, in order."""


@dataclass(frozen=True, slots=True)
class ReadLimit:
    """A number that may be a limit of a value's dtype, as ``torch.finfo(value.dtype).min``, before merging."""

    number: float
    """The number."""
    limit: str
    """Name of the limit, from ``FLOAT_LIMITS``."""
    values: tuple[str, ...]
    """As in :class:`ReadDtype`."""


class DtypeReads:
    """Reads of dtypes in one recording."""

    def __init__(self) -> None:
        self.any = False
        """Whether the forward has read a dtype."""
        self.names_precision = False
        """Whether code with a read of a dtype also names dtypes, as code with a branch for half precision does."""
        self._values: dict[torch.dtype, dict[str, None]] = {}
        self._limits: dict[int, ReadLimit] = {}  # by id of the number, which the entry keeps alive

    def note(self, dtype: torch.dtype, value: str) -> None:
        """Note a read of a value's dtype."""
        self.any = True
        self.names_precision = self.names_precision or _names_precision(sys._getframe(1))  # noqa: SLF001  no other way
        values = self._values.setdefault(dtype, {})
        values.pop(value, None)
        values[value] = None  # last, since read last

    def forget(self, names: Container[str]) -> None:
        """Forget reads of the dtypes of values, whose steps are not the forward's own."""
        for values in self._values.values():
            for name in [name for name in values if name in names]:
                del values[name]
        self._limits = {key: read for key, read in self._limits.items() if all(at not in names for at in read.values)}

    def dtype(self, dtype: torch.dtype) -> ReadDtype | TorchConst:
        """Return a dtype argument: a constant, or possibly the dtype of a value."""
        values = self._values.get(dtype)
        name = torch_name(dtype)
        return ReadDtype(name, tuple(values)) if values else TorchConst(name)

    def number(self, number: float) -> float | ReadLimit:
        """Return a number argument: a constant, or possibly a limit, also if computed, for example ``-max``.

        Every NaN is one object, so that programs with NaN equal each other.
        """
        if math.isnan(number):
            return math.nan
        read = self._limits.get(id(number))
        equal = (limit for limit in reversed(self._limits.values()) if limit.number == number)
        return read or next(equal, number)

    def note_limits(self, finfo: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``torch.finfo`` to note limits; see ``export.torch_patches``."""

        def noted_finfo(*args: Any, **kwargs: Any) -> Any:
            found = finfo(*args, **kwargs)
            about = {name: getattr(found, name) for name in (*FLOAT_LIMITS, "bits", "dtype")}
            values = self._values.get(getattr(torch, found.dtype))
            if values:
                for name in FLOAT_LIMITS:
                    self._limits[id(about[name])] = ReadLimit(about[name], name, (next(reversed(values)),))
            return SimpleNamespace(**about, smallest_normal=about["tiny"])

        return noted_finfo


def frame_of_forward(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame outside of torch and this package: code of the forward."""
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_OF_FORWARDS):
        frame = frame.f_back
    return frame


def _names_precision(frame: FrameType | None) -> bool:
    """Whether the innermost code outside torch and this package names dtypes, or reads sizes of dtypes."""
    frame = frame_of_forward(frame)
    if frame is None:
        return False
    names, texts = frame.f_code.co_names, [text for text in frame.f_code.co_consts if type(text) is str]
    if not _PRECISION_NAMES.isdisjoint(names) or any("float16" in text for text in texts):
        return True
    return any(_has_half(frame.f_globals.get(name)) for name in names)


def _has_half(value: Any) -> bool:
    items = value if isinstance(value, set | frozenset | list | tuple | dict) else (value,)
    return any(item is dtype for item in items for dtype in HALVES)  # not ==, which a tensor overrides
