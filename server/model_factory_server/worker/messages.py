"""The messages of a worker to the server, each a JSON document ``[kind, body]``. Imports no torch.

Documents and no pickled objects: unpickling would run code of a build's choice in the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model_factory import errors
from model_factory.documents import decode_document, encode_document, expect_str, expect_type
from model_factory.errors import FormatError, LocatedError, ModelFactoryError
from model_factory_server.worker.files.read_files import ReadFile, decode_files, encode_files
from model_factory_server.worker.stages import Stage


@dataclass(frozen=True, slots=True)
class StageEntered:
    """The job has entered a stage."""

    stage: Stage


@dataclass(frozen=True, slots=True)
class BlobsEvicted:
    """Blobs were evicted from the store to make room."""

    size: int
    """Bytes of the evicted blobs."""


@dataclass(frozen=True, slots=True)
class FileStored:
    """A file is about to appear in the store."""

    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class ErrorLogged:
    """Text for the server's log: the traceback of an error."""

    text: str


@dataclass(frozen=True, slots=True)
class WarningRaised:
    """A warning for the server's log."""

    text: str


@dataclass(frozen=True, slots=True)
class ModelWarned:
    """A constructor of the model warns, for the log of the server and of the trainer."""

    text: str


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job has failed; the last message."""

    error: str
    """Name of a class of ``model_factory.errors``."""
    text: str
    """The error's message."""
    path: tuple[str | int, ...] = ()
    """Place in the config."""

    def exception(self) -> ModelFactoryError:
        """Return the error to raise in the server.

        Example:
            >>> JobFailed("ConfigError", "unknown block", ("model", 0)).exception()
            ConfigError('model[0]: unknown block')
        """
        cls = _error_class(self.error)
        return cls(self.text, path=self.path) if issubclass(cls, LocatedError) else cls(self.text)


@dataclass(frozen=True, slots=True)
class JobDone:
    """The job has ended well; the last message."""

    output: object
    """Document of the task's output."""
    files: tuple[ReadFile, ...]
    """Files read by the job."""


Message = StageEntered | BlobsEvicted | FileStored | ErrorLogged | WarningRaised | ModelWarned | JobFailed | JobDone

SendMessage = Callable[[Message], None]
"""Sends a message to the server."""


def encode_message(message: Message) -> bytes:
    """Return the bytes of a message.

    Example:
        >>> encode_message(StageEntered(Stage.WRITING))
        b'["stage","writing"]'
    """
    match message:
        case StageEntered(stage):
            parts: list[object] = ["stage", stage.value]
        case BlobsEvicted(size):
            parts = ["evicted", size]
        case FileStored(size):
            parts = ["stored", size]
        case ErrorLogged(text):
            parts = ["log", text]
        case WarningRaised(text):
            parts = ["warning", text]
        case ModelWarned(text):
            parts = ["model warning", text]
        case JobFailed(error, text, path):
            parts = ["error", [error, text, list(path)]]
        case JobDone(output, files):
            parts = ["result", [output, encode_files(files)]]
    return encode_document(parts)


def decode_message(data: bytes) -> Message:
    """Read a message.

    Raises:
        FormatError: the data is malformed.

    Example:
        >>> decode_message(b'["evicted",4096]')
        BlobsEvicted(size=4096)
    """
    kind, body = _pair(decode_document(data, "a message of a worker process"))
    decode = _DECODERS.get(expect_str(kind))
    if decode is None:
        raise FormatError("a worker process sent a message of an unknown kind")
    return decode(body)


def _pair(document: object) -> list[object]:
    if not isinstance(document, list) or len(document) != 2:
        raise FormatError("a message of a worker process is malformed")
    return document


def _decode_stage(body: object) -> StageEntered:
    if body not in list(Stage):
        raise FormatError("a worker process sent an unknown stage")
    return StageEntered(Stage(expect_str(body)))


def _decode_failure(body: object) -> JobFailed:
    if not isinstance(body, list) or len(body) != 3:
        raise FormatError("an error of a worker process is malformed")
    name, text, path = expect_str(body[0]), expect_str(body[1]), expect_type(body[2], list)
    _error_class(name)
    return JobFailed(name, text, tuple(expect_type(key, str, int) for key in path))


def _decode_done(body: object) -> JobDone:
    output, files = _pair(body)
    return JobDone(output, decode_files(files))


_DECODERS: dict[str, Callable[[object], Message]] = {
    "stage": _decode_stage,
    "evicted": lambda body: BlobsEvicted(expect_type(body, int)),
    "stored": lambda body: FileStored(expect_type(body, int)),
    "log": lambda body: ErrorLogged(expect_str(body)),
    "warning": lambda body: WarningRaised(expect_str(body)),
    "model warning": lambda body: ModelWarned(expect_str(body)),
    "error": _decode_failure,
    "result": _decode_done,
}


def _error_class(name: str) -> type[ModelFactoryError]:
    cls: object = getattr(errors, name, None)
    if not isinstance(cls, type) or not issubclass(cls, ModelFactoryError):
        raise FormatError(f"a worker process sent an unknown class of error: {name[:80]!r}")
    return cls
