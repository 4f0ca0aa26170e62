"""Canonical JSON: the bytes of descriptors, programs and manifests.

Keys sorted, no white space, UTF-8, no duplicate keys, finite numbers only. Equal documents have equal bytes, so a
digest of the bytes is an identity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

from model_factory.errors import FormatError
from model_factory.limits import MAX_DOCUMENT_BYTES

K = TypeVar("K")
V = TypeVar("V")

FORMAT = 2
"""Version of the descriptor, programs and manifest documents; part of every build key."""

SOURCE_FORMAT = 1
"""Version of bundles and of lock files; apart from ``FORMAT``, since trainers pin the digests of bundles."""


def encode_document(document: Any) -> bytes:
    """Return the canonical bytes of plain data."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def decode_document(data: bytes, what: str) -> Any:
    """Parse a document that came from somewhere else; ``what`` names it in errors.

    Raises:
        FormatError: it is too large, nested too deeply for the parser, or not JSON.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{what} has {len(data)} bytes; at most {MAX_DOCUMENT_BYTES} are allowed")
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not a JSON document: {error}") from None


def typed(data: Any, *types: type) -> Any:
    """Return a part of a document that is of exactly one of these types.

    Raises:
        FormatError: it is of another.
    """
    if type(data) not in types:
        raise FormatError(f"expected {' or '.join(item.__name__ for item in types)}, got {type(data).__name__}")
    return data


def text(data: Any) -> str:
    """As :func:`typed`, for text."""
    return typed(data, str)  # type: ignore[no-any-return]


def mapping(pairs: Iterable[tuple[K, V]], what: str) -> dict[K, V]:
    """Return the mapping of what is written as pairs; ``what`` is what their keys are.

    Raises:
        FormatError: one is given twice.
    """
    entries = list(pairs)
    found = dict(entries)
    if len(found) != len(entries):
        raise FormatError(f"{what} is given twice")
    return found


def named_float(data: Any) -> float:
    """Read a float that JSON has no number for by what ``repr`` calls it.

    Raises:
        FormatError: it is not called so.
    """
    if type(data) is not str or data not in {"nan", "inf", "-inf"}:
        raise FormatError(f"{data!r} is not nan, inf or -inf")
    return float(data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large for a float")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
