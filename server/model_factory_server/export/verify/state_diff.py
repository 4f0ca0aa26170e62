"""Differences of a module's attributes, and of containers in attributes, before and after a call."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from model_factory.describe.assignments import plain_containers

State = list[tuple[str, Any, Any]]
"""For each module and container: a format for names of entries, the table of entries, and a copy of the table."""

_ABSENT = object()


def state_of(module: nn.Module, *, attributes: bool = True) -> State:
    """Copy tables of containers, and of attributes and buffers unless told otherwise, for :func:`changed`."""
    tables = [(f"{_literal(path)}[{{!r}}]", container) for path, container in plain_containers(module)]
    if attributes:
        of_modules = [
            (f"{_literal(path)}.{{}}".removeprefix("."), table)
            for path, item in module.named_modules()
            for table in (item.__dict__, item._buffers)  # noqa: SLF001
        ]
        tables = of_modules + tables
    return [(name, table, table.copy()) for name, table in tables]


def changed(state: State) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, old value and new value of each attribute or entry of a container that has changed.

    Example:
        >>> layer = nn.Dropout(0.5)
        >>> state = state_of(layer)
        >>> layer.p = 0.1
        >>> list(changed(state))
        [('p', 0.5, 0.1)]
    """
    for name, table, before in state:
        if len(table) == len(before) and all(map(operator.is_, _values(table), _values(before))):
            continue
        old, new = _entries(before), _entries(table)
        for key in [*new, *(key for key in old if key not in new)]:
            one, other = old.get(key, _ABSENT), new.get(key, _ABSENT)
            numbers = type(one) is type(other) and type(one) in {bool, int, float}
            if one is not other and not (numbers and one == other):
                yield name.format(key), one, other


def contents_of(module: nn.Module) -> dict[str, Any]:
    """The identities of a module's attributes, and of entries of containers, by path.

    Example:
        >>> class Layer(nn.Module):
        ...     pass
        >>> layer = Layer()
        >>> layer.cache = {}
        >>> before = contents_of(layer)
        >>> layer.cache = {}
        >>> contents_of(layer) == before
        True
    """
    containers = {id(item): path for path, item in plain_containers(module)}
    found: dict[str, Any] = {
        f"{path}.{name}": id(value)
        for path, item in module.named_modules()
        for name, value in item.__dict__.items()
        if id(value) not in containers
    }
    for path, container in plain_containers(module):
        entries = _entries(container).items()
        found[path] = [(key, id(value)) for key, value in entries if id(value) not in containers]
    return found


def _values(table: Any) -> Iterable[Any]:
    return itertools.chain.from_iterable(table.items()) if isinstance(table, dict) else table


def _entries(table: Any) -> dict[Any, Any]:
    return dict(table) if isinstance(table, dict) else dict(enumerate(table))


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
