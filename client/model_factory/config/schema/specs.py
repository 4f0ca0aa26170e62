"""The structure of specs: what can be said about ``{_type_: ..., ...}`` without knowing any type."""

from __future__ import annotations

import re
from collections.abc import Container

from model_factory.config.syntax.expect import require_list, require_map, require_text
from model_factory.config.syntax.nodes import ConfigPath, ListNode, MapNode, Node, error_at, found
from model_factory.wording import listed, nearest, quoted, suggest_for_missing

RESERVED_KEYS = ("_type_", "_args_", "_kwargs_", "_name_", "_target_")
"""The keys of a spec that are not keyword arguments."""

_RESERVED_FORM = re.compile(r"_.*_", re.DOTALL)


def is_spec(keys: Container[str]) -> bool:
    """Say whether a mapping with these keys builds an object, rather than being plain data."""
    return "_type_" in keys or "_target_" in keys


def check_module_spec(node: Node, path: ConfigPath, *, strict: bool) -> MapNode:
    """Return the spec of a module, checked at every depth. Raises ConfigError."""
    if not isinstance(node, MapNode):
        raise error_at(node, path, f"must be a spec, a mapping with '_type_', found {found(node)}")
    if not is_spec(node.entries):
        reason = "a module's spec needs '_type_' (or '_target_')"
        raise error_at(node, path, reason + suggest_for_missing("_type_", node.entries))
    _check_spec(node, path, strict=strict)
    return node


def _check_spec(node: MapNode, path: ConfigPath, *, strict: bool) -> None:
    entries = node.entries
    if strict:
        unknown = [key for key in entries if key.startswith("_") and key not in RESERVED_KEYS]
        _refuse_reserved(node, path, unknown, listed(RESERVED_KEYS))
    if "_type_" in entries and "_target_" in entries:
        raise error_at(entries["_target_"], (*path, "_target_"), "a spec has '_type_' or '_target_', not both")
    kind = "_type_" if "_type_" in entries else "_target_"
    require_text(entries[kind], (*path, kind))
    if "_args_" in entries:
        require_list(entries["_args_"], (*path, "_args_"), "positional arguments")
    if "_kwargs_" in entries:
        _check_extra_keywords(node, path, strict=strict)
    for key, value in entries.items():
        if key not in {"_kwargs_", "_name_"}:
            _check_argument(value, (*path, key), strict=strict)


def _check_extra_keywords(spec: MapNode, path: ConfigPath, *, strict: bool) -> None:
    extra_path = (*path, "_kwargs_")
    for key, value in require_map(spec.entries["_kwargs_"], extra_path).entries.items():
        # Keys in _kwargs_ are keywords whatever they look like, so one named like a reserved key is no clash.
        if key in spec.entries and not key.startswith("_"):
            raise error_at(value, (*extra_path, key), f"the keyword {quoted(key)} is given in the spec as well")
        _check_argument(value, (*extra_path, key), strict=strict)


def _check_argument(node: Node, path: ConfigPath, *, strict: bool) -> None:
    if isinstance(node, ListNode):
        for index, item in enumerate(node.items):
            _check_argument(item, (*path, index), strict=strict)
    elif isinstance(node, MapNode) and is_spec(node.entries):
        _check_spec(node, path, strict=strict)
    elif isinstance(node, MapNode):
        if strict:
            # A plain mapping is data and its keys are free, but a key of this form is a misspelt or stranded spec.
            reserved = [key for key in node.entries if _RESERVED_FORM.fullmatch(key)]
            _refuse_reserved(node, path, reserved, "'_type_', which makes it a spec")
        for key, value in node.entries.items():
            _check_argument(value, (*path, key), strict=strict)


def _refuse_reserved(node: MapNode, path: ConfigPath, keys: list[str], allowed: str) -> None:
    if keys:
        hint = nearest(keys[0], RESERVED_KEYS)
        reason = f"Unknown reserved keys {listed(keys)}; allowed here: {allowed}{hint}"
        raise error_at(node.entries[keys[0]], (*path, keys[0]), reason)
