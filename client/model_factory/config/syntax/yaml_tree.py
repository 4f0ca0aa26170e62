"""YAML text -> located tree.

PyYAML parses and composes, for its marks say where each value stands; its constructors, which build Python
objects, are used for numbers, booleans and null alone. What YAML 1.1 reads as a date stays the text it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Protocol

import yaml
from yaml.constructor import SafeConstructor
from yaml.reader import Reader

from model_factory.config.bounds import MAX_NESTING
from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder, make_scalar
from model_factory.config.syntax.nodes import ListNode, MapNode, Node, Place, Scalar, error_at, found
from model_factory.errors import ConfigError
from model_factory.limits import MAX_NUMBER_CHARS
from model_factory.wording import quoted

# The C loader gives the same nodes and marks, some ten times faster.
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


class _Mark(Protocol):
    """Where PyYAML saw something; the C parser has a class of its own for it."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


@lru_cache(_TEXTS_KEPT)  # the components of a build share the files of their defaults, and nodes are immutable
def parse_yaml(text: str, file: str) -> MapNode:
    """Return the one document in ``text``, whose root must be a mapping.

    Raises ConfigError for what is not YAML, and for what a config may not hold: other keys than strings, a key
    given twice, tags beyond plain data, an alias inside its own anchor, more than one document.
    """
    try:
        _check_shape(text, file)
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        hint = _hint(text, error.problem_mark)
        raise ConfigError(f"not valid YAML: {reason}{hint}", place=_mark_text(error.problem_mark, file)) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets chr() fail on a bad escape
        raise ConfigError(f"not valid YAML: {error}", place=file) from None
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == _PREFIX + "null"):
        raise ConfigError("the document is empty; a config is a mapping with 'schema_version' and 'model'", place=file)
    tree = _Converter(file).node(root)
    if not isinstance(tree, MapNode):
        raise error_at(tree, (), f"the root must be a mapping, found {found(tree)}")
    return tree


def _hint(text: str, mark: _Mark | None) -> str:
    """What stands where YAML found something wrong, and that a reference there may need quotes."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return ""
    rest = lines[mark.line][mark.column :].strip()
    shown = f", at {quoted(rest)}" if rest else ""
    return shown + ('. Inside {...} and [...] a reference needs quotes: "${...}"' if "${" in lines[mark.line] else "")


def _check_shape(text: str, file: str) -> None:
    """Check what must be known before the document is composed, from the stream of parser events."""
    unprintable = Reader.NON_PRINTABLE.search(text)
    if unprintable:
        place = Place.after(text[: unprintable.start()], file)
        raise ConfigError(f"not valid YAML: the character {unprintable.group()!r} is not allowed", place=str(place))
    documents = depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError("more than one document in the file", place=_mark_text(event.start_mark, file))
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_NESTING:
                reason = f"the config is too large: mappings and lists nested deeper than {MAX_NESTING}"
                raise ConfigError(reason, place=_mark_text(event.start_mark, file))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Converter:
    """Turns composed nodes into located ones; an anchor's node is converted once and shared by its aliases."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._done: dict[yaml.Node, Node] = {}
        self._open: set[yaml.Node] = set()

    def node(self, node: yaml.Node) -> Node:
        if node not in self._done:
            self._done[node] = self._converted(node)
        return self._done[node]

    def _mapping(self, node: yaml.MappingNode) -> MapNode:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        merge_seen = False
        for key_node, value_node in node.value:
            is_merge = key_node.tag == _MERGE
            key = self._key(key_node)
            if merge_seen if is_merge else key in own:
                raise self._error(key_node, f"Duplicate mapping key {quoted(key)}")
            if is_merge:
                merge_seen = True
                merged = dict(self._merged(value_node))
            else:
                own[key] = self.node(value_node)
        builder = MapBuilder(self._place(node))
        for key, value in {**merged, **own}.items():
            builder.add(key, value)
        return builder.build()

    def _converted(self, node: yaml.Node) -> Node:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node in self._open:
            raise self._error(node, "an alias stands inside its own anchor, so the value would hold itself")
        self._open.add(node)
        converted = self._collection(node)
        self._open.remove(node)
        return converted

    def _collection(self, node: yaml.Node) -> MapNode | ListNode:
        if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
            builder = ListBuilder(self._place(node))
            for item in node.value:
                builder.add(self.node(item))
            return builder.build()
        raise self._bad_tag(node)

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        if node.tag in _TEXT_TAGS:
            return make_scalar(node.value, self._place(node))
        if node.tag not in _CONSTRUCT:
            raise self._bad_tag(node)
        if len(node.value) > MAX_NUMBER_CHARS:
            raise self._error(node, f"a number of more than {MAX_NUMBER_CHARS} characters")
        try:
            value = _CONSTRUCT[node.tag](node)
        except (ValueError, KeyError, IndexError, OverflowError):
            name = node.tag.removeprefix(_PREFIX)
            raise self._error(node, f"{quoted(node.value)} is not a YAML {name}") from None
        return make_scalar(value, self._place(node))

    def _key(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag in _TEXT_TAGS:
            return str(node.value)
        if isinstance(node, yaml.ScalarNode):
            kind = node.tag.removeprefix(_PREFIX)
            reason = f"every mapping key must be a string; YAML reads {quoted(node.value)} as {kind}, so quote it"
        else:
            reason = "every mapping key must be a string, found a mapping or a list"
        raise self._error(node, reason)

    def _merged(self, node: yaml.Node) -> Iterator[tuple[str, Node]]:
        """Yield what ``<<`` brings in, later pairs to win: the first mapping of a list comes last."""
        sources = reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            converted = self.node(source)
            if not isinstance(converted, MapNode):
                raise self._error(source, "'<<' takes a mapping or a list of mappings")
            yield from converted.entries.items()

    def _bad_tag(self, node: yaml.Node) -> ConfigError:
        tag = node.tag.replace(_PREFIX, "!!")
        return self._error(node, f"the tag {quoted(tag)} is not allowed here; a config holds plain data only")

    def _error(self, node: yaml.Node, reason: str) -> ConfigError:
        return ConfigError(reason, place=str(self._place(node)))

    def _place(self, node: yaml.Node) -> Place:
        return Place(file=self._file, line=node.start_mark.line + 1, column=node.start_mark.column + 1)


def _mark_text(mark: _Mark | None, file: str) -> str:
    return file if mark is None else str(Place(file=file, line=mark.line + 1, column=mark.column + 1))
