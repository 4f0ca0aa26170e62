"""YAML text to a tree of nodes, in one pass over the events of PyYAML's parser.

The events give the place of every value. PyYAML's constructors, which build Python objects, read numbers, booleans
and null only. A date stays text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import yaml
from yaml.composer import ComposerError
from yaml.constructor import SafeConstructor
from yaml.reader import Reader
from yaml.resolver import Resolver

from model_factory.config.bounds import MAX_NESTING
from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder, make_scalar
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ListNode, MapNode, Node, Place, Scalar
from model_factory.errors import ConfigError
from model_factory.limits import MAX_NUMBER_CHARS
from model_factory.wording import quoted

# The C parser gives the same events as the Python parser, some ten times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PREFIX = "tag:yaml.org,2002:"
_MERGE = _PREFIX + "merge"
_TEXT_TAGS = frozenset(_PREFIX + name for name in ("str", "timestamp", "value", "merge"))
_TEXTS_KEPT = 64
_CONSTRUCTOR = SafeConstructor()
_CONSTRUCT: dict[str, Callable[[yaml.ScalarNode], object]] = {
    _PREFIX + "null": _CONSTRUCTOR.construct_yaml_null,
    _PREFIX + "bool": _CONSTRUCTOR.construct_yaml_bool,
    _PREFIX + "int": _CONSTRUCTOR.construct_yaml_int,
    _PREFIX + "float": _CONSTRUCTOR.construct_yaml_float,
}
_RESOLVER = Resolver()


class _Mark(Protocol):
    """A position in the text; the C parser and the Python parser have a class each."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


@lru_cache(_TEXTS_KEPT)  # the components of a build share the files of their defaults, and nodes are immutable
def parse_yaml(text: str, file: str) -> MapNode:
    """Return the only document in ``text``, whose root must be a mapping.

    Raises ConfigError for invalid YAML, for keys other than strings, a key given twice, tags beyond plain data,
    an alias inside its own anchor, a second document, and a document over the bounds.

    >>> str(parse_yaml("a: {b: 1}", "c.yaml").entries["a"].place)
    'c.yaml:1:4'
    """
    unprintable = Reader.NON_PRINTABLE.search(text)
    if unprintable:
        place = Place.after(text[: unprintable.start()], file)
        raise ConfigError(f"not valid YAML: the character {unprintable.group()!r} is not allowed", place=str(place))
    try:
        root = _Document(text, file).root()
    except yaml.MarkedYAMLError as error:
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        hint = _hint(text, error.problem_mark)
        raise ConfigError(f"not valid YAML: {reason}{hint}", place=_mark_text(error.problem_mark, file)) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets chr() fail on a bad escape
        raise ConfigError(f"not valid YAML: {error}", place=file) from None
    if root is None or (isinstance(root, Scalar) and root.value is None):
        raise ConfigError("the document is empty; a config is a mapping with 'schema_version' and 'model'", place=file)
    if not isinstance(root, MapNode):
        at = Cursor(root)
        raise at.error(f"the root must be a mapping, found {at.found}")
    return root


