"""Deep merge, and the list directives ``{_merge_: MODE, _value_: [...], key: FIELD}``.

A directive waits until there is something below it: one that a file leaves without a list may still meet the
list of a template. Whatever is left at the end acts on an empty list (``settle``). A null below counts as no list;
any other value below that is no list is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from model_factory.config.syntax.bounded_nodes import ListBuilder, MapBuilder
from model_factory.config.syntax.expect import require_list, require_map, require_one_of, require_text
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, Scalar, error_at, found
from model_factory.wording import listed, nearest, quoted, suggest_for_missing

_MODES = ("replace", "append", "prepend", "keyed")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Directive:
    """A list that says how it merges."""

    mode: str
    """One of ``_MODES``."""
    value: ListNode
    """The list under ``_value_``."""
    field: str
    """The field that identifies items; empty unless the mode is keyed."""


def merge(below: MapNode, above: MapNode, path: ConfigPath = ()) -> MapNode:
    """Merge two mappings deeply; keys of ``below`` keep their positions, new ones follow.

    Raises ConfigError for a malformed directive.
    """
    builder = MapBuilder(above.place, path)
    for key, value in below.entries.items():
        over = above.entries.get(key)
        builder.add(key, value if over is None else _merged(value, over, (*path, key)))
    for key, value in above.entries.items():
        if key not in below.entries:
            builder.add(key, value)
    return builder.build()


def settle(tree: MapNode) -> MapNode:
    """Return the tree with every directive that is left applied to an empty list."""
    builder = MapBuilder(tree.place)
    for key, value in tree.entries.items():
        builder.add(key, _settled(value, (key,)))
    return builder.build()


def _merged(below: Node, above: Node, path: ConfigPath) -> Node:
    directive = _directive(above, path)
    if directive is not None:
        return _applied(directive, _list_below(below, above, path), path)
    if isinstance(below, MapNode) and isinstance(above, MapNode) and not _directive(below, path):
        return merge(below, above, path)
    return above


def _list_below(below: Node, above: Node, path: ConfigPath) -> ListNode | None:
    """Return the list that the directive ``above`` acts on; None for a null.

    Raises ConfigError for any other value.
    """
    base = _settled(below, path) if _directive(below, path) else below
    if isinstance(base, ListNode):
        return base
    if isinstance(base, Scalar) and base.value is None:
        return None
    reason = f"a list directive on a value that is no list: {base.place} has {found(base)}"
    if isinstance(base, Scalar) and isinstance(base.value, str) and "${" in base.value:
        reason += "; list directives act before references are resolved"
    raise error_at(above, path, reason)


def _settled(node: Node, path: ConfigPath) -> Node:
    directive = _directive(node, path)
    if directive is not None:
        return _settled(_applied(directive, None, path), path)
    if isinstance(node, ListNode):
        items = ListBuilder(node.place, path)
        for index, item in enumerate(node.items):
            items.add(_settled(item, (*path, index)))
        return items.build()
    if isinstance(node, MapNode):
        entries = MapBuilder(node.place, path)
        for key, value in node.entries.items():
            entries.add(key, _settled(value, (*path, key)))
        return entries.build()
    return node


def _directive(node: Node, path: ConfigPath) -> _Directive | None:
    """Read a directive; None for what is not meant to be one."""
    if not isinstance(node, MapNode) or not {"_merge_", "_value_"} & node.entries.keys():
        return None
    for key in ("_merge_", "_value_"):
        if key not in node.entries:
            reason = f"a list directive needs '_merge_' and '_value_', {key!r} is missing"
            raise error_at(node, path, reason + suggest_for_missing(key, node.entries))
    mode = require_one_of(node.entries["_merge_"], (*path, "_merge_"), _MODES)
    allowed = ("_merge_", "_value_", "key") if mode == "keyed" else ("_merge_", "_value_")
    for key, value in node.entries.items():
        if key not in allowed:
            reason = f"{quoted(key)} does not belong in a {mode!r} list directive; allowed are {listed(allowed)}"
            raise error_at(value, (*path, key), reason + nearest(key, allowed))
    if mode == "keyed" and "key" not in node.entries:
        raise error_at(node, path, "a 'keyed' list directive needs 'key', the field that identifies items")
    # Directives act before interpolation, so a '${...}' here is a string and is refused as one.
    value = require_list(node.entries["_value_"], (*path, "_value_"), "items")
    field = require_text(node.entries["key"], (*path, "key")) if mode == "keyed" else ""
    return _Directive(mode=mode, value=value, field=field)


def _applied(directive: _Directive, base: ListNode | None, path: ConfigPath) -> ListNode:
    below = base.items if base else ()
    builder = ListBuilder(directive.value.place, path)
    match directive.mode:
        case "append":
            items = below + directive.value.items
        case "prepend":
            items = directive.value.items + below
        case "keyed":
            items = _keyed(directive, base, path)
        case _:
            items = directive.value.items
    for item in items:
        builder.add(item)
    return builder.build()


def _keyed(directive: _Directive, base: ListNode | None, path: ConfigPath) -> tuple[Node, ...]:
    result = {} if base is None else _by_field(base, directive.field, path)
    positions = {name: index for index, name in enumerate(result)}
    for name, item in _by_field(directive.value, directive.field, (*path, "_value_")).items():
        result[name] = merge(result[name], item, (*path, positions[name])) if name in positions else item
    return tuple(result.values())


def _by_field(items: ListNode, field: str, path: ConfigPath) -> dict[str, MapNode]:
    named: dict[str, MapNode] = {}
    for index, item in enumerate(items.items):
        item_path = (*path, index)
        entries = require_map(item, item_path)
        if field not in entries.entries:
            reason = f"a list merged by the key {quoted(field)} has an item without it"
            raise error_at(item, item_path, reason + suggest_for_missing(field, entries.entries))
        name = require_text(entries.entries[field], (*item_path, field))
        if name in named:
            raise error_at(item, item_path, f"two items of a list merged by key have {field} {quoted(name)}")
        named[name] = entries
    return named
