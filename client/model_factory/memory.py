"""Settings of malloc for the memory of messages."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from model_factory.limits import BLOB_CHUNK_BYTES

_LARGEST = 4 * BLOB_CHUNK_BYTES  # a larger block saves no time, and malloc keeps up to twice the size per heap


def keep_freed_memory() -> None:
    """Make malloc reuse freed messages instead of returning the pages of each message to the kernel.

    Page faults cost a blob stream more than the network, see docs/performance.md. malloc of glibc creates a separate
    mapping for each block above a threshold. Freeing a block of this kind raises the threshold to the block's size, and
    malloc then keeps up to twice the size at the top of each heap, out of reach of ``malloc_trim``. Therefore one large
    block is allocated and freed, without access to the pages. Unlike ``mallopt``, this respects the settings of the
    process's owner. With another malloc there is no effect.
    """
    bytes(_LARGEST)


@contextmanager
def reusing_memory() -> Iterator[None]:
    """Keep freed memory during the block, and return the memory to the kernel at the end."""
    keep_freed_memory()
    try:
        yield
    finally:
        give_back_memory()


def give_back_memory() -> None:
    """Make malloc return freed memory to the kernel; no effect with another malloc than the malloc of glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
