"""The memory that messages are received into and sent from."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from model_factory.limits import BLOB_CHUNK_BYTES

_LARGEST = 4 * BLOB_CHUNK_BYTES  # more would speed up nothing, and twice as much may stay at each heap's top


def keep_freed_memory() -> None:
    """Have malloc reuse freed messages, instead of giving the pages of each back to the kernel.

    Page faults cost a blob stream more than the network does: see docs/performance.md. malloc of glibc gives blocks
    from a threshold on a mapping of their own; freeing one raises the threshold to its size, and lets twice as much
    stay at the top of each heap, where ``malloc_trim`` does not reach it. So one is freed here that is never touched.
    Unlike ``mallopt`` that leaves alone what the owner of the process has set; with another malloc nothing happens.
    """
    bytes(_LARGEST)


@contextmanager
def reusing_memory() -> Iterator[None]:
    """Keep freed memory inside, and give it back at the end."""
    keep_freed_memory()
    try:
        yield
    finally:
        give_back_memory()


def give_back_memory() -> None:
    """Have malloc give freed memory back to the kernel; with another malloc than that of glibc nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
