"""The output of the command: every line of every command is printed here, with foreign text escaped."""

from __future__ import annotations

import io
import sys
import traceback
from typing import TextIO

from model_factory.wording import printable, printable_lines


def say(line: str, *, error: bool = False) -> None:
    r"""Print one line on standard output or, for an error, on standard error; see :func:`printable`.

    >>> say("the server has the block \x1b[8mhidden")
    the server has the block \x1b[8mhidden
    """
    stream = sys.stderr if error else sys.stdout
    print(_encodable(printable(line), stream), file=stream, flush=True)


def say_lines(text: str, *, error: bool = False) -> None:
    r"""Print a text of several lines; foreign text in the text must not contain line breaks.

    >>> say_lines("encoder\n  4 modules")
    encoder
      4 modules
    """
    for line in text.split("\n"):
        say(line, error=error)


def say_error(error: Exception) -> None:
    """Print an error on standard error; see :class:`model_factory.ModelFactoryError` for texts of several lines.

    >>> say_error(ValueError("no such file"))
    """
    say_lines(f"error: {error}", error=True)


def say_traceback(error: BaseException) -> None:
    """Print an unexpected error with its traceback on standard error."""
    say_lines(printable_lines("".join(traceback.format_exception(error)).rstrip("\n")), error=True)


class PrintableStream(io.TextIOWrapper):
    """Standard output and error of code that may print foreign text: everything but line breaks is escaped."""

    def __init__(self, descriptor: int) -> None:
        """Write to an open file, without a buffer."""
        raw = io.FileIO(descriptor, "w", closefd=False)
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", write_through=True)

    def write(self, text: str, /) -> int:
        """Write a text."""
        super().write("\n".join(map(printable, text.split("\n"))))
        return len(text)


def _encodable(text: str, stream: TextIO) -> str:
    """Escape the characters that the encoding of a stream lacks, as in the ``C`` locale."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
