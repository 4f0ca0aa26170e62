"""The located tree: every value of a config together with the place it was written at.

Nodes are immutable, so one node may stand at many places of a tree: that is how aliases, templates and
references are copied. Each node knows its extent with such copies counted. ``builders`` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from model_factory.errors import ConfigError
from model_factory.wording import quoted

ConfigPath: TypeAlias = tuple[str | int, ...]
ScalarValue: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value was written."""

    file: str
    """The file as its user named it, or a word in angle brackets for what is not a file."""
    line: int | None = None
    """Line, from 1; None where there are no lines."""
    column: int | None = None
    """Column in characters, from 1."""

    @classmethod
    def after(cls, before: str, file: str) -> Place:
        """Where a file goes on after the text ``before``."""
        return cls(file=file, line=before.count("\n") + 1, column=len(before) - before.rfind("\n"))

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much a node takes once every copy is written out."""

    nodes: int
    """Values, containers included."""
    depth: int
    """Containers inside each other; 0 for a scalar."""
    text_bytes: int
    """UTF-8 bytes of keys and strings."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scalar:
    """A null, boolean, number or string."""

    value: ScalarValue
    """The value, of exactly one of these types."""
    place: Place
    """Where it was written."""
    extent: Extent
    """Its size."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ListNode:
    """A list."""

    items: tuple[Node, ...]
    """The items in order."""
    place: Place
    """Where the list starts."""
    extent: Extent
    """Its size, items included."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapNode:
    """A mapping."""

    entries: Mapping[str, Node]
    """The values by key, in written order."""
    place: Place
    """Where the mapping starts."""
    extent: Extent
    """Its size, keys and values included."""


Node: TypeAlias = Scalar | ListNode | MapNode


def error_at(node: Node, path: ConfigPath, reason: str) -> ConfigError:
    """Return the error that says ``reason`` about the node at ``path``."""
    return ConfigError(reason, path=path, place=str(node.place))


def moved(node: Node, place: Place) -> Node:
    """Return the node as if it were written at ``place``; what is inside it keeps its places."""
    return replace(node, place=place)


def child_of(node: Node, part: str | int) -> Node | None:
    """Return what a mapping holds under a key or a list at an index, or None."""
    if isinstance(node, MapNode) and isinstance(part, str):
        return node.entries.get(part)
    if isinstance(node, ListNode) and isinstance(part, int) and 0 <= part < len(node.items):
        return node.items[part]
    return None


def nearest_node(root: Node, path: ConfigPath) -> Node:
    """Return the node at ``path``, or the deepest one on the way to it."""
    node = root
    for part in path:
        child = child_of(node, part)
        if child is None:
            break
        node = child
    return node


def lower(node: Node) -> Any:
    """Return the node as plain data, every container a new object."""
    if isinstance(node, MapNode):
        return {key: lower(value) for key, value in node.entries.items()}
    if isinstance(node, ListNode):
        return [lower(item) for item in node.items]
    return node.value


def found(node: Node) -> str:
    """Say what a node is, for messages that end in ``found ...``."""
    if isinstance(node, MapNode):
        return "a mapping"
    if isinstance(node, ListNode):
        return f"a list of {len(node.items)}" if node.items else "an empty list"
    if isinstance(node.value, str):
        return f"the string {quoted(node.value)}"
    if node.value is None or isinstance(node.value, bool):
        return {None: "null", True: "true", False: "false"}[node.value]
    return f"the number {node.value!r}"
