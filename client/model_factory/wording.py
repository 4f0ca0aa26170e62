"""Fragments of error messages: quoted values, lists of names, suggestions for misspelled names."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

_SHOWN_CHARS = 60
_SHOWN_NAMES = 20
# The time of difflib grows with the square of the length of names, and an untrusted peer may choose the names.
_COMPARED_NAMES = 1000
_COMPARED_CHARS = 100


def quoted(value: object) -> str:
    """Return the ``repr`` of a value; a text of over 60 characters is shortened.

    >>> quoted("nn.Linear")
    "'nn.Linear'"
    """
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return f"{value[:_SHOWN_CHARS]!r}..."
    return repr(value)


def listed(names: Iterable[str]) -> str:
    """Return quoted names with commas, in the given order; the word ``none`` for an empty list.

    >>> listed(["model", "seed"])
    "'model', 'seed'"
    """
    shown = [quoted(name) for name in itertools.islice(names, _SHOWN_NAMES + 1)]
    if len(shown) > _SHOWN_NAMES:
        shown[-1] = "..."
    return ", ".join(shown) or "none"


def nearest(name: str, known: Iterable[str], *spellings: str) -> str:
    """Return ``; did you mean 'x'?`` with the known name closest to ``name``; empty without a close name.

    ``spellings`` are other spellings of the same name.

    >>> nearest("nn.Linaer", ["nn.Linear", "nn.GELU"])
    "; did you mean 'nn.Linear'?"
    """
    other = _closest((name, *spellings), known)
    return "" if other is None else f"; did you mean {quoted(other)}?"


def suggest_for_missing(missing: str, given: Iterable[str]) -> str:
    """Return ``; is 'x' a misspelling?`` with the given name closest to a missing name; empty without a close name.

    >>> suggest_for_missing("model", ["modle"])
    "; is 'modle' a misspelling?"
    """
    other = _closest((missing,), given)
    return "" if other is None else f"; is {quoted(other)} a misspelling?"


def _closest(names: Iterable[str], others: Iterable[str]) -> str | None:
    """Return the name in ``others`` closest to a name in ``names``, ignoring upper and lower case."""
    candidates: dict[str, str] = {}
    for other in itertools.islice(others, _COMPARED_NAMES):
        if len(other) <= _COMPARED_CHARS:
            candidates.setdefault(other.casefold(), other)
    folded = [name.casefold() for name in names if len(name) <= _COMPARED_CHARS]
    same = (name for name in folded if name in candidates)
    close = (other for name in folded for other in difflib.get_close_matches(name, candidates, n=1))
    found = next(itertools.chain(same, close), None)
    return None if found is None else candidates[found]
