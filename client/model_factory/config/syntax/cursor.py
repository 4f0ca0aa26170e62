"""A node of a config together with its path: returns the expected kind of value, or an error with place and path."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder, make_scalar
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, Scalar, ScalarValue
from model_factory.errors import ConfigError
from model_factory.wording import listed, nearest, quoted, suggest_for_missing

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The names of modules, inputs and values; matched against the whole string."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A node and its path from the root. Methods for a kind of value raise ConfigError for another kind.

    >>> from model_factory.config.syntax.yaml_tree import parse_yaml
    >>> root = Cursor(parse_yaml("model: {layers: [4, x]}", "c.yaml"))
    >>> [layer.path for layer in root.entry("model").entry("layers").items("numbers")]
    [('model', 'layers', 0), ('model', 'layers', 1)]
    >>> str(root.nearest(("model", "layers", 1)).error("must be a number"))
    'c.yaml:1:21: model.layers[1]: must be a number'
    """

    node: Node
    """The value."""
    path: ConfigPath = ()
    """Keys and list indices from the root to the value."""

    @property
    def found(self) -> str:
        """The value in words, for the end of messages: ``found ...``."""
        node = self.node
        if isinstance(node, MapNode):
            return "a mapping"
        if isinstance(node, ListNode):
            return f"a list of {len(node.items)}" if node.items else "an empty list"
        if isinstance(node.value, str):
            return f"the string {quoted(node.value)}"
        if node.value is None or isinstance(node.value, bool):
            return {None: "null", True: "true", False: "false"}[node.value]
        return f"the number {node.value!r}"

    def error(self, reason: str) -> ConfigError:
        """Return the error with this place and path."""
        return ConfigError(reason, path=self.path, place=str(self.node.place))

    def on(self, node: Node) -> Cursor:
        """Return a cursor on another node at the same path."""
        return Cursor(node, self.path)

    def scalar(self, value: object) -> Scalar:
        """Return a new scalar node with this place. Raises ConfigError if the value is not plain or too large."""
        return make_scalar(value, self.node.place, self.path)

    def get(self, part: str | int) -> Cursor | None:
        """Return the value under a key of a mapping or at an index of a list; None if there is no value."""
        child: Node | None = None
        if isinstance(self.node, MapNode) and isinstance(part, str):
            child = self.node.entries.get(part)
        elif isinstance(self.node, ListNode) and isinstance(part, int) and 0 <= part < len(self.node.items):
            child = self.node.items[part]
        return None if child is None else Cursor(child, (*self.path, part))

    def gap(self, key: str) -> Cursor:
        """Return the position of a missing entry: the path of the entry, the place of the mapping."""
        return Cursor(self.node, (*self.path, key))

    def nearest(self, path: ConfigPath) -> Cursor:
        """Return the value at a path below, or the deepest value on the way."""
        here = self
        for part in path:
            child = here.get(part)
            if child is None:
                break
            here = child
        return here

    def entries(self, allowed: Collection[str] | None = None) -> dict[str, Cursor]:
        """Return the values of a mapping by key. Raises ConfigError for a key outside ``allowed``."""
        if not isinstance(self.node, MapNode):
            raise self.error(f"must be a mapping, found {self.found}")
        entries = {key: Cursor(value, (*self.path, key)) for key, value in self.node.entries.items()}
        for key, value in entries.items():
            if allowed is not None and key not in allowed:
                raise value.error(f"Unknown key {quoted(key)}; allowed are {listed(allowed)}{nearest(key, allowed)}")
        return entries

    def entry(self, key: str) -> Cursor:
        """Return the required value under a key of a mapping."""
        entries = self.entries()
        if key not in entries:
            raise self.error(f"'{key}' is required{suggest_for_missing(key, entries)}")
        return entries[key]

    def items(self, of: str, *, empty: bool = True) -> list[Cursor]:
        """Return the items of a list; ``of`` names the items in errors, ``empty`` allows a list without items."""
        if not isinstance(self.node, ListNode) or not (self.node.items or empty):
            raise self.error(f"must be a {'list' if empty else 'non-empty list'} of {of}, found {self.found}")
        return [Cursor(item, (*self.path, index)) for index, item in enumerate(self.node.items)]

    def text(self) -> str:
        """Return a non-empty string."""
        value = self.scalar_value()
        if not isinstance(value, str) or not value:
            raise self.error(f"must be a non-empty string, found {self.found}")
        return value

    def boolean(self) -> bool:
        """Return a boolean."""
        value = self.scalar_value()
        if not isinstance(value, bool):
            raise self.error(f"must be true or false, found {self.found}")
        return value

    def name(self) -> str:
        """Return a name."""
        return self.check_name(self.text())

    def check_name(self, text: str) -> str:
        """Return ``text`` if it is a name; an error has this place and path."""
        if not NAME.fullmatch(text):
            raise self.error(f"{quoted(text)} is not a name; names match ^{NAME.pattern}$")
        return text

    def one_of(self, allowed: Collection[str]) -> str:
        """Return a string from ``allowed``."""
        text = self.text()
        if text not in allowed:
            raise self.error(f"must be one of {listed(allowed)}, found {quoted(text)}{nearest(text, allowed)}")
        return text

    def scalar_value(self) -> ScalarValue:
        """Return the value of a scalar; None for null, a list and a mapping."""
        return self.node.value if isinstance(self.node, Scalar) else None

    def rebuilt(self, change: Callable[[Cursor], Node]) -> Node:
        """Return the node with ``change(child)`` in the place of every child; a scalar is returned unchanged."""
        if isinstance(self.node, MapNode):
            entries = MapBuilder(self.node.place, self.path)
            for key, child in self.entries().items():
                entries.add(key, change(child))
            return entries.build()
        if isinstance(self.node, ListNode):
            items = ListBuilder(self.node.place, self.path)
            for child in self.items("values"):
                items.add(change(child))
            return items.build()
        return self.node
