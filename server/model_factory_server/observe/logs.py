"""Log lines as text or as JSON objects, each with the fields of its RPC."""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from model_factory.wording import is_printable, printable, printable_lines
from model_factory_server.observe.rpc_context import current_rpc
from model_factory_server.settings.server_settings import JSON

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_SHORT = 12  # characters of a build key in text
# gRPC logs a traceback with this message for every client that disconnects during a response.
_CLIENT_GONE = "ExecuteBatchError raised in core"
_TO_QUOTE = frozenset(' "')
_IN_MESSAGE = frozenset({"method", "status", "duration_ms", "outcome"})  # already in the message's text


def configure_logging(log_format: str, level: str) -> None:
    """Write log lines to standard error, in a format of ``LOG_FORMATS``, from a level of ``LOG_LEVELS`` on."""
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _without_buffer(sys.__stderr__.fileno())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == JSON else _TextFormatter(_TEXT))
    for library in ("asyncio", "grpc"):  # their debug level logs every call of the event loop
        logging.getLogger(library).setLevel(logging.INFO)
    logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not record.getMessage().startswith(_CLIENT_GONE))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _without_buffer(descriptor: int) -> io.TextIOWrapper:
    """Open a stream without a buffer: on a full disk, for example, log lines are lost.

    A buffered line would fail the next flush, and ``multiprocessing`` flushes before it starts a process.
    """
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def fields(**values: Any) -> dict[str, Any]:
    """Return the ``extra`` argument of a log call: fields to add to the line.

    Example:
        >>> fields(status="OK")
        {'fields': {'status': 'OK'}}
    """
    return {"fields": values}


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return current_rpc().fields() | getattr(record, "fields", {})


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # One line is one event: no message can imitate another line.
        head, separator, rest = printable_lines(super().format(record)).partition("\n")
        values = _fields_of(record)
        extra = "".join(f" {name}={_text(value)}" for name, value in values.items() if name not in _IN_MESSAGE)
        return head + extra + separator + rest


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
        # ASCII only: no control sequences or Unicode line breaks. JSON leaves one control character.
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


def _text(value: object) -> str:
    if isinstance(value, list):
        text = ",".join(str(item)[:_SHORT] for item in value)
    elif isinstance(value, dict):
        text = ",".join(f"{name}:{item}" for name, item in value.items())
    else:
        text = str(value)
    return text if is_printable(text) and not _TO_QUOTE & set(text) else printable(json.dumps(text))
