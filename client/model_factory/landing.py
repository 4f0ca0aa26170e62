"""Large files on their way to the disk: flushed bit by bit, and written and hashed beside who receives them."""

from __future__ import annotations

import ctypes
import queue
import threading
from types import TracebackType
from typing import BinaryIO, Self

from blake3 import blake3

from model_factory.limits import MIB

CHUNKS_BETWEEN = 3
"""Received and not yet written, at most: the receiver waits then."""

WRITE_BACK_BYTES = 32 * MIB
"""Written between one word to the disk and the next."""

_SYNC_FILE_RANGE_WRITE = 2


class WriteBack:
    """Tells the disk to begin with what was written, so that the flush at the end finds little left to do."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begun = self._written = 0
        self._call = getattr(ctypes.CDLL(None), "sync_file_range", None)  # of Linux

    def wrote(self, count: int) -> None:
        """So many more bytes were written to the file."""
        self._written += count
        size = self._written - self._begun
        if self._call is not None and size >= WRITE_BACK_BYTES:
            self._file.flush()
            where = ctypes.c_int64(self._begun), ctypes.c_int64(size)
            self._call(self._file.fileno(), *where, _SYNC_FILE_RANGE_WRITE)  # does not wait; an error is the flush's
            self._begun = self._written


class Landing:
    """A file that chunks are written to in the background; leaving the block waits for them.

    Receiving costs a core about as much as writing and hashing, so two cores do both in the time of one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = blake3()
        self._chunks: queue.Queue[memoryview | None] = queue.Queue(CHUNKS_BETWEEN)
        self._failed: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="blob landing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._chunks.put(None)
        self._thread.join()
        if self._failed is not None and error is None:
            raise self._failed

    def write(self, chunk: memoryview) -> None:
        """Have a chunk written after those before it; waits where the disk is slow.

        Raises:
            OSError: an earlier one could not be written.
        """
        if self._failed is not None:
            raise self._failed
        self._chunks.put(chunk)

    def digest(self) -> str:
        """Digest of all that was written; after the block."""
        return self._hasher.hexdigest()

    def _work(self) -> None:
        disk = WriteBack(self._file)
        while (chunk := self._chunks.get()) is not None:
            if self._failed is not None:
                continue  # the receiver must not be left waiting
            try:
                self._file.write(chunk)
                self._hasher.update(chunk)
                disk.wrote(len(chunk))
            except OSError as error:
                self._failed = error
