"""Finds out what a forward's dtypes stand for, by comparing recordings in two dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model_factory.graph.program import DtypeOf, Program, Step, TorchConst


@dataclass(frozen=True, slots=True)
class ReadDtype:
    """A dtype argument that may have come from ``value.dtype`` of a value, in a program that is not settled yet."""

    dtype: str
    """As torch names it."""
    values: tuple[str, ...]
    """Those whose dtype was read before and is this one, in order."""


class DtypeDecidesError(Exception):
    """Two recordings in different dtypes differ in more than dtype arguments."""


def merge_dtypes(first: Program, second: Program) -> Program:
    """Merge recordings of one forward in two dtypes: dtype arguments that differ become "the dtype of that value".

    Raises:
        DtypeDecidesError: they differ in anything else.
    """
    return Program(
        inputs=first.inputs, steps=_merge(first.steps, second.steps), result=_merge(first.result, second.result)
    )


def settle_dtypes(program: Program) -> Program:
    """Take every dtype as the constant it was."""
    return merge_dtypes(program, program)


def _merge(first: Any, second: Any) -> Any:
    if isinstance(first, ReadDtype | TorchConst) and isinstance(second, ReadDtype | TorchConst):
        return _merge_dtype(first, second)
    if type(first) is not type(second):
        raise DtypeDecidesError
    if isinstance(first, Step):
        if first.call != second.call or first.out != second.out:
            raise DtypeDecidesError
        return replace(first, args=_merge(first.args, second.args), kwargs=_merge(first.kwargs, second.kwargs))
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            raise DtypeDecidesError
        return type(first)(_merge(one, other) for one, other in zip(first, second, strict=True))
    if isinstance(first, Mapping):
        if list(first) != list(second):
            raise DtypeDecidesError
        return {key: _merge(value, second[key]) for key, value in first.items()}
    if first != second:
        raise DtypeDecidesError
    return first


def _merge_dtype(first: ReadDtype | TorchConst, second: ReadDtype | TorchConst) -> TorchConst | DtypeOf:
    names = [item.dtype if isinstance(item, ReadDtype) else item.name for item in (first, second)]
    if names[0] == names[1]:
        return TorchConst(names[0])
    if isinstance(first, ReadDtype) and isinstance(second, ReadDtype):
        common = [value for value in first.values if value in second.values]
        if common:
            return DtypeOf(common[-1])
    raise DtypeDecidesError
