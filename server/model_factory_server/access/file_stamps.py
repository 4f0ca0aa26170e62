"""Detects changes of files by size, inode and modification time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from model_factory.errors import ServerError

FileStamp = tuple[int, int, int]
"""Modification time in ns, size in bytes and inode of a file."""


def stamp_of(path: Path) -> FileStamp:
    """Return the stamp of a file.

    Raises:
        ServerError: the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino


def stamps_of(paths: Iterable[Path]) -> tuple[FileStamp, ...]:
    """Return the stamps of several files.

    Raises:
        ServerError: a file cannot be read.
    """
    return tuple(stamp_of(path) for path in paths)
