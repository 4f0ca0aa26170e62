"""Model files of earlier formats: functions that rewrite their documents, one version at a time.

Whoever raises ``FORMAT`` or ``FILE_FORMAT`` adds the function from the version before. A function gets the parsed
document of an untrusted file before any other check, and returns a document of the next version; the caller sets the
version number. For a malformed document, a function may raise ``KeyError``, ``TypeError``, ``ValueError`` and the like.
The decoders check the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from model_factory.documents import decode_document, encode_document, expect_type
from model_factory.errors import FormatError

Rewrite = Callable[[dict[str, Any]], dict[str, Any]]
"""From a document of a version to the document of the next version."""


class DocumentRewrites(NamedTuple):
    """The functions of one version of ``FORMAT``."""

    descriptor: Rewrite
    """For the module tree."""
    programs: Rewrite
    """For the recorded programs."""


DOCUMENTS: Mapping[int, DocumentRewrites] = {}
"""From each version of ``FORMAT`` to the next; the first version with model files is 5."""

INDEX: Mapping[int, Rewrite] = {}
"""From each version of ``FILE_FORMAT`` to the next; the first version is 1."""


def is_readable(known: Mapping[int, object], version: int, current: int) -> bool:
    """Whether functions lead from a version to the current one.

    Example:
        >>> is_readable({4: None, 5: None}, 4, current=6), is_readable({4: None, 5: None}, 3, current=6)
        (True, False)
    """
    return version <= current and all(item in known for item in range(version, current))


def rewritten(document: Any, rewrites: Mapping[int, Rewrite], key: str, current: int) -> Any:
    """Return a document in the current version; ``key`` is the entry with the document's version.

    Raises:
        FormatError: the document is malformed.

    Example:
        >>> rewritten({"format": 1, "old": 3}, {1: lambda given: {"new": given["old"]}}, "format", current=2)
        {'new': 3, 'format': 2}
    """
    try:
        while (version := expect_type(document, dict)[key]) < current:
            document = {**rewrites[version](document), key: version + 1}
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise FormatError(f"malformed document of an earlier {key}: {error!r}") from None
    return document


def rewritten_bytes(data: bytes, rewrites: Mapping[int, Rewrite], what: str, current: int) -> bytes:
    """Return the bytes of a document with a ``format`` in the current version; errors call the document ``what``.

    Raises:
        FormatError: the document is malformed or too large.
    """
    return encode_document(rewritten(decode_document(data, what), rewrites, "format", current))
