"""Reads blobs from the store into serialised ``ReadBlobResponse`` messages.

On fast networks, copies of bytes and page faults bound the throughput (docs/performance.md). The file is therefore read
straight into the message, in a buffer that all messages of a stream share.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from model_factory.errors import ServerError
from model_factory.v1 import wire
from model_factory_server.builds.fair_shares import FairThreads

# Apart from the threads of lookups: streams from a slow disk must not delay other requests.
_DISK = FairThreads("disk", 4)
_NOT_CACHED = (errno.EAGAIN, errno.EOPNOTSUPP)


class Memory(Protocol):
    """The memory of messages, shared by all streams."""

    @property
    def is_scarce(self) -> bool:
        """Whether other streams wait for memory."""

    @property
    def chunk_bytes(self) -> int:
        """Data in the next message, at most ``BLOB_CHUNK_BYTES``."""

    def reserved(self, size: int) -> AbstractAsyncContextManager[None]:
        """Wait for the memory of a message, and hold the memory inside the block."""


async def read_chunks(number: int, offset: int, length: int, memory: Memory) -> AsyncIterator[bytes]:
    """Yield ``length`` bytes from ``offset`` of an open file as serialised ``ReadBlobResponse`` messages.

    Raises:
        ServerError: the file is too short.
    """
    end = offset + length
    buffer: io.BytesIO | None = None
    size = 0
    while offset < end:
        previous, size = size, min(memory.chunk_bytes, end - offset)
        prefix = wire.chunk_prefix(size)
        async with memory.reserved(size):
            if buffer is None or size != previous:
                buffer = io.BytesIO(prefix + bytes(size))
            # A writable view copies the buffer only while the previous message is still alive.
            with buffer.getbuffer() as message, message[len(prefix) :] as data:
                await _fill(number, data, offset)
            offset += size
            yield buffer.getvalue()
        if memory.is_scarce:
            buffer = None


async def _fill(number: int, data: memoryview, offset: int) -> None:
    """Fill ``data`` from a file: cached pages at once, other pages in a thread."""
    filled = 0
    while filled < len(data):
        with data[filled:] as rest:
            try:
                count = os.preadv(number, [rest], offset + filled, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in _NOT_CACHED:
                    raise
                count = await _from_disk(number, rest, offset + filled)
        if count == 0:
            raise ServerError("a blob in this store is shorter than its size. Remedy: request the blob again")
        filled += count


async def _from_disk(number: int, data: memoryview, offset: int) -> int:
    """Read in a thread, in turn. Wait for the thread even when cancelled: it uses ``data`` and the open file."""
    reading = asyncio.ensure_future(_DISK.run(os.preadv, number, [data], offset))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        await asyncio.wait({reading})
        raise
