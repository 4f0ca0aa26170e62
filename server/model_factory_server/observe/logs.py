"""Log lines: text for people, or one JSON object a line; each says which call it belongs to."""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from model_factory_server.observe.rpc_context import current_call
from model_factory_server.settings.server_settings import JSON

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_SHORT = 12  # of a build key, in text
_CLIENT_GONE = "ExecuteBatchError raised in core"  # with a traceback, for each client that leaves amid an answer
_TO_QUOTE = frozenset(' "')
_IN_MESSAGE = frozenset({"method", "status", "duration_ms", "outcome"})  # the text says them already


def configure_logging(form: str, level: str) -> None:
    """Send this process's log lines to standard error in one of ``LOG_FORMATS``, from one of ``LOG_LEVELS`` on."""
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _without_buffer(sys.__stderr__.fileno())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == JSON else _TextFormatter(_TEXT))
    for library in ("asyncio", "grpc"):  # at the debug level they say every call of a loop
        logging.getLogger(library).setLevel(logging.INFO)
    logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not record.getMessage().startswith(_CLIENT_GONE))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _without_buffer(descriptor: int) -> io.TextIOWrapper:
    """Open a stream that keeps nothing back: a line that cannot be written, to a full disk say, is lost.

    In a buffer it would fail whoever flushes next, and ``multiprocessing`` does before it starts a process: a build.
    """
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def fields(**values: Any) -> dict[str, Any]:
    """The ``extra`` of a log call that adds fields to its line."""
    return {"fields": values}


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return current_call().fields() | getattr(record, "fields", {})


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # One line is one event, so that no message can look like another one.
        head, *rest = super().format(record).splitlines() or [""]
        values = _fields_of(record)
        said = "".join(f" {name}={_text(value)}" for name, value in values.items() if name not in _IN_MESSAGE)
        return "\n".join([head + said, *(f"    {line}" for line in rest)])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII alone: no control sequence, nor what some take for a new line


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(str(item)[:_SHORT] for item in value)
    if isinstance(value, dict):
        return ",".join(f"{name}:{item}" for name, item in value.items())
    text = str(value)
    return text if text.isprintable() and not _TO_QUOTE & set(text) else json.dumps(text)
