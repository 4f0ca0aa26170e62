"""Foreign text on terminals, in logs and in errors; fragments of error messages.

:func:`printable` is the only function that escapes text. Errors of this package, the output of the command, the log of
the server and progress bars call the function. Names in descriptors are refused unless :func:`is_printable`.
"""

from __future__ import annotations

import difflib
import html
import itertools
import unicodedata
from collections.abc import Iterable

MAX_TEXT_CHARS = 10_000
"""Characters of the text of an error: a longer text loses its middle."""

MAX_MARKS = 4
"""Combining marks in a row: more marks than any script needs would cover the lines above and below."""

# Characters without ink that Python counts as printable: fillers, joiners, variation selectors, an empty notehead.
_NO_INK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00016fe4\U0001d159") | frozenset(
    map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)
_EMOJI_STYLE, _EMOJI_JOINER = "\ufe0f", "\u200d"
_INDENT = "    "
_GAP = " ... "

_SHOWN_CHARS = 60
_SHOWN_NAMES = 20
_CELL_CHARS = 500
# The time of difflib grows with the square of the length of names, and an untrusted peer may choose the names.
_COMPARED_NAMES = 1000
_COMPARED_CHARS = 100


def printable(text: str) -> str:
    r"""Return a text as one line of visible characters: a text that can move, hide or reorder nothing on a terminal.

    Escaped are line breaks, control characters, invisible characters, marks that change the direction of writing,
    characters that Unicode does not define, spaces other than the plain space, and combining marks without a letter or
    beyond ``MAX_MARKS``. Letters of every script, and emoji, stay. An escaped text stays as the text is.

    >>> printable("mask = ~mask  # \u202e\x1b[2K\u200b"), printable("编码器 é 👩\u200d🔬")
    ('mask = ~mask  # \\u202e\\x1b[2K\\u200b', '编码器 é 👩\u200d🔬')
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks, previous = MAX_MARKS, ""  # no letter, no mark
    for index, char in enumerate(text):
        if unicodedata.category(char) in {"Mn", "Mc", "Me"}:
            marks += 1
        elif char != _EMOJI_JOINER:
            marks = 0
        is_plain = char.isprintable() and char not in _NO_INK and marks <= MAX_MARKS
        is_plain = is_plain or _is_in_emoji(char, previous, text[index + 1 : index + 2])
        shown.append(char if is_plain else _escaped(char))
        previous = char
    return "".join(shown)


def is_printable(text: str) -> bool:
    r"""Whether :func:`printable` leaves a text unchanged.

    >>> is_printable("编码器"), is_printable("two\nlines")
    (True, False)
    """
    return printable(text) == text


def printable_lines(text: str) -> str:
    r"""Return a text of several lines with each line :func:`printable`, and every line after the first indented.

    No line can imitate the beginning of another message. Tabs at the beginning of a line become spaces. The result of a
    result is the same text.

    >>> printable_lines("sizes differ\n\tweight\r\x1b[1A")
    'sizes differ\n    weight\\r\\x1b[1A'
    """
    if text.isascii() and text.isprintable():
        return text
    first, *rest = [_with_leading_spaces(line) for line in text.replace("\r\n", "\n").split("\n")]
    lines = [line if line.startswith(_INDENT) or not line else _INDENT + line for line in rest]
    return "\n".join(map(printable, (first, *lines)))


def shortened(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Leave out the middle of a text of more than ``max_chars`` characters.

    >>> shortened("0123456789" * 3, 20)
    '01234567890 ... 6789'
    """
    if len(text) <= max_chars:
        return text
    tail = max_chars // 5
    head = max_chars - tail - len(_GAP)
    return f"{text[:head]}{_GAP}{text[-tail:]}"


def quoted(value: object) -> str:
    """Return the ``repr`` of a value, printable; a long text is shortened.

    >>> quoted("nn.Linear")
    "'nn.Linear'"
    """
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return f"{printable(repr(value[:_SHOWN_CHARS]))}..."
    return printable(repr(value))


def listed(names: Iterable[str]) -> str:
    """Return quoted names with commas, in the given order; the word ``none`` for an empty list.

    >>> listed(["model", "seed"])
    "'model', 'seed'"
    """
    shown = [quoted(name) for name in itertools.islice(names, _SHOWN_NAMES + 1)]
    if len(shown) > _SHOWN_NAMES:
        shown[-1] = "..."
    return ", ".join(shown) or "none"


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table for notebooks; every cell is printable, shortened and escaped.

    >>> html_table(["field"], [["<b>"]])
    '<table><tr><th>field</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """
    lines = [("th", header), *(("td", row) for row in rows)]
    cells = [
        "".join(f"<{tag}>{html.escape(printable(shortened(cell, _CELL_CHARS)))}</{tag}>" for cell in line)
        for tag, line in lines
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


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


def _escaped(char: str) -> str:
    r"""Return a character as the escape of a Python string: ``\x1b``, ``\u202e``, ``\U000e0001``."""
    return char.encode("ascii", "backslashreplace").decode() if char >= "\x80" else repr(char)[1:-1]


def _is_in_emoji(char: str, previous: str, following: str) -> bool:
    """Whether an invisible character is a part of an emoji: between two symbols, or after one symbol."""
    before = previous == _EMOJI_STYLE or _is_symbol(previous)
    if char == _EMOJI_STYLE:
        return _is_symbol(previous)
    return char == _EMOJI_JOINER and before and _is_symbol(following)


def _is_symbol(char: str) -> bool:
    return char > "\x7f" and unicodedata.category(char) in {"So", "Sk"}


def _with_leading_spaces(line: str) -> str:
    """Replace the tabs at the beginning of a line."""
    rest = line.lstrip("\t ")
    return line[: len(line) - len(rest)].replace("\t", _INDENT) + rest


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
