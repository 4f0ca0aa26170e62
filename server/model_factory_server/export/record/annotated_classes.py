"""Classes of the model's code for the arguments of a trainer's call, which come without a class.

A trainer has no class of the model. The trainer passes a dataclass or a named tuple of its own with the same fields, or
a result of another rebuilt module. The annotation of the parameter names the class that the forward expects.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from model_factory.program.arguments.kinds import take_apart


def with_annotated_classes(forward: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with records and named tuples of the annotated classes that have the same fields.

    Example:
        >>> from dataclasses import dataclass
        >>> from types import SimpleNamespace
        >>> @dataclass
        ... class Batch:
        ...     obs: int
        >>> def forward(batch: Batch): ...
        >>> forward.__annotations__ = {"batch": Batch}
        >>> with_annotated_classes(forward, {"batch": SimpleNamespace(obs=1)})
        {'batch': Batch(obs=1)}
    """
    hints = _hints(forward)
    return {name: _in_class(value, hints.get(name)) for name, value in arguments.items()}


def _hints(owner: Any) -> dict[str, Any]:
    with suppress(Exception):  # an annotation may name anything, or nothing that exists
        return typing.get_type_hints(owner)
    return {}


def _in_class(value: Any, hint: Any) -> Any:
    parts = take_apart(value)
    if parts is None or parts.kind not in {"dataclass", "record", "named_tuple"}:
        return value
    names = [name for name, _ in parts.entries]
    for cls in _classes(hint):
        if sorted(getattr(cls, "__dataclass_fields__", getattr(cls, "_fields", ()))) == sorted(names):
            hints = _hints(cls)
            entries = [(name, _in_class(item, hints.get(name))) for name, item in parts.entries]
            return _instance(cls, dict(entries))
    return value


def _instance(cls: type, entries: dict[str, Any]) -> Any:
    if issubclass(cls, tuple):
        return cls._make([entries[name] for name in cls._fields])  # type: ignore[attr-defined]
    if issubclass(cls, Mapping):
        return cls(**entries)
    instance = object.__new__(cls)  # without __post_init__, which may count or check
    for name, item in entries.items():
        object.__setattr__(instance, name, item)  # also of a frozen class
    return instance


def _classes(hint: Any) -> Iterator[type]:
    """Yield the classes of an annotation: of ``Batch``, ``Batch | None``, ``Optional[Batch]``."""
    if isinstance(hint, type):
        yield hint
    else:
        for item in typing.get_args(hint):
            yield from _classes(item)
