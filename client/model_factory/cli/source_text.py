"""Source code as numbered lines that show every character that Python reads, for the review of foreign code."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from model_factory.wording import printable

WIDTH = 100
"""Columns of a line of code; a longer line is continued on further lines, which have no number."""

_LINE_BREAK = re.compile(r"\r\n|\r|\n")  # Python's line breaks, and no others
_TAB = "    "
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})
_WIDE = frozenset({"W", "F"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """The text of a file for display."""

    count: int
    """Lines of the file, as Python counts lines."""
    warning: str
    """Note about lines with unusual characters; empty without any."""
    lines: list[str]
    """Lines for display."""


def numbered_lines(text: str, width: int = WIDTH) -> SourceText:
    r"""Return a file of source code for display, with at most ``width`` columns of code per line.

    Python's own lines are numbered; a long line is folded, so no code lies beyond the edge of a terminal. Besides the
    characters that :func:`printable` escapes, letters written from right to left are escaped, since a terminal may
    change the order of code around the letters. A tab at the beginning of a line becomes four spaces.

    >>> shown = numbered_lines("x = 1  # \r\x1b[1A\x1b[2Kx = 2\nimport os")
    >>> shown.lines
    ['1 | x = 1  # ', '2 | \\x1b[1A\\x1b[2Kx = 2', '3 | import os']
    >>> shown.warning
    ' (escaped characters in line 2)'
    """
    lines = _LINE_BREAK.split(text)
    if not lines[-1]:
        lines.pop()
    digits = len(str(len(lines)))
    escaped, foreign, shown = [], [], []
    for number, line in enumerate(lines, start=1):
        code = line.lstrip("\t ")
        visible = _left_to_right(printable(code))
        if visible != code:
            escaped.append(number)
        elif not code.isascii():
            foreign.append(number)
        indented = line[: len(line) - len(code)].replace("\t", _TAB) + visible
        first, *more = _folded(indented, width)
        shown.append(f"{number:{digits}} | {first}")
        shown.extend(f"{'':{digits}} > {part}" for part in more)
    notes = [_note("escaped characters", escaped), _note("characters beyond ASCII", foreign)]
    warning = "; ".join(note for note in notes if note)
    return SourceText(count=len(lines), warning=f" ({warning})" if warning else "", lines=shown)


def _note(what: str, numbers: list[int]) -> str:
    if not numbers:
        return ""
    shown = ", ".join(map(str, numbers[:10]))
    return f"{what} in line{'s' * (len(numbers) > 1)} {shown}{', ...' * (len(numbers) > 10)}"


def _left_to_right(text: str) -> str:
    if text.isascii():
        return text
    return "".join(
        char.encode("ascii", "backslashreplace").decode() if unicodedata.bidirectional(char) in _RIGHT_TO_LEFT else char
        for char in text
    )


def _folded(line: str, width: int) -> list[str]:
    """Cut a line into parts of at most ``width`` columns."""
    parts, start, used = [], 0, 0
    for index, char in enumerate(line):
        columns = 2 if unicodedata.east_asian_width(char) in _WIDE else 1
        if used + columns > width:
            parts.append(line[start:index])
            start, used = index, 0
        used += columns
    return [*parts, line[start:]]
