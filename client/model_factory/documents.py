"""Canonical JSON, the encoding of descriptors, programs and manifests.

Keys are sorted; no white space, UTF-8, no duplicate keys, finite numbers only. Equal documents have equal bytes, so the
digest of the bytes is an identity.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from model_factory.errors import FormatError
from model_factory.limits import MAX_DOCUMENT_BYTES, MAX_NAME_CHARS, MAX_NUMBER_CHARS
from model_factory.wording import is_printable, quoted

K = TypeVar("K")
V = TypeVar("V")

FORMAT = 5
"""Version of the descriptor, programs and manifest documents; part of every build key."""

SOURCE_FORMAT = 1
"""Version of bundles and lock files. Separate from ``FORMAT``, because trainers pin digests of bundles."""


BUILD_LOCK_FORMAT = 1
"""Version of build locks. Separate from ``FORMAT``, because trainers keep the files."""

JSON_STRING = r'"(?:[^"\\]|\\.)*+"?' if sys.version_info >= (3, 11) else r'"[^"\\]*(?:\\.[^"\\]*)*"?'
"""Pattern of a string, with ``re.DOTALL``. The closing quote is optional: an unclosed string is one token, not one try
per character. Python 3.10 has no possessive repetition; there a match takes 70 bytes of memory for each escape."""


def encode_document(document: Any) -> bytes:
    """Return the canonical bytes of plain data.

    >>> encode_document({"b": 1, "a": [True]})
    b'{"a":[true],"b":1}'
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def decode_document(data: bytes, what: str) -> Any:
    """Parse a document from an untrusted peer; error messages call the document ``what``.

    Raises:
        FormatError: the document is too large, nested too deeply for the parser, or not JSON.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{what} has {len(data)} bytes; at most {MAX_DOCUMENT_BYTES} are allowed")
    try:
        return parse_json(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not a JSON document: {error}") from None


def parse_json(data: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN, no infinite float, no number of over 200 characters.

    ``object_hook`` can replace each object, innermost first.

    Raises:
        ValueError: the text is not JSON, or breaks a rule.
        RecursionError: arrays and objects are nested too deeply for the parser.

    Example:
        >>> parse_json('{"size": 3}')
        {'size': 3}
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"Duplicate mapping key {quoted(twice)}")
        return result if object_hook is None else object_hook(result)

    return json.loads(
        data, object_pairs_hook=unique, parse_constant=_no_constant, parse_int=_bounded_int, parse_float=_finite
    )


def expect_type(data: Any, *types: type) -> Any:
    """Return ``data`` if its type is exactly one of ``types``; a subclass is refused.

    >>> expect_type(3, int, float)
    3

    Raises:
        FormatError: the value has another type.
    """
    if type(data) not in types:
        raise FormatError(f"expected {' or '.join(item.__name__ for item in types)}, got {type(data).__name__}")
    return data


def expect_str(data: Any) -> str:
    """Return ``data`` if it is a string; see :func:`expect_type`."""
    return expect_type(data, str)  # type: ignore[no-any-return]


def expect_name(data: Any) -> str:
    r"""Return ``data`` if it is a name that a person can read: of a module, a class, a tensor or an argument.

    Torch shows the names of modules in ``repr()`` unescaped.

    >>> expect_name("graph_modules.encoder")
    'graph_modules.encoder'

    Raises:
        FormatError: the value is not a string, is too long, or has invisible characters.
    """
    name = expect_str(data)
    if len(name) > MAX_NAME_CHARS or not is_printable(name):
        raise FormatError(f"{quoted(name)} is not a name of at most {MAX_NAME_CHARS} visible characters")
    return name


def mapping(pairs: Iterable[tuple[K, V]], what: str) -> dict[K, V]:
    """Build a mapping from pairs; error messages call the keys ``what``.

    >>> mapping([("a", 1), ("b", 2)], "a name")
    {'a': 1, 'b': 2}

    Raises:
        FormatError: a key is given twice.
    """
    entries = list(pairs)
    found = dict(entries)
    if len(found) != len(entries):
        raise FormatError(f"{what} is given twice")
    return found


def named_float(data: Any) -> float:
    """Read ``nan``, ``inf`` or ``-inf``, floats without a JSON number.

    >>> named_float("-inf")
    -inf

    Raises:
        FormatError: the value is another text.
    """
    if type(data) is not str or data not in {"nan", "inf", "-inf"}:
        raise FormatError(f"{data!r} is not nan, inf or -inf")
    return float(data)


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARS:
        raise ValueError(f"a number of more than {MAX_NUMBER_CHARS} characters")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > MAX_NUMBER_CHARS:
        raise ValueError(f"a number of more than {MAX_NUMBER_CHARS} characters")
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is too large for a float")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
