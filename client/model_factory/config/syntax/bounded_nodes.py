"""Makes the nodes of a tree within the bounds.

A builder adds up the extents of its children. A tree over the bounds is therefore refused before any copy is written
out.
"""

from __future__ import annotations

from collections.abc import Collection

from model_factory.config.bounds import MAX_INT_BITS, MAX_KEY_CHARS, MAX_NESTING, MAX_NODES, MAX_TEXT_BYTES
from model_factory.config.syntax.nodes import ConfigPath, Extent, ListNode, MapNode, Node, Place, Scalar
from model_factory.config.syntax.trainer_values import remedy_for
from model_factory.errors import ConfigError


def make_scalar(value: object, place: Place, path: ConfigPath = ()) -> Scalar:
    """Return a scalar node. Raises ConfigError if the value is not plain or too large."""
    if value is not None and type(value) not in (bool, int, float, str):
        reason = (
            f"{type(value).__module__}.{type(value).__qualname__} is not plain data; "
            "allowed are mappings with string keys, lists, tuples, strings, numbers, booleans and None"
            f"{remedy_for(value)}"
        )
        raise ConfigError(reason, path=path, place=str(place))
    if type(value) is int and value.bit_length() > MAX_INT_BITS:
        reason = f"an integer of {value.bit_length()} bits is too large; at most {MAX_INT_BITS} bits are allowed"
        raise ConfigError(reason, path=path, place=str(place))
    size = _text_bytes(value, place, path) if isinstance(value, str) else 0
    return Scalar(value=value, place=place, extent=Extent(nodes=1, depth=0, text_bytes=size))  # type: ignore[arg-type]


class _Builder:
    """Adds up the extent of a container while it is filled; raises ConfigError at the first bound."""

    def __init__(self, place: Place, path: ConfigPath = ()) -> None:
        self._place = place
        self._path = path
        self._nodes = 1
        self._depth = 1
        self._text_bytes = 0

    def _count(self, child: Node, key_bytes: int = 0) -> None:
        self._nodes += child.extent.nodes
        self._depth = max(self._depth, child.extent.depth + 1)
        self._text_bytes += child.extent.text_bytes + key_bytes
        if self._nodes > MAX_NODES:
            raise self._too_large(f"more than {MAX_NODES} values, copies included")
        if self._depth > MAX_NESTING:
            raise self._too_large(f"mappings and lists nested deeper than {MAX_NESTING}")
        if self._text_bytes > MAX_TEXT_BYTES:
            raise self._too_large(f"more than {MAX_TEXT_BYTES} bytes of text, copies included")

    def _too_large(self, found: str) -> ConfigError:
        return ConfigError(f"the config is too large: {found}", path=self._path, place=str(self._place))

    def _extent(self) -> Extent:
        return Extent(nodes=self._nodes, depth=self._depth, text_bytes=self._text_bytes)


class ListBuilder(_Builder):
    """Builds a ListNode item by item."""

    def __init__(self, place: Place, path: ConfigPath = ()) -> None:
        super().__init__(place, path)
        self._items: list[Node] = []

    def add(self, item: Node) -> None:
        """Append an item."""
        self._count(item)
        self._items.append(item)

    def build(self) -> ListNode:
        """Return the finished list."""
        return ListNode(items=tuple(self._items), place=self._place, extent=self._extent())


class MapBuilder(_Builder):
    """Builds a MapNode key by key; no key may be added twice."""

    def __init__(self, place: Place, path: ConfigPath = ()) -> None:
        super().__init__(place, path)
        self._entries: dict[str, Node] = {}

    def add(self, key: str, value: Node) -> None:
        """Add a value under a new key."""
        assert key not in self._entries, key  # our own bug: callers refuse or merge duplicates
        if len(key) > MAX_KEY_CHARS:
            raise self._too_large(f"a key of {len(key)} characters, at most {MAX_KEY_CHARS} are allowed")
        self._count(value, _text_bytes(key, self._place, self._path))
        self._entries[key] = value

    def build(self) -> MapNode:
        """Return the finished mapping."""
        return MapNode(entries=self._entries, place=self._place, extent=self._extent())


def with_keys(tree: MapNode, keys: Collection[str]) -> MapNode:
    """Return a mapping with the entries under ``keys`` alone, in the same order."""
    builder = MapBuilder(tree.place)
    for key, value in tree.entries.items():
        if key in keys:
            builder.add(key, value)
    return builder.build()


def _text_bytes(text: str, place: Place, path: ConfigPath) -> int:
    if len(text) > MAX_TEXT_BYTES:
        reason = f"a text of {len(text)} characters is too long; at most {MAX_TEXT_BYTES} bytes are allowed"
        raise ConfigError(reason, path=path, place=str(place))
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        reason = "the text holds a lone surrogate instead of a character"
        raise ConfigError(reason, path=path, place=str(place)) from None
