"""Specs: all checks of ``{_type_: ..., ...}`` without knowledge of the type."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import ListNode, MapNode
from model_factory.config.syntax.plain_data import to_plain
from model_factory.wording import listed, nearest, quoted, suggest_for_missing

RESERVED_KEYS = ("_type_", "_args_", "_kwargs_", "_name_", "_target_", "_methods_")
"""The keys of a spec with a meaning of their own; every other key is a keyword argument."""

_RESERVED_FORM = re.compile(r"_.*_", re.DOTALL)


def is_spec(keys: Container[str]) -> bool:
    """Whether a mapping with these keys builds an object; other mappings are plain data."""
    return "_type_" in keys or "_target_" in keys


def read_module_spec(at: Cursor, *, strict: bool) -> dict[str, Any]:
    """Return the spec of a module as plain data, checked at every depth. Raises ConfigError."""
    if not isinstance(at.node, MapNode):
        raise at.error(f"must be a spec, a mapping with '_type_', found {at.found}")
    if not is_spec(at.node.entries):
        hint = suggest_for_missing("_type_", at.node.entries)
        raise at.error(f"a module's spec needs '_type_' (or '_target_'){hint}")
    _check_spec(at, strict=strict)
    spec: dict[str, Any] = to_plain(at.node)
    return spec


def _check_spec(spec: Cursor, *, strict: bool) -> None:
    entries = spec.entries()
    if strict:
        unknown = [key for key in entries if key.startswith("_") and key not in RESERVED_KEYS]
        _refuse_reserved(entries, unknown, listed(RESERVED_KEYS))
    if "_type_" in entries and "_target_" in entries:
        raise entries["_target_"].error("a spec has '_type_' or '_target_', not both")
    entries["_type_" if "_type_" in entries else "_target_"].text()
    if "_args_" in entries:
        entries["_args_"].items("positional arguments")
    if "_kwargs_" in entries:
        _check_extra_keywords(entries, strict=strict)
    if "_methods_" in entries:
        for name in entries["_methods_"].items("names of methods"):
            name.text()
    for key, value in entries.items():
        if key not in {"_kwargs_", "_name_", "_methods_"}:
            _check_argument(value, strict=strict)


def _check_extra_keywords(spec: dict[str, Cursor], *, strict: bool) -> None:
    for key, value in spec["_kwargs_"].entries().items():
        # Every key in _kwargs_ is a keyword, also a key like _type_.
        if key in spec and not key.startswith("_"):
            raise value.error(f"the keyword {quoted(key)} is given in the spec as well")
        _check_argument(value, strict=strict)


def _check_argument(at: Cursor, *, strict: bool) -> None:
    if isinstance(at.node, ListNode):
        for item in at.items("arguments"):
            _check_argument(item, strict=strict)
    elif isinstance(at.node, MapNode) and is_spec(at.node.entries):
        _check_spec(at, strict=strict)
    elif isinstance(at.node, MapNode):
        entries = at.entries()
        if strict:
            # A plain mapping is data with free keys, but a key like _this_ is a misspelt key of a spec.
            reserved = [key for key in entries if _RESERVED_FORM.fullmatch(key)]
            _refuse_reserved(entries, reserved, "'_type_', for a spec")
        for value in entries.values():
            _check_argument(value, strict=strict)


def _refuse_reserved(entries: dict[str, Cursor], keys: list[str], allowed: str) -> None:
    if keys:
        hint = nearest(keys[0], RESERVED_KEYS)
        raise entries[keys[0]].error(f"Unknown reserved keys {listed(keys)}; allowed here: {allowed}{hint}")
