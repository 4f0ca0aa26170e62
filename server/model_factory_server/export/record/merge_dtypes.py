"""Merges recordings of a forward in several dtypes, to find the meaning of dtypes and limits in the program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from model_factory.program.ir import (
    DtypeOf,
    Fields,
    Guard,
    LimitOf,
    ModuleCall,
    OpCall,
    OwnBackward,
    Program,
    Ref,
    TorchConst,
    out_names,
    step_arguments,
)
from model_factory.program.runtime.interpreter import parts_of
from model_factory_server.export.conditions.dtype_reads import ReadDtype, ReadLimit


class DtypeDecidesError(Exception):
    """Recordings in different dtypes differ in more than dtype arguments and limits."""


def merge_dtypes(*recordings: Program) -> Program:
    """Merge recordings of a forward in several dtypes.

    Differing dtype arguments become "the dtype of a value". Numbers that differ as the limits of dtypes do become "a
    limit of the dtype of a value".

    Raises:
        DtypeDecidesError: the recordings differ in anything else.

    Example:
        >>> from model_factory.program.ir import Ref
        >>> def program(dtype):
        ...     cast = OpCall(name="torch.Tensor.to", args=(Ref("x"), ReadDtype(dtype, ("x",))), out="v0")
        ...     return Program(inputs=("x",), steps=(cast,), result=Ref("v0"))
        >>> merge_dtypes(program("float32"), program("float64")).steps[0].args
        (Ref(name='x'), DtypeOf(name='x'))
        >>> merge_dtypes(program("float32")).steps[0].args
        (Ref(name='x'), TorchConst(name='float32'))
    """
    steps = _merge(*(program.steps for program in recordings))
    return Program(inputs=recordings[0].inputs, steps=steps, result=_merge(*(item.result for item in recordings)))


_EMPTY = Program(inputs=(), steps=(), result=None)


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
    if isinstance(first, OwnBackward):
        _check_equal((replace(part, backward=_EMPTY), part.backward.inputs) for part in parts)
        return _with_dtypes(replace(first, backward=merge_dtypes(*(part.backward for part in parts))))
    if isinstance(first, Fields):
        _check_equal((part.names, part.kind) for part in parts)
        return replace(first, values=_merge(*(part.values for part in parts)))
    if isinstance(first, list | tuple):
        _check_equal(map(len, parts))
        return type(first)(_merge(*items) for items in zip(*parts, strict=True))
    if isinstance(first, Mapping):
        _check_equal(map(list, parts))
        return {key: _merge(*(part[key] for part in parts)) for key in first}
    _check_equal(parts)
    return first


def _with_dtypes(step: OwnBackward) -> OwnBackward:
    """Keep the values whose dtype the backward has."""
    backward = step.backward
    known = {*backward.inputs, *(name for inner in backward.steps for name in out_names(inner))}
    arguments = [backward.result, *map(step_arguments, backward.steps)]
    used = [part.name for part in parts_of(arguments, []) if isinstance(part, DtypeOf | LimitOf)]
    more = tuple(dict.fromkeys(name for name in used if name not in known))
    kept = (*step.kept, *map(Ref, more))
    return replace(step, kept=kept, backward=replace(backward, inputs=(*backward.inputs, *more)))


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
    numbers = [part.number if isinstance(part, ReadLimit) else part for part in parts]
    if len(set(map(repr, numbers))) == 1:  # NaN differs from NaN
        return numbers[0]
    limits = {part.limit if isinstance(part, ReadLimit) else "" for part in parts}
    if len(limits) > 1:
        raise DtypeDecidesError
    return LimitOf(_common_value(parts), limits.pop())


def _common_value(parts: tuple[Any, ...]) -> str:
    """The last value allowed by every part."""
    if not all(isinstance(part, ReadDtype | ReadLimit) for part in parts):
        raise DtypeDecidesError
    common = [value for value in parts[0].values if all(value in part.values for part in parts)]
    if not common:
        raise DtypeDecidesError
    return common[-1]  # type: ignore[no-any-return]
