"""Where a blob stream lands: written and hashed on another thread than the one that receives it.

Receiving, and writing with hashing, cost a core about the same, so that two cores do both in the time of one. The disk
is told to begin with what is written; the flush at the end then finds little left to do.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from types import TracebackType
from typing import BinaryIO, Self

from blake3 import blake3

from model_factory.limits import MIB

CHUNKS_BETWEEN = 4
"""Received and not yet written, at most: the receiver waits then."""

WRITE_BACK_BYTES = 32 * MIB
"""Written between one word to the disk and the next."""

_SYNC_FILE_RANGE_WRITE = 2


class Landing:
    """A file that chunks are written to in the background; leaving the block waits for them."""

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
        begun = written = 0
        while (chunk := self._chunks.get()) is not None:
            if self._failed is not None:
                continue  # the receiver must not be left waiting
            try:
                self._file.write(chunk)
                self._hasher.update(chunk)
                written += len(chunk)
                if written - begun >= WRITE_BACK_BYTES:
                    self._file.flush()
                    _begin_write_back(self._file.fileno(), begun, written - begun)
                    begun = written
            except OSError as error:
                self._failed = error


def _begin_write_back(number: int, offset: int, size: int) -> None:
    """Have the kernel begin to write a part of a file to disk, without waiting; of use on Linux only."""
    sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if sync_file_range is not None:
        sync_file_range(number, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)
