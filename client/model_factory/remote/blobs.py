"""Reads blobs: from the node's cache, else from the server into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import grpc
from blake3 import blake3

from model_factory.errors import IntegrityError, UnavailableError
from model_factory.remote.connection import Connection
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2, wire

RESUME_ATTEMPTS = 5
"""Breaks of one stream without a byte of progress in between before it is given up."""


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
    failures = 0
    while received < blob.size:
        start = received
        request = blob_pb2.ReadBlobRequest(digest=wire.to_digest(blob), offset_bytes=received)
        try:
            for response in connection.stub.ReadBlob(request):
                received += len(response.data)
                if received > blob.size:
                    raise IntegrityError(
                        f"the server at {connection.address} sends more than the {blob.size} bytes of {blob.digest}"
                    )
                file.write(response.data)
                hasher.update(response.data)
                on_bytes(len(response.data))
        except grpc.RpcError as error:
            failures = failures + 1 if received == start else 1
            if error.code() != grpc.StatusCode.UNAVAILABLE or failures >= RESUME_ATTEMPTS:
                raise wire.from_rpc_error(error, connection.address, lambda component, _path: component) from None
        else:
            if received == start:
                raise UnavailableError(
                    f"the server at {connection.address} ended blob {blob.digest} after {received} of {blob.size} bytes"
                )
    if hasher.hexdigest() != blob.digest:
        raise IntegrityError(f"the server at {connection.address} sent other bytes than blob {blob.digest}")
