"""Parts of a call's arguments that a forward does not read: texts, counters, options without effect.

The call signature of a program leaves unread parts out, so a batch with a new text at each step needs no new program.
To find unread constants, the forward runs again with :class:`UseNoting` objects in the place of constants. A constant
is unread if no use was noted and the program is the same. Then any value of the constant's kind fits the signature. A
value of another kind, above all None, does not fit, since ``is None`` and ``isinstance`` are not noted as uses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from typing import Any

from model_factory.program.call_signature import ArgumentSignature, Unreadable, any_of_kind

Place = tuple[str | int, ...]
"""The place of a part of a call's arguments: the name of the argument, then keys and indices."""

Forms = tuple[tuple[str, ArgumentSignature], ...]


def candidates(forms: Forms, defaults: dict[str, Any], unread: Container[Place]) -> Iterator[Place]:
    """The places of a call signature that a forward may leave unread: texts, numbers, objects, and lists.

    A list is a candidate if all of its tensors are ``unread``. A top-level argument equal to its value in ``defaults``
    is not a candidate: the argument stays the same from call to call.

    Example:
        >>> from model_factory.program.call_signature import call_signature
        >>> form, _ = call_signature({"task": "fold", "count": 3})
        >>> list(candidates(form, {"count": 3}, ()))
        [('task',)]
    """
    for name, form in forms:
        if not (form[0] == "const" and name in defaults and defaults[name] == form[2]):
            yield from _candidates(form, (name,), unread)


def _candidates(form: ArgumentSignature, place: Place, unread: Container[Place]) -> Iterator[Place]:
    match form[0]:
        case "const":
            if type(form[2]) in {int, float, str}:
                yield place
        case "nan" | "object":
            yield place
        case "dict":
            for key, item in form[1]:
                yield from _candidates(item, (*place, key), unread)
        case "list" | "tuple":
            if all(tensor in unread for tensor, _ in _tensor_places([(place, form)])):
                yield place
            else:
                for index, item in enumerate(form[1]):
                    yield from _candidates(item, (*place, index), unread)


def tensor_places(forms: Forms) -> Iterator[tuple[Place, str]]:
    """The place of each tensor in a call signature, and the tensor's name among the inputs of a program."""
    return _tensor_places([((name,), form) for name, form in forms])


def _tensor_places(pending: list[tuple[Place, ArgumentSignature]]) -> Iterator[tuple[Place, str]]:
    while pending:
        place, form = pending.pop()
        if form[0] == "tensor":
            yield place, ".".join(map(str, place))
        elif form[0] in {"dict", "list", "tuple"}:
            entries = form[1] if form[0] == "dict" else enumerate(form[1])
            pending += [((*place, key), item) for key, item in entries]


def without(forms: Forms, places: Container[Place]) -> Forms:
    """Return a call signature that allows any value of the same kind at these places."""
    return tuple((name, _without(form, (name,), places)) for name, form in forms)


def _without(form: ArgumentSignature, place: Place, places: Container[Place]) -> ArgumentSignature:
    if place in places:
        return any_of_kind(form)
    match form[0]:
        case "dict":
            return ("dict", tuple((key, _without(item, (*place, key), places)) for key, item in form[1]))
        case "list" | "tuple":
            return (form[0], tuple(_without(item, (*place, index), places) for index, item in enumerate(form[1])))
    return form


def with_use_noting(
    arguments: dict[str, Any], places: Container[Place], note: Callable[[Place], None]
) -> dict[str, Any]:
    """Return arguments with an object at each of ``places`` that calls ``note`` with the place when used.

    Example:
        >>> used = []
        >>> arguments = with_use_noting({"count": 3}, {("count",)}, used.append)
        >>> arguments["count"] + 1, used
        (4, [('count',)])
    """
    return {name: _with_noting(value, (name,), places, note) for name, value in arguments.items()}


def _with_noting(value: Any, place: Place, places: Container[Place], note: Callable[[Place], None]) -> Any:
    if place in places:
        # An Unreadable refuses every use already.
        return value if type(value) is Unreadable else UseNoting(value, functools.partial(note, place))
    if type(value) is dict:
        return {key: _with_noting(item, (*place, key), places, note) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_with_noting(item, (*place, index), places, note) for index, item in enumerate(value))
    return value


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
