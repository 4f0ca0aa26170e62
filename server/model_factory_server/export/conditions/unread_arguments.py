"""Parts of a call's arguments that a forward does not read: texts, counters, options without effect.

The call signature of a program leaves unread parts out, so a batch with a new text at each step needs no new program.
To find unread constants, the forward runs again with :class:`UseNoting` objects in the place of constants. A constant
is unread if no use was noted and the program is the same. Then any value of the constant's kind fits the signature. A
value of another kind, above all None, does not fit, since ``is None`` and ``isinstance`` are not noted as uses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Container, Iterator
from typing import Any

from model_factory.program.arguments.kinds import CLOSED, Parts, put_together, take_apart
from model_factory.program.arguments.unreadable import Unreadable
from model_factory.program.call_signature import (
    TENSORS,
    ArgumentSignature,
    CallSignature,
    any_of_kind,
    parts_of,
    with_parts,
)

Place = tuple[str | int, ...]
"""The place of a part of a call's arguments: the name of the argument, then keys and indices."""


def candidates(signature: CallSignature, defaults: dict[str, Any], unread: Container[Place]) -> Iterator[Place]:
    """The places of a call signature that a forward may leave unread: texts, numbers, objects, and lists.

    A list is a candidate if all of its tensors are ``unread``. A top-level argument equal to its value in ``defaults``
    is not a candidate: the argument stays the same from call to call.

    Example:
        >>> from model_factory.program.call_signature import call_signature
        >>> signature, _ = call_signature({"task": "fold", "count": 3})
        >>> list(candidates(signature, {"count": 3}, ()))
        [('task',)]
    """
    for name, argument in signature:
        if not (argument[0] == "const" and name in defaults and defaults[name] == argument[2]):
            yield from _candidates(argument, (name,), unread)


def _candidates(argument: ArgumentSignature, place: Place, unread: Container[Place]) -> Iterator[Place]:
    match argument[0]:
        case "const":
            if type(argument[2]) in {int, float, str}:
                yield place
        case "nan" | "object" | "numpy":
            yield place
        case "list" | "tuple" if all(tensor in unread for tensor, _ in _tensor_places([(place, argument)])):
            yield place
        case kind if kind not in CLOSED:
            for key, item in parts_of(argument) or ():
                yield from _candidates(item, (*place, key), unread)


def tensor_places(signature: CallSignature) -> Iterator[tuple[Place, str]]:
    """The place of each tensor in a call signature, and the tensor's name among the inputs of a program."""
    return _tensor_places([((name,), argument) for name, argument in signature])


def _tensor_places(pending: list[tuple[Place, ArgumentSignature]]) -> Iterator[tuple[Place, str]]:
    while pending:
        place, argument = pending.pop()
        if argument[0] in TENSORS:
            yield place, ".".join(map(str, place))
        pending += [((*place, key), item) for key, item in parts_of(argument) or ()]


def without(signature: CallSignature, places: Container[Place]) -> CallSignature:
    """Return a call signature that allows any value of the same kind at these places."""
    return tuple((name, _without(argument, (name,), places)) for name, argument in signature)


def _without(argument: ArgumentSignature, place: Place, places: Container[Place]) -> ArgumentSignature:
    if place in places:
        return any_of_kind(argument)
    parts = parts_of(argument)
    return argument if parts is None else with_parts(argument, [_without(i, (*place, k), places) for k, i in parts])


def with_use_noting(
    arguments: dict[str, Any], places: Collection[Place], note: Callable[[Place], None]
) -> dict[str, Any]:
    """Return arguments with an object at each of ``places`` that calls ``note`` with the place when used.

    Example:
        >>> used = []
        >>> arguments = with_use_noting({"count": 3}, {("count",)}, used.append)
        >>> arguments["count"] + 1, used
        (4, [('count',)])
    """
    return {name: _with_noting(value, (name,), places, note) for name, value in arguments.items()}


def _with_noting(value: Any, place: Place, places: Collection[Place], note: Callable[[Place], None]) -> Any:
    if place in places:
        # An Unreadable refuses every use already.
        return value if type(value) is Unreadable else UseNoting(value, functools.partial(note, place))
    parts = take_apart(value)
    if parts is None or not any(item[: len(place)] == place for item in places):
        return value
    entries = [(key, _with_noting(item, (*place, key), places, note)) for key, item in parts.entries]
    return put_together(Parts(parts.kind, entries, parts.detail), value)


class UseNoting:
    """Replaces a constant during a recording: notes each use, then behaves as the constant.

    The class does not derive from ``int`` or ``str``, since C code could then read the constant without these methods.
    C code calls ``__index__``, ``__len__`` or the like instead, or fails.
    """

    def __init__(self, value: Any, note: Callable[[], None]) -> None:
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_note", note)

    def __getattribute__(self, name: str) -> Any:
        value = constant_of(self)
        return value.__class__ if name == "__class__" else getattr(value, name)


def constant_of(noting: UseNoting) -> Any:
    """Note a use and return the constant."""
    object.__getattribute__(noting, "_note")()
    return object.__getattribute__(noting, "_value")


def _method(name: str) -> Callable[..., Any]:
    def call(self: UseNoting, *args: Any, **kwargs: Any) -> Any:
        others = [constant_of(arg) if type(arg) is UseNoting else arg for arg in args]
        return getattr(constant_of(self), name)(*others, **kwargs)

    return call


_KINDS = (int, float, str, list, tuple)
_NOT_METHODS = frozenset(
    "__class__ __new__ __init__ __getattribute__ __init_subclass__ __subclasshook__ __del__ __doc__ __dict__ "
    "__setattr__ __delattr__ __class_getitem__".split()
)
for _name in {name for kind in _KINDS for name in dir(kind) if name.startswith("__")} - _NOT_METHODS:
    setattr(UseNoting, _name, _method(_name))
