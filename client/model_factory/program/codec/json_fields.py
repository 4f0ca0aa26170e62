"""Checks for parts of a JSON document. Each function raises ``FormatError`` for other data."""

from __future__ import annotations

from typing import Any, TypeAlias

from model_factory.documents import expect_type
from model_factory.errors import FormatError

Json: TypeAlias = Any


def tagged(data: Json) -> tuple[str, Json]:
    """Return the key and the value of a mapping with one key."""
    if not isinstance(data, dict) or len(data) != 1:
        raise FormatError("a value must be a scalar, a list or a mapping with one key")
    return next(iter(data.items()))


def exact_fields(data: Json, *names: str) -> dict[str, Json]:
    """Return a mapping with exactly the keys ``names``."""
    if not isinstance(data, dict) or data.keys() != set(names):
        raise FormatError(f"expected a mapping with exactly the keys {', '.join(names)}")
    return data


def expect_int(data: Json) -> int:
    """Return an integer."""
    return expect_type(data, int)  # type: ignore[no-any-return]


def expect_axis(data: Json) -> int:
    """Return the number of an axis, from 0."""
    axis = expect_int(data)
    if axis < 0:
        raise FormatError(f"{axis} is not an axis; axes are counted from 0")
    return axis


def expect_list(data: Json) -> list[Json]:
    """Return a list."""
    return expect_type(data, list)  # type: ignore[no-any-return]


def expect_items(data: Json, count: int) -> list[Json]:
    """Return a list of ``count`` items."""
    items = expect_list(data)
    if len(items) != count:
        raise FormatError(f"expected {count} items, got {len(items)}")
    return items


def expect_pairs(data: Json) -> list[list[Json]]:
    """Return a list of lists of two items."""
    return [expect_items(entry, 2) for entry in expect_list(data)]


def expect_paths(data: Json) -> list[str]:
    """Return a list of different paths of modules."""
    paths = [expect_type(path, str) for path in expect_list(data)]
    if len(set(paths)) != len(paths):
        raise FormatError("a path of a module is given twice")
    return paths
