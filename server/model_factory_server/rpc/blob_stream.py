"""Blob chunks as the messages they are sent in: read from the file straight into their place in the message.

On loopback and fast networks a blob stream is bound by how often each byte is copied, and by page faults: see
docs/performance.md. So a message is written into one buffer again and again, without a copy of its own.
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

_NOT_AT_HAND = (errno.EAGAIN, errno.EOPNOTSUPP)


async def read_chunks(number: int, offset: int, length: int) -> AsyncIterator[bytes]:
    """Yield ``length`` bytes from ``offset`` of an open file as serialised ``ReadBlobResponse`` messages.

    Raises:
        ServerError: the file is shorter than that.
    """
    end, size = offset + length, 0
    while offset < end:
        if size != (size := min(BLOB_CHUNK_BYTES, end - offset)):
            prefix = wire.chunk_prefix(size)
            buffer = io.BytesIO(prefix + bytes(size))
        # A writable view copies the buffer first if the message sent before is still alive, and not otherwise.
        with buffer.getbuffer() as message, message[len(prefix) :] as data:
            await _fill(number, data, offset)
        offset += size
        yield buffer.getvalue()


async def _fill(number: int, data: memoryview, offset: int) -> None:
    """Read from a file until ``data`` is full: at once what is in the page cache, in a thread what is on disk."""
    filled = 0
    while filled < len(data):
        with data[filled:] as rest:
            try:
                count = os.preadv(number, [rest], offset + filled, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in _NOT_AT_HAND:
                    raise
                count = await _from_disk(number, rest, offset + filled)
        if count == 0:
            raise ServerError("a blob in this store ended early; ask for it again")
        filled += count


async def _from_disk(number: int, data: memoryview, offset: int) -> int:
    """Read in a thread. It is waited for also if the client has gone: it writes to ``data``, from an open file."""
    reading = asyncio.ensure_future(asyncio.to_thread(os.preadv, number, [data], offset))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        await asyncio.wait({reading})
        raise
