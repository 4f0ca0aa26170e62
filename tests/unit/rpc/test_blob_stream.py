"""Streams of blobs, read from the page cache and from the disk."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from model_factory.limits import BLOB_CHUNK_BYTES
from model_factory.v1 import wire
from model_factory_server.rpc.blob_stream import read_chunks


class Unbounded:
    """Memory without a bound."""

    is_scarce = False
    chunk_bytes = BLOB_CHUNK_BYTES

    @asynccontextmanager
    async def reserved(self, _size: int) -> AsyncIterator[None]:
        yield


@pytest.fixture
def file(tmp_path: Path) -> Any:
    path = tmp_path / "blob"
    path.write_bytes(os.urandom(BLOB_CHUNK_BYTES + 1000))
    with path.open("rb") as opened:
        yield opened


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """An empty page cache; a read from the disk sets the first event, and waits for the second event."""
    begun, go = threading.Event(), threading.Event()
    preadv = os.preadv

    def slow(number: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EAGAIN, "not at hand")
        begun.set()
        assert go.wait(20)
        return preadv(number, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    return begun, go


def test_uncached_pages_are_read_from_the_disk(file: Any, cold: tuple[threading.Event, threading.Event]) -> None:
    cold[1].set()

    async def read() -> bytes:
        length = file.seek(0, os.SEEK_END) - 10
        messages = read_chunks(file.fileno(), 10, length, Unbounded())
        return b"".join([bytes(wire.chunk_of(message)) async for message in messages])

    assert asyncio.run(read()) == Path(file.name).read_bytes()[10:]


def test_a_client_disconnects_while_the_disk_is_read(file: Any, cold: tuple[threading.Event, threading.Event]) -> None:
    """The RPC is cancelled without another error; the file stays open until the reading thread has finished."""
    begun, go = cold

    async def leave() -> None:
        reading = asyncio.ensure_future(anext(read_chunks(file.fileno(), 0, 2000, Unbounded())))
        assert await asyncio.to_thread(begun.wait, 20)
        reading.cancel()
        await asyncio.sleep(0.05)
        assert not reading.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(leave())
