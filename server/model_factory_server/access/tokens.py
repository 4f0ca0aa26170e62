"""Tokens of clients: the file of accepted tokens, and the check of one token."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from model_factory.errors import AccessError, ServerError
from model_factory.limits import MIB
from model_factory_server.access.file_stamps import stamp_of

log = logging.getLogger(__name__)

MAX_TOKENS_BYTES = MIB
"""Size limit of the token file."""

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._@-]{1,64})\s+(?P<sha256>[0-9a-f]{64})(?:\s+(?P<expires>\S+))?")
_CHECK_SECONDS = 1.0  # between two checks for a changed file


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An accepted token. The server keeps the hash only."""

    name: str
    """Name of the client with this token."""
    sha256: str
    """SHA-256 of the token, in hex. A token is 256 random bits, so one round of a fast hash is enough."""
    expires: float
    """Expiry in seconds since the epoch; infinity: never."""


class Tokens:
    """The accepted tokens, read again when the file changes. An unreadable file leaves the last tokens valid."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        """Read the file.

        Raises:
            ServerError: the file cannot be read, or a line is invalid. The message names the line without its content.
        """
        self._path = path
        self._now = now
        self._stamp = stamp_of(path)
        self._tokens = read_tokens(path)
        self._checked = time.monotonic()

    def holder(self, token: str) -> str:
        """Return the name of the client with this token.

        Raises:
            AccessError: the token is unknown or has expired.
        """
        self._refresh()
        given = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for item in self._tokens:  # no early exit: the duration must not show the position of a match
            if hmac.compare_digest(item.sha256, given):
                found = item
        if found is None:
            raise AccessError("this server does not know the token. Remedy: ask the server's operator for a token")
        if found.expires <= self._now():
            raise AccessError(
                f"the token of {found.name!r} has expired. Remedy: ask the server's operator for a new token"
            )
        return found.name

    def _refresh(self) -> None:
        if time.monotonic() - self._checked < _CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        try:
            stamp = stamp_of(self._path)
            if stamp != self._stamp:
                self._read_again()
                self._stamp = stamp
        except ServerError as error:
            log.error("the accepted tokens stay unchanged: %s", error)  # noqa: TRY400  the text is complete

    def _read_again(self) -> None:
        # An invalid line affects no other client; a file of invalid lines only is refused as a whole.
        invalid: list[ServerError] = []
        tokens = read_tokens(self._path, invalid.append)
        if invalid and not tokens:
            raise invalid[0]
        for error in invalid:
            log.error("skipped a line of the token file: %s", error)
        self._tokens = tokens
        log.info("read %d tokens from %s", len(tokens), self._path)


def read_tokens(path: Path, on_invalid: Callable[[ServerError], object] | None = None) -> tuple[Token, ...]:
    """Read a token file: lines of a name, the token's SHA-256 in hex, and optionally the expiry in ISO 8601.

    ``on_invalid`` is called with the error of each invalid line.

    Raises:
        ServerError: the file cannot be read, or a line is invalid and ``on_invalid`` is None.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKENS_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"cannot read the tokens in {path}: {type(error).__name__}") from None
    if len(text) > MAX_TOKENS_BYTES:
        raise ServerError(f"{path} has more than {MAX_TOKENS_BYTES} bytes, the limit of a token file")
    tokens = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            try:
                tokens.append(_parse_line(content, f"{path}:{number}"))
            except ServerError as error:
                if on_invalid is None:
                    raise
                on_invalid(error)
    return tuple(tokens)


def token_line(name: str, token: str, days: float | None) -> str:
    """Return the line of a token file for a token that is valid for ``days``; None: for ever.

    Raises:
        ServerError: the name has other characters than letters, digits and ``._@-``, or ``days`` exceeds the calendar.

    Example:
        >>> token_line("lab-7", "secret", None)
        'lab-7 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b'
    """
    line = f"{name} {hashlib.sha256(token.encode()).hexdigest()}"
    if days is not None:
        try:
            until = datetime.now(UTC) + timedelta(days=days)
        except (OverflowError, ValueError):
            raise ServerError(f"--days {days:g} is not a number of days within the calendar") from None
        line += f" {until.isoformat(timespec='seconds')}"
    _parse_line(line, "the new token")
    return line


def _parse_line(content: str, place: str) -> Token:
    match = _LINE.fullmatch(content)
    if match is None:
        raise ServerError(
            f"{place} is not a token: a line has a name, the token's SHA-256 in 64 hexadecimal digits, and optionally "
            "the time of expiry. Remedy: write the line with model-factory token NAME"
        )
    try:
        until = datetime.fromisoformat(match["expires"]) if match["expires"] else None
    except ValueError:
        raise ServerError(f"{place}: {match['expires']!r} is not a time like 2030-01-31T12:00:00+00:00") from None
    if until is not None and until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return Token(
        name=match["name"], sha256=match["sha256"], expires=float("inf") if until is None else until.timestamp()
    )
