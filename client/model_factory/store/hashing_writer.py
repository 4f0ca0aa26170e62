"""Large files on their way to the disk: hashed and flushed bit by bit while they are written."""

from __future__ import annotations

import ctypes
from typing import BinaryIO

from blake3 import blake3

from model_factory.limits import MIB

WRITE_BACK_BYTES = 32 * MIB
"""Written between one word to the disk and the next."""

_SYNC_FILE_RANGE_WRITE = 2

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # of Linux


def begin_write_back(file: BinaryIO, start: int, size: int) -> None:
    """Have the disk begin with a part of a file. This does not wait; an error is the flush's to tell."""
    if _sync_file_range is not None:
        _sync_file_range(file.fileno(), ctypes.c_int64(start), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


class HashingWriter:
    """Writes a file from its beginning, and knows its digest and size at the end.

    The disk is told to begin with what was written, so that the flush at the end finds little left to do. All of it
    happens in the caller's thread: a second one took more processor time than it saved on two cores.
    """

    def __init__(self, file: BinaryIO, threads: int = 1) -> None:
        """``threads`` is how many hash a large piece."""
        self._file = file
        self._hasher = blake3(max_threads=threads)
        self._begun = self._written = 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._written

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``.

        Raises:
            OSError: it could not be written.
        """
        self._hasher.update(data)
        self._file.write(data)
        self._written += len(data)
        size = self._written - self._begun
        if size >= WRITE_BACK_BYTES:
            self._file.flush()
            begin_write_back(self._file, self._begun, size)
            self._begun = self._written

    def digest(self) -> str:
        """Digest of what was written so far, in hexadecimal."""
        digest: str = self._hasher.hexdigest()
        return digest
