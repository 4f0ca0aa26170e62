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

from model_factory.errors import ServerError
from model_factory.limits import BLOB_CHUNK_BYTES
from model_factory.v1 import wire

_NOT_CACHED = (errno.EAGAIN, errno.EOPNOTSUPP)


async def read_chunks(number: int, offset: int, length: int) -> AsyncIterator[bytes]:
    """Yield ``length`` bytes from ``offset`` of an open file as serialised ``ReadBlobResponse`` messages.

    Raises:
        ServerError: the file is too short.
    """
    end, size = offset + length, 0
    while offset < end:
        if size != (size := min(BLOB_CHUNK_BYTES, end - offset)):
            prefix = wire.chunk_prefix(size)
            buffer = io.BytesIO(prefix + bytes(size))
        # A writable view copies the buffer only while the previous message is still alive.
        with buffer.getbuffer() as message, message[len(prefix) :] as data:
            await _fill(number, data, offset)
        offset += size
        yield buffer.getvalue()


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
    """Read in a thread. Wait for the thread even when cancelled: the thread uses ``data`` and the open file."""
    reading = asyncio.ensure_future(asyncio.to_thread(os.preadv, number, [data], offset))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        await asyncio.wait({reading})
        raise
