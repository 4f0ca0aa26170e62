"""The tree of a config: every value with the place (file, line, column) where the user wrote the value.

Nodes are immutable. Aliases, templates and references copy a value by using the same node at several positions of
the tree. The extent of a node counts every copy. ``bounded_nodes`` makes nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

ConfigPath: TypeAlias = tuple[str | int, ...]
ScalarValue: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The position of a value in the text of a config."""

    file: str
    """The file as the user named the file, or a word in angle brackets for a config without a file."""
    line: int | None = None
    """Line, from 1; None for a config without lines."""
    column: int | None = None
    """Column in characters, from 1."""

    @classmethod
    def after(cls, before: str, file: str) -> Place:
        """Return the position in a file after the text ``before``."""
        return cls(file=file, line=before.count("\n") + 1, column=len(before) - before.rfind("\n"))

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The size of a node with every copy written out."""

    nodes: int
    """Values, containers included."""
    depth: int
    """Levels of nested containers; 0 for a scalar."""
    text_bytes: int
    """UTF-8 bytes of keys and strings."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scalar:
    """A null, boolean, number or string."""

    value: ScalarValue
    """The value, of exactly these types."""
    place: Place
    """Position in the text."""
    extent: Extent
    """Size of the value."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ListNode:
    """A list."""

    items: tuple[Node, ...]
    """The items in order."""
    place: Place
    """Start of the list."""
    extent: Extent
    """Size of the list, items included."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapNode:
    """A mapping."""

    entries: Mapping[str, Node]
    """The values by key, in written order."""
    place: Place
    """Start of the mapping."""
    extent: Extent
    """Size of the mapping, keys and values included."""


Node: TypeAlias = Scalar | ListNode | MapNode
