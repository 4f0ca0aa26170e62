"""Which parts of a call's arguments a forward does not read: texts, counters, an option without effect.

Such a part is no part of the program's call form, so that a batch with a new text at each step needs no new program.
A constant is unread if the forward, with a value in the constant's place that notes every use, uses none and gives the
same program. Any value of the constant's kind then fits the program's form. A value of another kind, None above all,
does not fit: a forward can tell kinds apart without any use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from typing import Any

from model_factory.program.call_signature import ArgumentSignature, Unreadable, any_of_kind

Place = tuple[str | int, ...]
"""Of a part of a call's arguments: the argument's name, then keys and indices."""

Forms = tuple[tuple[str, ArgumentSignature], ...]


def candidates(forms: Forms, defaults: dict[str, Any], unread: Container[Place]) -> Iterator[Place]:
    """The places of a call form that a forward may leave unread: texts, numbers, objects, and lists.

    A list is one if all of its tensors are ``unread``. A top-level argument with its value of ``defaults`` is none: the
    argument stays the same from call to call.
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
    """The place of each tensor of a call form, and its name among the inputs of a program."""
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
    """Return a call form in which these places may be any value of their kind."""
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


def with_noting(arguments: dict[str, Any], places: Container[Place], note: Callable[[Place], None]) -> dict[str, Any]:
    """Return arguments with values at ``places`` that call ``note`` with the place when they are used."""
    return {name: _with_noting(value, (name,), places, note) for name, value in arguments.items()}


def _with_noting(value: Any, place: Place, places: Container[Place], note: Callable[[Place], None]) -> Any:
    if place in places:
        # Of a class of another argument nothing can be read at all; the recording refuses a use.
        return value if type(value) is Unreadable else Noting(value, functools.partial(note, place))
    if type(value) is dict:
        return {key: _with_noting(item, (*place, key), places, note) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_with_noting(item, (*place, index), places, note) for index, item in enumerate(value))
    return value


class Noting:
    """In the place of a constant: notes each use, and goes on with the constant.

    The class is none of Python's own, so that C code cannot read the constant past the methods here: such code asks for
    the number, the length or the class, or fails.
    """

    def __init__(self, value: Any, note: Callable[[], None]) -> None:
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_note", note)

    def __getattribute__(self, name: str) -> Any:
        value = plain(self)
        return value.__class__ if name == "__class__" else getattr(value, name)


def plain(noting: Noting) -> Any:
    """Note a use, and return the constant."""
    object.__getattribute__(noting, "_note")()
    return object.__getattribute__(noting, "_value")


def _method(name: str) -> Callable[..., Any]:
    def call(self: Noting, *args: Any, **kwargs: Any) -> Any:
        others = [plain(arg) if type(arg) is Noting else arg for arg in args]
        return getattr(plain(self), name)(*others, **kwargs)

    return call


_KINDS = (int, float, str, list, tuple)
_NOT_METHODS = frozenset(
    "__class__ __new__ __init__ __getattribute__ __init_subclass__ __subclasshook__ __del__ __doc__ __dict__ "
    "__setattr__ __delattr__ __class_getitem__".split()
)
for _name in {name for kind in _KINDS for name in dir(kind) if name.startswith("__")} - _NOT_METHODS:
    setattr(Noting, _name, _method(_name))
