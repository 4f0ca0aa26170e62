"""Differences between the signatures of two calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from model_factory.program.call_signature import (
    VALUES,
    ArgumentSignature,
    CallSignature,
    any_of_kind,
    is_match,
    parts_of,
    with_parts,
)

_CHANGES = 2  # other values of a number before the number counts as changing


def changing_number(known: Iterable[CallSignature], given: CallSignature) -> str | None:
    """Return the path of a number in ``given``, if two signatures of ``known`` differ from ``given`` there only.

    Example:
        >>> from model_factory.program.call_signature import call_signature
        >>> known = [call_signature({"step": step})[0] for step in (1, 2)]
        >>> changing_number(known, call_signature({"step": 3})[0])
        'step'
    """
    paths = [path for other in known if (path := _only_number(("dict", other), ("dict", given), ()))]
    return next((".".join(path) for path in paths if paths.count(path) >= _CHANGES), None)


def _only_number(one: ArgumentSignature, other: ArgumentSignature, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the path of the only difference between two signatures, if the difference is a number."""
    if one == other or one[0] != other[0]:
        return None
    if one[0] in VALUES:
        return path if all(type(item[2]) in {int, float} for item in (one, other)) else None
    pairs = _pairs_of_parts(one, other)
    differing = [(one, other) for one, other in pairs if one[0] != other[0] or not is_match(one[1], other[1])]
    if len(differing) != 1 or differing[0][0][0] != differing[0][1][0]:
        return None
    (key, first), (_, second) = differing[0]
    return _only_number(first, second, (*path, str(key)))


def _pairs_of_parts(one: ArgumentSignature, other: ArgumentSignature) -> list[tuple[Any, Any]]:
    """Return the parts of two signatures of one kind in pairs; no pair if the numbers of parts differ."""
    parts, others = parts_of(one) or (), parts_of(other) or ()
    return list(zip(parts, others, strict=True)) if len(parts) == len(others) else []


def differing_values(wanted: CallSignature, given: CallSignature) -> list[str]:
    """Return the paths of constants in ``given`` that ``wanted`` has with another value.

    Example:
        >>> from model_factory.program.call_signature import call_signature
        >>> calls = [call_signature({"mode": mode, "batch": {"step": 1}})[0] for mode in ("train", "eval")]
        >>> differing_values(*calls)
        ['mode']
    """
    return [".".join(path) for path in _differing(("dict", wanted), ("dict", given), ())]


def _differing(one: ArgumentSignature, other: ArgumentSignature, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if other[0] in VALUES and one != other and one != any_of_kind(other):
        yield path
    for (key, first), (_, second) in _pairs_of_parts(one, other) if one[0] == other[0] else ():
        yield from _differing(first, second, (*path, str(key)))


def in_kinds_of(signature: CallSignature, given: CallSignature) -> CallSignature:
    """Return a signature with records and named tuples of the kinds that another signature has in their places.

    Example:
        >>> x = ("tensor", 1, "", ())
        >>> in_kinds_of((("batch", ("dataclass", (("x", x),))),), (("batch", ("record", (("x", x),))),))
        (('batch', ('record', (('x', ('tensor', 1, '', ())),))),)
    """
    return tuple((name, _in_kind_of(item, other)) for (name, item), (_, other) in zip(signature, given, strict=True))


def _in_kind_of(signature: ArgumentSignature, given: ArgumentSignature) -> ArgumentSignature:
    parts, others = parts_of(signature), dict(parts_of(given) or ())
    if parts is None or not others:
        return signature
    named = with_parts(signature, [_in_kind_of(item, others[key]) for key, item in parts])
    return (given[0], *named[1:])
