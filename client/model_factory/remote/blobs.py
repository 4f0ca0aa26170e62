"""Reads blobs: from the node's cache, else from the server into it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import grpc
from blake3 import blake3

from model_factory.errors import IntegrityError, UnavailableError
from model_factory.remote.connection import Connection
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2, wire

RESUME_SECONDS = 20.0
"""Waited in all for a broken stream to go on before it is given up; a restart of the server takes less."""

_FIRST_WAIT_SECONDS = 0.1
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # the latter by a server that stops
_LONGEST_WAIT_SECONDS = 2.0


def fetch_blob(connection: Connection, cache: Store, blob: Blob, on_bytes: Callable[[int], None]) -> Path:
    """Return the file of a blob in the cache, transferring it if it is not there yet.

    One process of a node transfers; others that want the same blob wait for it. ``on_bytes`` is told of every chunk.

    Raises:
        UnavailableError: the server went away.
        IntegrityError: the server sent something else.
    """
    path = cache.find(blob)
    if path is not None:
        return path
    with cache.locked(blob.digest):
        path = cache.find(blob)
        if path is not None:
            return path
        with cache.stage() as (file, publish):
            _transfer(connection, blob, file, on_bytes)
            return publish(blob)


def read_blob(connection: Connection, cache: Store, blob: Blob, inline: dict[str, bytes]) -> bytes:
    """Return the content of a small blob, sent inline or fetched, and keep it in the cache."""
    cached = cache.read(blob)
    if cached is not None:
        return cached
    data = inline.get(blob.digest)
    if data is None:
        return fetch_blob(connection, cache, blob, lambda _count: None).read_bytes()
    if cache.put(data) != blob:
        raise IntegrityError(f"the server at {connection.address} sent other bytes than blob {blob.digest}")
    return data


def _transfer(connection: Connection, blob: Blob, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
    """Write the blob's bytes to ``file``, resuming where a broken stream stopped, and check them."""
    hasher = blake3()
    received = 0
    patience = _Patience()
    while received < blob.size:
        request = blob_pb2.ReadBlobRequest(digest=wire.to_digest(blob), offset_bytes=received)
        try:
            for data in connection.read_blob(request):
                if not data:
                    raise IntegrityError(f"the server at {connection.address} sends chunks with nothing in them")
                received += len(data)
                if received > blob.size:
                    raise IntegrityError(
                        f"the server at {connection.address} sends more than the {blob.size} bytes of {blob.digest}"
                    )
                file.write(data)
                hasher.update(data)
                on_bytes(len(data))
                patience.renew()
            if received < blob.size and not patience.wait():
                raise UnavailableError(
                    f"the server at {connection.address} ended blob {blob.digest} after {received} of {blob.size} bytes"
                )
        except grpc.RpcError as error:
            if error.code() not in _GONE or not patience.wait():
                raise wire.from_rpc_error(error, connection.address, lambda component, _path: component) from None
    if hasher.hexdigest() != blob.digest:
        raise IntegrityError(f"the server at {connection.address} sent other bytes than blob {blob.digest}")


class _Patience:
    """How long a broken stream is tried again without a byte of progress; the waits grow."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start over: there was progress."""
        self._left = RESUME_SECONDS
        self._next = _FIRST_WAIT_SECONDS

    def wait(self) -> bool:
        """Wait before another try; False if there is no patience left."""
        if self._left <= 0:
            return False
        time.sleep(self._next)
        self._left -= self._next
        self._next = min(2 * self._next, _LONGEST_WAIT_SECONDS)
        return True
