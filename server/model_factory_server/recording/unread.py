"""Which parts of a call's arguments a forward does not read: texts, counters, an option without effect.

Such a part is no part of the program's call form, so that a batch with a new text at each step needs no new program.
A constant is unread if the forward runs with another one in the constant's place that notes every use, is not used, and
gives the same program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from typing import Any

from model_factory.graph.call_form import ANY, Form

Place = tuple[str | int, ...]
"""Of a part of a call's arguments: the argument's name, then keys and indices."""

Forms = tuple[tuple[str, Form], ...]

_NOT_NOTED = frozenset("__new__ __init__ __getattribute__ __class__ __init_subclass__ __subclasshook__ __del__".split())


def candidates(forms: Forms, defaults: dict[str, Any]) -> Iterator[Place]:
    """The places of a call form that a forward may leave unread: texts, numbers, and lists and objects without tensors.

    A top-level argument that has the ``defaults``' value is none: it stays what it is from call to call.
    """
    for name, form in forms:
        if not (form[0] == "const" and name in defaults and defaults[name] == form[2]):
            yield from _candidates(form, (name,))


def _candidates(form: Form, place: Place) -> Iterator[Place]:
    match form[0]:
        case "const":
            if type(form[2]) in {int, float, str}:
                yield place
        case "nan" | "object":
            yield place
        case "dict":
            for key, item in form[1]:
                yield from _candidates(item, (*place, key))
        case "list" | "tuple":
            if not _has_tensor(form):
                yield place
            else:
                for index, item in enumerate(form[1]):
                    yield from _candidates(item, (*place, index))


def _has_tensor(form: Form) -> bool:
    match form[0]:
        case "list" | "tuple":
            return any(map(_has_tensor, form[1]))
        case "dict":
            return any(_has_tensor(item) for _, item in form[1])
    return bool(form[0] == "tensor")


def tensor_places(forms: Forms) -> Iterator[tuple[Place, str]]:
    """The place of each tensor of a call form, and its name among the inputs of a program."""
    pending: list[tuple[Place, Form]] = [((name,), form) for name, form in forms]
    while pending:
        place, form = pending.pop()
        if form[0] == "tensor":
            yield place, ".".join(map(str, place))
        elif form[0] in {"dict", "list", "tuple"}:
            entries = form[1] if form[0] == "dict" else enumerate(form[1])
            pending += [((*place, key), item) for key, item in entries]


def without(forms: Forms, places: Container[Place]) -> Forms:
    """Return a call form in which these places may be anything."""
    return tuple((name, _without(form, (name,), places)) for name, form in forms)


def _without(form: Form, place: Place, places: Container[Place]) -> Form:
    if place in places:
        return ANY
    match form[0]:
        case "dict":
            return ("dict", tuple((key, _without(item, (*place, key), places)) for key, item in form[1]))
        case "list" | "tuple":
            return (form[0], tuple(_without(item, (*place, index), places) for index, item in enumerate(form[1])))
    return form


def with_noting(arguments: dict[str, Any], places: Container[Place], note: Callable[[Place], None]) -> dict[str, Any]:
    """Return arguments with other constants at ``places``, which call ``note`` with the place when they are used."""
    return {name: _with_noting(value, (name,), places, note) for name, value in arguments.items()}


def _with_noting(value: Any, place: Place, places: Container[Place], note: Callable[[Place], None]) -> Any:
    if place in places:
        return _noting(value, functools.partial(note, place))
    if type(value) is dict:
        return {key: _with_noting(item, (*place, key), places, note) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_with_noting(item, (*place, index), places, note) for index, item in enumerate(value))
    return value


def _noting(value: Any, note: Callable[[], None]) -> Any:
    """Another value of the same kind that calls ``note`` when Python code uses it."""
    kind = type(value)
    if kind in _CLASSES:
        other = _CLASSES[kind](_other(value))
        other._note = note  # noqa: SLF001  its own class
        return other
    return value  # an object that no forward can read


def _other(value: Any) -> Any:
    if isinstance(value, str):
        return f"{value}~"
    if isinstance(value, list | tuple):
        return [*value, *value[:1], "~"]
    return value + 1


class Noting:
    """Mixed into the classes of values that note their use."""

    _note: Callable[[], None]

    def plain(self) -> Any:
        """Note a use, and return the value in its own class."""
        self._note()
        base = type(self).__mro__[2]
        return base(self)


def _class_of(base: type) -> type:
    def noted(name: str) -> Callable[..., Any]:
        method = getattr(base, name)

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            note = self.__dict__.get("_note")
            if note is not None:
                note()
            return method(self, *args, **kwargs)

        return call

    names = [name for name in dir(base) if name not in _NOT_NOTED and callable(getattr(base, name))]
    return type(f"Noting{base.__name__.title()}", (Noting, base), {name: noted(name) for name in names})


_CLASSES: dict[type, type] = {base: _class_of(base) for base in (int, float, str, list, tuple)}
