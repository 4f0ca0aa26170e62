"""Large files on the way to the disk: hashed, and written back part by part, during the write."""

from __future__ import annotations

import ctypes
from typing import BinaryIO

from blake3 import blake3

from model_factory.limits import MIB

WRITE_BACK_BYTES = 32 * MIB
"""Bytes written between two write-back requests."""

_SYNC_FILE_RANGE_WRITE = 2

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux only


def begin_write_back(file: BinaryIO, start: int, size: int) -> None:
    """Request write-back of a part of a file. Does not wait; errors are left to the flush at the end."""
    if _sync_file_range is not None:
        _sync_file_range(file.fileno(), ctypes.c_int64(start), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


class HashingWriter:
    """Writes a file from the beginning, and computes digest and size on the way.

    Write-back is requested during the write, for a short flush at the end. All work happens in
    the caller's thread: on two cores a second thread costs more processor time than is saved.

    >>> import io
    >>> writer = HashingWriter(io.BytesIO())
    >>> writer.write(b"weights")
    >>> writer.size, len(writer.digest())
    (7, 64)
    """

    def __init__(self, file: BinaryIO, threads: int = 1) -> None:
        """``threads`` is the number of hashing threads for a large piece."""
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
            OSError: the file system refused the write.
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
        """Digest of the bytes written so far: blake3, 64 hexadecimal digits."""
        digest: str = self._hasher.hexdigest()
        return digest
