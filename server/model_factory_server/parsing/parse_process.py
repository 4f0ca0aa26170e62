"""The process that parses configs of untrusted peers, and the format of its pipes. Imports neither torch nor gRPC.

Python's threads share one lock, so parsing in a thread of the server would delay every other request.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from dataclasses import astuple
from typing import BinaryIO

from model_factory.config import ConfigBounds
from model_factory.errors import FormatError, LocatedError, ModelFactoryError
from model_factory.limits import MIB
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.worker.messages import JobDone, JobFailed, Message, encode_message
from model_factory_server.worker.sandbox import forbid_inspection

MAX_MEMORY_BYTES = 1024 * MIB
"""Address space of the process; the largest config takes 140 MiB."""

_NICENESS = 5  # the server answers first
_LENGTHS = struct.Struct("<QQ")

LENGTHS_BYTES = _LENGTHS.size
"""Size of the head of a frame."""


def encode_frame(head: bytes, body: bytes = b"") -> bytes:
    """Return a frame of two parts.

    Example:
        >>> decode_lengths(encode_frame(b"head", b"body")[:LENGTHS_BYTES])
        (4, 4)
    """
    return _LENGTHS.pack(len(head), len(body)) + head + body


def decode_lengths(data: bytes) -> tuple[int, int]:
    """Return the lengths of the two parts of a frame."""
    head, body = _LENGTHS.unpack(data)
    return head, body


def command(bounds: ConfigBounds) -> list[str]:
    """Return the command that starts the process."""
    return [sys.executable, "-m", __name__, *map(str, astuple(bounds))]


def answer(data: bytes, bounds: ConfigBounds) -> bytes:
    """Return the frame with the checked config, or with the error, for the bytes of a config."""
    message: Message
    try:
        config = CheckedConfig.parse(data, bounds)
    except ModelFactoryError as error:
        path = tuple(error.path) if isinstance(error, LocatedError) else ()
        reason = error.reason if isinstance(error, LocatedError) else str(error)
        message = JobFailed(type(error).__name__, reason.encode(errors="backslashreplace").decode(), path)
        return encode_frame(encode_message(message))
    message = JobDone([config.digest, config.order_digest, config.checkpoint], ())
    return encode_frame(encode_message(message), config.wire)


def decode_answer(head: Message, wire: bytes) -> CheckedConfig:
    """Return the checked config of an answer.

    Raises:
        ModelFactoryError: the config is wrong, or the answer is malformed.
    """
    match head:
        case JobFailed() as failed:
            raise failed.exception()
        case JobDone(output=[str(digest), str(order_digest), str(checkpoint)]):
            return CheckedConfig(wire=wire, digest=digest, order_digest=order_digest, checkpoint=checkpoint)
    raise FormatError("an answer of the process that parses configs is malformed")


def serve(requests: BinaryIO, answers: BinaryIO, bounds: ConfigBounds) -> None:
    """Parse configs until the server closes the pipe."""
    while lengths := requests.read(LENGTHS_BYTES):
        answers.write(answer(requests.read(sum(decode_lengths(lengths))), bounds))
        answers.flush()


if __name__ == "__main__":
    forbid_inspection()  # the process holds configs of every client
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most_bytes, most_values, most_nesting = map(int, sys.argv[1:])
    own_bounds = ConfigBounds(max_bytes=most_bytes, max_values=most_values, max_nesting=most_nesting)
    with os.fdopen(0, "rb") as from_server, os.fdopen(1, "wb") as to_server:
        serve(from_server, to_server, own_bounds)
