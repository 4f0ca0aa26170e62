"""Finds the meaning of a forward's dtypes: constants, or dtypes of values; compares recordings in several dtypes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch

from model_factory.program.ir import (
    FLOAT_LIMITS,
    DtypeOf,
    Fields,
    Guard,
    LimitOf,
    ModuleCall,
    OpCall,
    Program,
    TorchConst,
)
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


class DtypeDecidesError(Exception):
    """Recordings in different dtypes differ in more than dtype arguments and limits."""


class DtypeReads:
    """Dtypes of values that a forward reads while recorded."""

    def __init__(self) -> None:
        self.any = False
        """Whether the forward has read a dtype."""
        self.names_precision = False
        """Whether code that reads a dtype also names dtypes, as code with a branch for half precision does."""
        self._values: dict[torch.dtype, dict[str, None]] = {}
        self._limits: dict[int, ReadLimit] = {}  # by id of the number, which the entry keeps alive

    def note(self, dtype: torch.dtype, value: str) -> None:
        """Note that the dtype of a value was read."""
        self.any = True
        self.names_precision = self.names_precision or _names_precision(sys._getframe(1))  # noqa: SLF001  no other way
        values = self._values.setdefault(dtype, {})
        values.pop(value, None)
        values[value] = None  # last, since read last

    def dtype(self, dtype: torch.dtype) -> ReadDtype | TorchConst:
        """Return a dtype argument: a constant, or possibly the dtype of a value."""
        values = self._values.get(dtype)
        name = torch_name(dtype)
        return ReadDtype(name, tuple(values)) if values else TorchConst(name)

    def number(self, number: float) -> float | ReadLimit:
        """Return a number argument: a constant, or possibly a limit, also one computed otherwise, as ``-max``."""
        read = self._limits.get(id(number))
        equal = (limit for limit in reversed(self._limits.values()) if limit.number == number)
        return read or next(equal, number)

    def note_limits(self, finfo: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``torch.finfo`` that notes limits; ``export.torch_patches`` installs it."""

        def noted_finfo(*args: Any, **kwargs: Any) -> Any:
            found = finfo(*args, **kwargs)
            about = {name: getattr(found, name) for name in (*FLOAT_LIMITS, "bits", "dtype")}
            values = self._values.get(getattr(torch, found.dtype))
            if values:
                for name in FLOAT_LIMITS:
                    self._limits[id(about[name])] = ReadLimit(about[name], name, (next(reversed(values)),))
            return SimpleNamespace(**about, smallest_normal=about["tiny"])

        return noted_finfo


def merge_dtypes(*recordings: Program) -> Program:
    """Merge recordings of one forward in several dtypes.

    Differing dtype arguments become "the dtype of a value". Numbers that differ as the limits of dtypes do become "a
    limit of the dtype of a value".

    Raises:
        DtypeDecidesError: the recordings differ in anything else.
    """
    steps = _merge(*(program.steps for program in recordings))
    return Program(inputs=recordings[0].inputs, steps=steps, result=_merge(*(item.result for item in recordings)))


def settle_dtypes(program: Program) -> Program:
    """Return a program with every dtype and number as a constant."""
    return merge_dtypes(program)


def _merge(*parts: Any) -> Any:
    first = parts[0]
    if all(isinstance(part, ReadDtype | TorchConst) for part in parts):
        return _merge_dtypes(*parts)
    if all(isinstance(part, ReadLimit | float) for part in parts):
        return _merge_numbers(*parts)
    _check_equal(map(type, parts))
    if isinstance(first, Guard):
        _check_equal((part.kind, part.outcome) for part in parts)
        return replace(first, value=_merge(*(part.value for part in parts)))
    if isinstance(first, ModuleCall | OpCall):
        _check_equal(replace(part, args=(), kwargs={}) for part in parts)
        args, kwargs = (_merge(*(getattr(part, name) for part in parts)) for name in ("args", "kwargs"))
        return replace(first, args=args, kwargs=kwargs)
    if isinstance(first, Fields):
        _check_equal((part.names, part.is_tuple) for part in parts)
        return replace(first, values=_merge(*(part.values for part in parts)))
    if isinstance(first, list | tuple):
        _check_equal(map(len, parts))
        return type(first)(_merge(*items) for items in zip(*parts, strict=True))
    if isinstance(first, Mapping):
        _check_equal(map(list, parts))
        return {key: _merge(*(part[key] for part in parts)) for key in first}
    _check_equal(parts)
    return first


def _check_equal(things: Iterable[Any]) -> None:
    first, *others = things
    if any(other != first for other in others):
        raise DtypeDecidesError


def _merge_dtypes(*parts: ReadDtype | TorchConst) -> TorchConst | DtypeOf:
    names = {part.dtype if isinstance(part, ReadDtype) else part.name for part in parts}
    if len(names) == 1:
        return TorchConst(names.pop())
    return DtypeOf(_common_value(parts))


def _merge_numbers(*parts: ReadLimit | float) -> float | LimitOf:
    numbers = {repr(part.number if isinstance(part, ReadLimit) else part) for part in parts}  # NaN differs from NaN
    if len(numbers) == 1:
        return float(numbers.pop())
    limits = {part.limit if isinstance(part, ReadLimit) else "" for part in parts}
    if len(limits) > 1:
        raise DtypeDecidesError
    return LimitOf(_common_value(parts), limits.pop())


def _common_value(parts: tuple[Any, ...]) -> str:
    """The last value that every part allows."""
    if not all(isinstance(part, ReadDtype | ReadLimit) for part in parts):
        raise DtypeDecidesError
    common = [value for value in parts[0].values if all(value in part.values for part in parts)]
    if not common:
        raise DtypeDecidesError
    return common[-1]  # type: ignore[no-any-return]


def _names_precision(frame: FrameType | None) -> bool:
    """Whether the innermost code outside torch and this package names dtypes, or reads sizes of dtypes."""
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_OF_FORWARDS):
        frame = frame.f_back
    if frame is None:
        return False
    names, texts = frame.f_code.co_names, [text for text in frame.f_code.co_consts if type(text) is str]
    if not _PRECISION_NAMES.isdisjoint(names) or any("float16" in text for text in texts):
        return True
    return any(_has_half(frame.f_globals.get(name)) for name in names)


def _has_half(value: Any) -> bool:
    items = value if isinstance(value, set | frozenset | list | tuple | dict) else (value,)
    return any(item is dtype for item in items for dtype in HALVES)  # not ==, which a tensor overrides
