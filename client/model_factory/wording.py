"""Fragments of error messages: what was found, what is allowed, which known name is nearest."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

_SHOWN_CHARS = 60
_SHOWN_NAMES = 20
# difflib takes time quadratic in the length of names, and names may come from a stranger.
_COMPARED_NAMES = 1000
_COMPARED_CHARS = 100


def quoted(value: object) -> str:
    """Return the value's ``repr``, cut where it would flood the message."""
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return f"{value[:_SHOWN_CHARS]!r}..."
    return repr(value)


def listed(names: Iterable[str]) -> str:
    """Return the names quoted, in the order given, with commas; ``none`` when there are none."""
    shown = [quoted(name) for name in itertools.islice(names, _SHOWN_NAMES + 1)]
    if len(shown) > _SHOWN_NAMES:
        shown[-1] = "..."
    return ", ".join(shown) or "none"


def nearest(name: str, known: Iterable[str], *spellings: str) -> str:
    """Return ``; did you mean 'x'?`` for the known name closest to an unknown one, or nothing when none is close.

    ``spellings`` are other ways in which the name could have been written.
    """
    other = _closest((name, *spellings), known)
    return "" if other is None else f"; did you mean {quoted(other)}?"


def suggest_for_missing(missing: str, given: Iterable[str]) -> str:
    """Return ``; is 'x' a misspelling?`` for the given name closest to a missing one, or nothing."""
    other = _closest((missing,), given)
    return "" if other is None else f"; is {quoted(other)} a misspelling?"


def _closest(names: Iterable[str], others: Iterable[str]) -> str | None:
    """Return the one of ``others`` that is closest to one of ``names``, whatever the case of their letters."""
    candidates: dict[str, str] = {}
    for other in itertools.islice(others, _COMPARED_NAMES):
        if len(other) <= _COMPARED_CHARS:
            candidates.setdefault(other.casefold(), other)
    folded = [name.casefold() for name in names if len(name) <= _COMPARED_CHARS]
    same = (name for name in folded if name in candidates)
    close = (other for name in folded for other in difflib.get_close_matches(name, candidates, n=1))
    found = next(itertools.chain(same, close), None)
    return None if found is None else candidates[found]
