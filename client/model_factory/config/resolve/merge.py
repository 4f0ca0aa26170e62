"""Deep merge, and the list directives ``{_merge_: MODE, _value_: [...], key: FIELD}``.

A directive waits for a value below: a directive without a list in the files may still meet the list of a template.
``apply_directives`` applies the remaining directives to an empty list. A null below counts as an empty list; any other
value below is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ListNode, MapNode, Node, Scalar
from model_factory.wording import listed, nearest, quoted, suggest_for_missing

MODES = ("replace", "append", "prepend", "keyed")
"""The values of ``_merge_``."""

DIRECTIVE_KEYS = ("_merge_", "_value_", "key")
"""The keys of a list directive; ``key`` belongs to the mode ``keyed`` alone."""

_REQUIRED = ("_merge_", "_value_")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Directive:
    """A list together with the way to merge the list."""

    mode: str
    """One of ``MODES``."""
    value: Cursor
    """The list under ``_value_``."""
    field: str
    """The field with the identity of each item; empty unless the mode is keyed."""


def merge(below: Cursor, above: Cursor) -> MapNode:
    """Merge two mappings deeply; keys of ``below`` keep their positions, new keys follow.

    Raises ConfigError for a malformed directive, with the path of ``above``.
    """
    under, over = below.entries(), above.entries()
    builder = MapBuilder(above.node.place, above.path)
    for key, value in under.items():
        builder.add(key, _merged(over[key].on(value.node), over[key]) if key in over else value.node)
    for key, value in over.items():
        if key not in under:
            builder.add(key, value.node)
    return builder.build()


def apply_directives(tree: MapNode) -> MapNode:
    """Return the tree with every remaining directive applied to an empty list."""
    result = Cursor(tree).rebuilt(_on_empty_list)
    assert isinstance(result, MapNode)  # a mapping is rebuilt as a mapping
    return result


def _merged(below: Cursor, above: Cursor) -> Node:
    """Merge two values with the same path."""
    directive = _directive(above)
    if directive is not None:
        return _applied(directive, _list_below(below, above), above)
    if isinstance(below.node, MapNode) and isinstance(above.node, MapNode) and not _directive(below):
        return merge(below, above)
    return above.node


def _list_below(below: Cursor, above: Cursor) -> Cursor | None:
    """Return the list below the directive ``above``; None for a null.

    Raises ConfigError for any other value.
    """
    base = below.on(_on_empty_list(below)) if _directive(below) else below
    if isinstance(base.node, ListNode):
        return base
    text = base.scalar_value()
    if isinstance(base.node, Scalar) and text is None:
        return None
    reason = f"a list directive needs a list or null below; {base.node.place} has {base.found}"
    if isinstance(text, str) and "${" in text:
        reason += "; list directives act before references are resolved"
    raise above.error(reason)


def _on_empty_list(at: Cursor) -> Node:
    directive = _directive(at)
    if directive is not None:
        return _on_empty_list(at.on(_applied(directive, None, at)))
    return at.rebuilt(_on_empty_list)


def _directive(at: Cursor) -> _Directive | None:
    """Read a directive; None for every other value."""
    if not isinstance(at.node, MapNode) or not at.node.entries.keys() & set(_REQUIRED):
        return None
    entries = at.entries()
    for key in _REQUIRED:
        if key not in entries:
            reason = f"a list directive needs '_merge_' and '_value_', {key!r} is missing"
            raise at.error(reason + suggest_for_missing(key, entries))
    mode = entries["_merge_"].one_of(MODES)
    allowed = DIRECTIVE_KEYS if mode == "keyed" else _REQUIRED
    for key, value in entries.items():
        if key not in allowed:
            reason = f"{quoted(key)} does not belong in a {mode!r} list directive; allowed are {listed(allowed)}"
            raise value.error(reason + nearest(key, allowed))
    if mode == "keyed" and "key" not in entries:
        raise at.error("a 'keyed' list directive needs 'key', the field with the identity of each item")
    # Directives act before interpolation, so a '${...}' here is a string and is refused.
    entries["_value_"].items("items")
    field = entries["key"].text() if mode == "keyed" else ""
    return _Directive(mode=mode, value=entries["_value_"], field=field)


def _applied(directive: _Directive, base: Cursor | None, at: Cursor) -> ListNode:
    above = [item.node for item in directive.value.items("items")]
    below = [] if base is None else [item.node for item in base.items("items")]
    match directive.mode:
        case "append":
            items = below + above
        case "prepend":
            items = above + below
        case "keyed":
            items = _keyed(directive, base)
        case _:
            items = above
    builder = ListBuilder(directive.value.node.place, at.path)
    for item in items:
        builder.add(item)
    return builder.build()


def _keyed(directive: _Directive, base: Cursor | None) -> list[Node]:
    result = {} if base is None else _by_field(base, directive.field)
    for name, item in _by_field(directive.value, directive.field).items():
        # A merged item has its path in the list below.
        result[name] = result[name].on(merge(result[name], result[name].on(item.node))) if name in result else item
    return [item.node for item in result.values()]


def _by_field(items: Cursor, field: str) -> dict[str, Cursor]:
    named: dict[str, Cursor] = {}
    for item in items.items("mappings"):
        entries = item.entries()
        if field not in entries:
            reason = f"an item of a list merged by key has no {quoted(field)}"
            raise item.error(reason + suggest_for_missing(field, entries))
        name = entries[field].text()
        if name in named:
            raise item.error(f"two items of a list merged by key have {field} {quoted(name)}")
        named[name] = item
    return named
