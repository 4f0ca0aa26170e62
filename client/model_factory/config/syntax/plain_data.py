"""Plain Python data (dicts, lists, strings, numbers, booleans, None) to a tree of nodes, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_factory.config.bounds import MAX_KEY_CHARS, MAX_NESTING
from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder, make_scalar
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, Place
from model_factory.config.syntax.trainer_values import plain_form
from model_factory.errors import ConfigError
from model_factory.wording import quoted


def from_plain(value: object, place: Place) -> Node:
    """Return plain data as a tree, with the same place for every value; tuples become lists.

    Values of a trainer's libraries become plain data first; see :func:`plain_form`.

    Raises ConfigError for other types, for keys other than strings, for a container inside itself, and for
    data over the bounds.

    >>> to_plain(from_plain({"sizes": (1, 2)}, Place(file="<config>")))
    {'sizes': [1, 2]}
    """
    return _Conversion(place).node(value, ())


def to_plain(node: Node) -> Any:
    """Return a tree as plain data; every container is a new object."""
    if isinstance(node, MapNode):
        return {key: to_plain(value) for key, value in node.entries.items()}
    if isinstance(node, ListNode):
        return [to_plain(item) for item in node.items]
    return node.value


class _Conversion:
    """One conversion; a repeated container is converted once."""

    def __init__(self, place: Place) -> None:
        self._place = place
        # The container is kept beside its node: an id is only unique among living objects.
        self._done: dict[int, tuple[object, Node]] = {}
        self._open: set[int] = set()

    def node(self, given: object, path: ConfigPath) -> Node:
        if id(given) in self._done:
            return self._done[id(given)][1]
        if id(given) in self._open:
            raise self._error("the container contains itself", path)
        value = plain_form(given, self._place, path)
        if not isinstance(value, Mapping | list | tuple):
            return make_scalar(value, self._place, path)
        if len(path) >= MAX_NESTING:
            raise self._error(f"the config is too large: mappings and lists nested deeper than {MAX_NESTING}", path)
        self._open.add(id(given))
        node = self._mapping(value, path) if isinstance(value, Mapping) else self._list(value, path)
        self._open.remove(id(given))
        self._done[id(given)] = (given, node)
        return node

    def _mapping(self, value: Mapping[object, object], path: ConfigPath) -> MapNode:
        builder = MapBuilder(self._place, path)
        for key, item in dict(value).items():
            if type(key) is not str:
                raise self._error(f"every mapping key must be a string, found {quoted(key)}", path)
            builder.add(key, self.node(item, (*path, key[:MAX_KEY_CHARS])))
        return builder.build()

    def _list(self, value: list[object] | tuple[object, ...], path: ConfigPath) -> ListNode:
        builder = ListBuilder(self._place, path)
        for index, item in enumerate(value):
            builder.add(self.node(item, (*path, index)))
        return builder.build()

    def _error(self, reason: str, path: ConfigPath) -> ConfigError:
        return ConfigError(reason, path=path, place=str(self._place))