def _hint(text: str, mark: _Mark | None) -> str:
    """Return the text at the position of a YAML error, and a remedy if the line has a reference without quotes."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return ""
    rest = lines[mark.line][mark.column :].strip()
    shown = f", at {quoted(rest)}" if rest else ""
    return shown + ('. Inside {...} and [...] a reference needs quotes: "${...}"' if "${" in lines[mark.line] else "")


class _Document:
    """The reading of one text. An alias gives the node of its anchor."""

    def __init__(self, text: str, file: str) -> None:
        self._events = yaml.parse(text, Loader=_LOADER)
        self._file = file
        self._depth = 0
        # The first event of each anchored value, and its node; None while the value is being read.
        self._anchors: dict[str, tuple[Any, Node | None]] = {}

    def root(self) -> Node | None:
        """Return the root of the only document; None if the text has no document."""
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        root = self._node(next(self._events))
        next(self._events)  # the end of the document
        after = next(self._events)
        if isinstance(after, yaml.DocumentStartEvent):
            raise self._error(after, "more than one document in the file")
        return root

    def _node(self, start: Any) -> Node:
        """Return the value that begins with an event."""
        if isinstance(start, yaml.AliasEvent):
            anchored, node = self._anchored(start)
            if node is None:
                raise self._error(anchored, "an alias inside its own anchor: the value would contain itself")
            return node
        self._open_anchor(start)
        node = self._scalar(start) if isinstance(start, yaml.ScalarEvent) else self._collection(start)
        self._close_anchor(start, node)
        return node

    def _anchored(self, alias: Any) -> tuple[Any, Node | None]:
        if alias.anchor not in self._anchors:
            raise ComposerError(None, None, f"found undefined alias {alias.anchor!r}", alias.start_mark)
        return self._anchors[alias.anchor]

    def _open_anchor(self, start: Any) -> None:
        if start.anchor is None:
            return
        if start.anchor in self._anchors:
            context, first = (
                f"found duplicate anchor {start.anchor!r}; first occurrence",
                self._anchors[start.anchor][0],
            )
            raise ComposerError(context, first.start_mark, "second occurrence", start.start_mark)
        self._anchors[start.anchor] = (start, None)

    def _close_anchor(self, start: Any, node: Node) -> None:
        if start.anchor is not None:
            self._anchors[start.anchor] = (start, node)

    def _collection(self, start: Any) -> MapNode | ListNode:
        is_mapping = isinstance(start, yaml.MappingStartEvent)
        if start.tag not in (None, "!", _PREFIX + ("map" if is_mapping else "seq")):
            raise self._bad_tag(start, start.tag)
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._error(start, f"the config is too large: mappings and lists nested deeper than {MAX_NESTING}")
        collection = self._mapping(start) if is_mapping else self._list(start)
        self._depth -= 1
        return collection

    def _list(self, start: Any) -> ListNode:
        builder = ListBuilder(self._place(start))
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            builder.add(self._node(event))
        return builder.build()

    def _mapping(self, start: Any) -> MapNode:
        merged: dict[str, Node] | None = None
        own: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, is_merge = self._key(event)
            if merged is not None if is_merge else key in own:
                raise self._error(event, f"Duplicate mapping key {quoted(key)}")
            value = self._node(next(self._events))
            if is_merge:
                merged = _merged(value)
            else:
                own[key] = value
        builder = MapBuilder(self._place(start))
        for key, value in {**(merged or {}), **own}.items():
            builder.add(key, value)
        return builder.build()

    def _key(self, event: Any) -> tuple[str, bool]:
        """Return a key, and whether the key is ``<<``, which merges mappings."""
        if isinstance(event, yaml.AliasEvent):
            event, _ = self._anchored(event)
        else:
            self._open_anchor(event)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._error(event, "every mapping key must be a string, found a mapping or a list")
        tag = _tag(event)
        if tag not in _TEXT_TAGS:
            kind = tag.removeprefix(_PREFIX)
            reason = f"every mapping key must be a string; YAML reads {quoted(event.value)} as {kind}, so quote it"
            raise self._error(event, reason)
        self._close_anchor(event, self._scalar(event))
        return event.value, tag == _MERGE

    def _scalar(self, event: Any) -> Scalar:
        tag, text, place = _tag(event), event.value, self._place(event)
        if tag in _TEXT_TAGS:
            return make_scalar(text, place)
        if tag not in _CONSTRUCT:
            raise self._bad_tag(event, tag)
        if len(text) > MAX_NUMBER_CHARS:
            raise self._error(event, f"a number of more than {MAX_NUMBER_CHARS} characters")
        try:
            value = _CONSTRUCT[tag](yaml.ScalarNode(tag, text))
        except (ValueError, KeyError, IndexError, OverflowError):
            name = tag.removeprefix(_PREFIX)
            raise self._error(event, f"{quoted(text)} is not a YAML {name}") from None
        return make_scalar(value, place)

    def _bad_tag(self, event: Any, tag: str) -> ConfigError:
        shown = quoted(tag.replace(_PREFIX, "!!"))
        return self._error(event, f"the tag {shown} is not allowed here; a config holds plain data only")

    def _error(self, event: Any, reason: str) -> ConfigError:
        return ConfigError(reason, place=str(self._place(event)))

    def _place(self, event: Any) -> Place:
        return Place(file=self._file, line=event.start_mark.line + 1, column=event.start_mark.column + 1)


def _tag(event: Any) -> str:
    """Return the tag of a scalar: as written, or by the rules of YAML 1.1 for the text."""
    if event.tag not in (None, "!"):
        return str(event.tag)
    return str(_RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit))  # type: ignore[no-untyped-call]


def _merged(value: Node) -> dict[str, Node]:
    """Return the entries of the mappings under ``<<``; of equal keys the first mapping of a list wins."""
    entries: dict[str, Node] = {}
    for source in reversed(value.items) if isinstance(value, ListNode) else [value]:
        if not isinstance(source, MapNode):
            raise Cursor(source).error("'<<' takes a mapping or a list of mappings")
        entries |= source.entries
    return entries


def _mark_text(mark: _Mark | None, file: str) -> str:
    return file if mark is None else str(Place(file=file, line=mark.line + 1, column=mark.column + 1))
