"""What a forward keeps for its next call, in attributes and the containers there."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from model_factory_server.export.restored_after import plain_containers

State = list[tuple[str, Any, Any]]
"""Of attributes and containers: how to write an entry's name, the table, and a copy of it."""

_ABSENT = object()


def state_of(module: nn.Module) -> State:
    """What a module keeps, to be compared with what it keeps later."""
    attributes = [(f"{_literal(path)}.{{}}".removeprefix("."), item.__dict__) for path, item in module.named_modules()]
    containers = [(f"{_literal(path)}[{{!r}}]", container) for path, container in plain_containers(module)]
    return [(name, table, table.copy()) for name, table in [*attributes, *containers]]


def changed(state: State) -> Iterator[tuple[str, Any, Any]]:
    """The attributes, and what is in their containers, that are something else by now: name, before and now."""
    for name, table, before in state:
        if len(table) == len(before) and all(map(operator.is_, _values(table), _values(before))):
            continue
        old, new = _entries(before), _entries(table)
        for key in [*new, *(key for key in old if key not in new)]:
            one, other = old.get(key, _ABSENT), new.get(key, _ABSENT)
            numbers = type(one) is type(other) and type(one) in {bool, int, float}
            if one is not other and not (numbers and one == other):
                yield name.format(key), one, other


def _values(table: Any) -> Iterable[Any]:
    return itertools.chain.from_iterable(table.items()) if isinstance(table, dict) else table


def _entries(table: Any) -> dict[Any, Any]:
    return dict(table) if isinstance(table, dict) else dict(enumerate(table))


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
