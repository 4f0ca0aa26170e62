"""Finds out what a forward's dtypes stand for, by comparing recordings in several."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

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
_NOT_OF_FORWARDS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
_FINFO: Any = torch.finfo


@dataclass(frozen=True, slots=True)
class ReadDtype:
    """A dtype argument that may have come from ``value.dtype`` of a value, in a program that is not settled yet."""

    dtype: str
    """As torch names it."""
    values: tuple[str, ...]
    """Those whose dtype was read before and is this one, in order."""


@dataclass(frozen=True, slots=True)
class ReadLimit:
    """A number that may be a limit of a value's dtype, as ``torch.finfo(value.dtype).min``; likewise."""

    number: float
    """What it is."""
    limit: str
    """Which limit, one of ``FLOAT_LIMITS``."""
    values: tuple[str, ...]
    """As in :class:`ReadDtype`."""


class DtypeDecidesError(Exception):
    """Recordings in different dtypes differ in more than dtype arguments."""


class DtypeReads:
    """What a forward has read of its values' dtypes while it is recorded."""

    def __init__(self) -> None:
        self.any = False
        """Whether it has read one."""
        self.names_precision = False
        """Whether code that has names dtypes, as what decides by half precision alone does."""
        self._values: dict[torch.dtype, dict[str, None]] = {}
        self._limits: dict[int, ReadLimit] = {}  # by the id of the number, which lives in it

    def note(self, dtype: torch.dtype, value: str) -> None:
        """Note that the dtype of a value was read."""
        self.any = True
        self.names_precision = self.names_precision or _names_precision(sys._getframe(1))  # noqa: SLF001  no other way
        values = self._values.setdefault(dtype, {})
        values.pop(value, None)
        values[value] = None  # the last one read is the last

    def dtype(self, dtype: torch.dtype) -> ReadDtype | TorchConst:
        """What a dtype may stand for."""
        values = self._values.get(dtype)
        name = torch_name(dtype)
        return ReadDtype(name, tuple(values)) if values else TorchConst(name)

    def number(self, number: float) -> float | ReadLimit:
        """What a number may stand for: a limit that the forward asked for, or the same by another way, as ``-max``."""
        asked = self._limits.get(id(number))
        alike = (limit for limit in reversed(self._limits.values()) if limit.number == number)
        return asked or next(alike, number)

    @contextmanager
    def noted_limits(self) -> Iterator[None]:
        """Note the limits that are asked for while this is entered."""
        with patch.object(torch, "finfo", self._finfo):
            yield

    def _finfo(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of ``torch.finfo``."""
        found = _FINFO(*args, **kwargs)
        about = {name: getattr(found, name) for name in (*FLOAT_LIMITS, "bits", "dtype")}
        values = self._values.get(getattr(torch, found.dtype))
        if values:
            for name in FLOAT_LIMITS:
                self._limits[id(about[name])] = ReadLimit(about[name], name, (next(reversed(values)),))
        return SimpleNamespace(**about, smallest_normal=about["tiny"])


def merge_dtypes(*recordings: Program) -> Program:
    """Merge recordings of one forward in several dtypes.

    Dtype arguments that differ become "the dtype of that value", and numbers that differ as the limits of dtypes do
    become "that limit of the dtype of that value".

    Raises:
        DtypeDecidesError: they differ in anything else.
    """
    steps = _merge(*(program.steps for program in recordings))
    return Program(inputs=recordings[0].inputs, steps=steps, result=_merge(*(item.result for item in recordings)))


def settle_dtypes(program: Program) -> Program:
    """Take every dtype, and every number, as the constant it was."""
    return merge_dtypes(program)


def _merge(*parts: Any) -> Any:
    first = parts[0]
    if all(isinstance(part, ReadDtype | TorchConst) for part in parts):
        return _merge_dtypes(*parts)
    if all(isinstance(part, ReadLimit | float) for part in parts):
        return _merge_numbers(*parts)
    _check_alike(map(type, parts))
    if isinstance(first, Guard):
        _check_alike((part.kind, part.outcome) for part in parts)
        return replace(first, value=_merge(*(part.value for part in parts)))
    if isinstance(first, ModuleCall | OpCall):
        _check_alike(replace(part, args=(), kwargs={}) for part in parts)
        args, kwargs = (_merge(*(getattr(part, name) for part in parts)) for name in ("args", "kwargs"))
        return replace(first, args=args, kwargs=kwargs)
    if isinstance(first, Fields):
        _check_alike((part.names, part.is_tuple) for part in parts)
        return replace(first, values=_merge(*(part.values for part in parts)))
    if isinstance(first, list | tuple):
        _check_alike(map(len, parts))
        return type(first)(_merge(*items) for items in zip(*parts, strict=True))
    if isinstance(first, Mapping):
        _check_alike(map(list, parts))
        return {key: _merge(*(part[key] for part in parts)) for key in first}
    _check_alike(parts)
    return first


def _check_alike(things: Iterable[Any]) -> None:
    first, *others = things
    if any(other != first for other in others):
        raise DtypeDecidesError


def _merge_dtypes(*parts: ReadDtype | TorchConst) -> TorchConst | DtypeOf:
    names = {part.dtype if isinstance(part, ReadDtype) else part.name for part in parts}
    if len(names) == 1:
        return TorchConst(names.pop())
    return DtypeOf(_common_value(parts))


def _merge_numbers(*parts: ReadLimit | float) -> float | LimitOf:
    numbers = {repr(part.number if isinstance(part, ReadLimit) else part) for part in parts}  # NaN is NaN here
    if len(numbers) == 1:
        return float(numbers.pop())
    limits = {part.limit if isinstance(part, ReadLimit) else "" for part in parts}
    if len(limits) > 1:
        raise DtypeDecidesError
    return LimitOf(_common_value(parts), limits.pop())


def _common_value(parts: tuple[Any, ...]) -> str:
    """The last value whose dtype was read in all recordings and could be meant in each."""
    if not all(isinstance(part, ReadDtype | ReadLimit) for part in parts):
        raise DtypeDecidesError
    common = [value for value in parts[0].values if all(value in part.values for part in parts)]
    if not common:
        raise DtypeDecidesError
    return common[-1]  # type: ignore[no-any-return]


def _names_precision(frame: FrameType | None) -> bool:
    """Whether the innermost code outside torch and the recording names dtypes, or asks for their sizes."""
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
    return any(item is dtype for item in items for dtype in HALVES)  # not ==, which a tensor would answer
