"""What the language asks of a single value: each function returns it or raises ConfigError naming what it found."""

from __future__ import annotations

import re
from collections.abc import Collection

from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, Scalar, error_at, found
from model_factory.wording import listed, nearest, quoted, suggest_for_missing

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What modules, inputs and values are called; matched against the whole string."""


def require_map(node: Node, path: ConfigPath) -> MapNode:
    """Return the node as a mapping."""
    if not isinstance(node, MapNode):
        raise error_at(node, path, f"must be a mapping, found {found(node)}")
    return node


def require_list(node: Node, path: ConfigPath, of: str, *, empty: bool = True) -> ListNode:
    """Return the node as a list; ``of`` says what the list is of, ``empty`` whether it may be empty."""
    if not isinstance(node, ListNode) or not (node.items or empty):
        kind = "list" if empty else "non-empty list"
        raise error_at(node, path, f"must be a {kind} of {of}, found {found(node)}")
    return node


def require_text(node: Node, path: ConfigPath) -> str:
    """Return the node's non-empty string."""
    if not isinstance(node, Scalar) or not isinstance(node.value, str) or not node.value:
        raise error_at(node, path, f"must be a non-empty string, found {found(node)}")
    return node.value


def require_bool(node: Node, path: ConfigPath) -> bool:
    """Return the node's boolean."""
    if not isinstance(node, Scalar) or not isinstance(node.value, bool):
        raise error_at(node, path, f"must be true or false, found {found(node)}")
    return node.value


def require_name(node: Node, path: ConfigPath) -> str:
    """Return the node's string, which must be a name."""
    text = require_text(node, path)
    check_name(text, node, path)
    return text


def check_name(text: str, node: Node, path: ConfigPath) -> None:
    """Refuse what is not a name; ``node`` at ``path`` is what the error points at."""
    if not NAME.fullmatch(text):
        raise error_at(node, path, f"{quoted(text)} is not a name; names match ^{NAME.pattern}$")


def require_one_of(node: Node, path: ConfigPath, allowed: Collection[str]) -> str:
    """Return the node's string, which must be one of ``allowed``."""
    text = require_text(node, path)
    if text not in allowed:
        raise error_at(node, path, f"must be one of {listed(allowed)}, found {quoted(text)}{nearest(text, allowed)}")
    return text


def require_keys(node: MapNode, path: ConfigPath, allowed: Collection[str]) -> None:
    """Refuse any key that is not one of ``allowed``."""
    for key, value in node.entries.items():
        if key not in allowed:
            reason = f"Unknown key {quoted(key)}; allowed are {listed(allowed)}{nearest(key, allowed)}"
            raise error_at(value, (*path, key), reason)


def require_entry(node: MapNode, path: ConfigPath, key: str) -> Node:
    """Return what a mapping must hold under a key."""
    if key not in node.entries:
        raise error_at(node, path, f"'{key}' is required{suggest_for_missing(key, node.entries)}")
    return node.entries[key]
