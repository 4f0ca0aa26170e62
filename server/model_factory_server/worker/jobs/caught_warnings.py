"""Catches what the operator's code warns of: Python's warnings, and log records of level WARNING and above."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from model_factory.errors import safe_text
from model_factory.limits import MAX_WARNING_CHARS, MAX_WARNINGS
from model_factory.wording import shortened
from model_factory_server.backends.redaction import without_paths

_CALL_HANDLERS = logging.Logger.callHandlers


@contextmanager
def caught_warnings(texts: list[str]) -> Iterator[None]:
    """Append the text of each warning to ``texts``, once and at most ``MAX_WARNINGS``; nothing is printed.

    A logger with handlers of its own is caught, too. For a process of one thread.

    Example:
        >>> texts = []
        >>> with caught_warnings(texts):
        ...     logging.getLogger("blocks").warning("width %d is odd", 3)
        >>> texts
        ['blocks: width 3 is odd']
    """

    def add(text: str) -> None:
        shown = safe_text(without_paths(shortened(text.strip(), MAX_WARNING_CHARS)))
        if shown not in texts and len(texts) < MAX_WARNINGS:
            texts.append(shown)

    def on_record(logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            _CALL_HANDLERS(logger, record)
            return
        add(f"{record.name}: {_message(record)}")

    try:
        with warnings.catch_warnings(record=True) as caught, patch.object(logging.Logger, "callHandlers", on_record):
            yield
    finally:
        for item in caught:
            add(f"{Path(item.filename).name}:{item.lineno}: {item.category.__name__}: {item.message}")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  the operator's arguments may not fit the operator's text
        return str(record.msg)
