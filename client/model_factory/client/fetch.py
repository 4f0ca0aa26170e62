"""Reads blobs: from the node's cache, else the server's own file where this machine sees it, else over the wire."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import BinaryIO

import grpc

from model_factory.client.connection import Connection
from model_factory.client.retry import Backoff, is_disconnect
from model_factory.errors import IntegrityError, StoreError, UnavailableError
from model_factory.memory import reusing_memory
from model_factory.store import Blob, Holder, Store
from model_factory.store.hashing_writer import HashingWriter
from model_factory.store.shared_store import open_shared
from model_factory.v1 import blob_pb2, wire

log = logging.getLogger(__name__)

OnBytes = Callable[[int], None]
OnWait = Callable[[Holder | None], None]


def fetch_blob(
    connection: Connection,
    cache: Store,
    blob: Blob,
    on_bytes: OnBytes = lambda _count: None,
    on_wait: OnWait = lambda _holder: None,
) -> BinaryIO:
    """Return a blob as an open file, which keeps it in the cache while it or a mapping of it is open.

    One process of a node transfers; others that want the same blob wait for it. ``on_bytes`` is told of every chunk,
    ``on_wait`` whom one waits for.

    Raises:
        UnavailableError: the server went away.
        IntegrityError: the server sent something else.
        StoreError: the cache cannot be written.
    """
    file = cache.open(blob)
    if file is not None:
        return file
    with cache.locked(blob.digest, f"fetches {blob.size} bytes from {connection.address}", on_wait):
        file = cache.open(blob)
        if file is not None:
            return file
        for folder, is_trusted in connection.shared_stores():
            file = open_shared(folder, blob, is_trusted=is_trusted)
            if file is not None and cache.adopt(file, blob):
                file.close()
                file = cache.open(blob)
                try:
                    cache.keep_bound()
                except StoreError as error:  # nothing that is needed now
                    log.warning("%s stays larger than its bound: %s", cache.root, error)
            if file is not None:
                return file
        cache.make_room(blob.size)
        with cache.stage() as (staged, publish):
            _transfer(connection, blob, staged, on_bytes)
            publish(blob)
        file = cache.open(blob)
    if file is None:
        raise StoreError(f"blob {blob.digest} vanished from {cache.root} as soon as it was there")
    return file


def read_blob(connection: Connection, cache: Store, blob: Blob, inline: dict[str, bytes]) -> bytes:
    """Return the content of a small blob, sent inline or fetched, and keep it in the cache."""
    cached = cache.read(blob)
    if cached is not None:
        return cached
    data = inline.get(blob.digest)
    if data is None:
        with fetch_blob(connection, cache, blob) as file:
            return file.read()
    if cache.put(data) != blob:
        raise IntegrityError(f"the server at {connection.address} sent other bytes than blob {blob.digest}")
    return data


def _transfer(connection: Connection, blob: Blob, file: BinaryIO, on_bytes: OnBytes) -> None:
    """Write the blob's bytes to ``file``, resuming where a broken stream stopped, and check them."""
    writer = HashingWriter(file)
    with reusing_memory(), connection.errors():
        _receive(connection, blob, writer, on_bytes)
    if writer.digest() != blob.digest:
        raise IntegrityError(f"the server at {connection.address} sent other bytes than blob {blob.digest}")


def _receive(connection: Connection, blob: Blob, writer: HashingWriter, on_bytes: OnBytes) -> None:
    backoff = Backoff()
    while writer.size < blob.size:
        request = blob_pb2.ReadBlobRequest(digest=wire.to_digest(blob), offset_bytes=writer.size)
        try:
            for data in connection.read_blob(request):
                if not data:
                    raise IntegrityError(f"the server at {connection.address} sends chunks with nothing in them")
                if writer.size + len(data) > blob.size:
                    raise IntegrityError(
                        f"the server at {connection.address} sends more than the {blob.size} bytes of {blob.digest}"
                    )
                writer.write(data)
                on_bytes(len(data))
                backoff.renew()
            if writer.size < blob.size and not backoff.wait():
                ended = f"ended blob {blob.digest} after {writer.size} of {blob.size} bytes"
                raise UnavailableError(f"the server at {connection.address} {ended}")
        except grpc.RpcError as error:
            if not is_disconnect(error) or not backoff.wait():
                raise
