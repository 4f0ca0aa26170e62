"""Fetch a blob: from the node cache, else from the server's store on a shared disk, else over the network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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
"""Called with the size of every chunk received, in bytes."""

OnWait = Callable[[Holder | None], None]
"""Called with the process that transfers the same blob; None if unknown."""


def fetch_blob(
    connection: Connection,
    cache: Store,
    blob: Blob,
    on_bytes: OnBytes = lambda _count: None,
    on_wait: OnWait = lambda _holder: None,
) -> BinaryIO:
    """Return a blob as an open file. The blob stays in the cache while the file or a mapping of the file is open.

    One process of a node transfers a blob; other processes that need the same blob wait.

    Raises:
        UnavailableError: the server went away.
        IntegrityError: the server sent other bytes.
        StoreError: the cache cannot be written.
    """
    file = cache.open(blob)
    if file is not None:
        return file
    with cache.locked(blob.digest, f"fetches {blob.size} bytes from {connection.address}", on_wait):
        file = cache.open(blob) or _open_in_shared_store(connection, cache, blob)
        if file is not None:
            return file
        cache.make_room(blob.size)
        with cache.stage() as (staged, publish):
            _transfer(connection, blob, staged, on_bytes)
            publish(blob)
        file = cache.open(blob)
    if file is None:
        raise StoreError(f"blob {blob.digest} was removed from {cache.root} directly after the download")
    return file


def read_blob(connection: Connection, cache: Store, blob: Blob, inline: Mapping[str, bytes]) -> bytes:
    """Return the content of a small blob from the cache, from ``inline`` (by digest) or from the server; cache it.

    Raises:
        UnavailableError: the server went away.
        IntegrityError: the server sent other bytes.
        StoreError: the cache cannot be written.
    """
    cached = cache.read(blob)
    if cached is not None:
        return cached
    data = inline.get(blob.digest)
    if data is None:
        with fetch_blob(connection, cache, blob) as file:
            return file.read()
    if cache.put(data) != blob:
        raise _other_bytes(connection, blob)
    return data


def _open_in_shared_store(connection: Connection, cache: Store, blob: Blob) -> BinaryIO | None:
    """Open the blob in a server's store that this node sees; add the file to the cache as a hard link if possible."""
    for folder, is_trusted in connection.shared_stores():
        file = open_shared(folder, blob, is_trusted=is_trusted)
        if file is not None and cache.adopt(file, blob):
            file.close()
            file = cache.open(blob)
            try:
                cache.keep_bound()
            except StoreError as error:  # no obstacle to this build
                log.warning("%s stays larger than its bound: %s", cache.root, error)
        if file is not None:
            return file
    return None


def _transfer(connection: Connection, blob: Blob, file: BinaryIO, on_bytes: OnBytes) -> None:
    """Write the blob's bytes to ``file`` and verify the digest."""
    writer = HashingWriter(file)
    with reusing_memory(), connection.errors():
        _receive(connection, blob, writer, on_bytes)
    if writer.digest() != blob.digest:
        raise _other_bytes(connection, blob)


def _receive(connection: Connection, blob: Blob, writer: HashingWriter, on_bytes: OnBytes) -> None:
    """Receive all bytes of a blob; a broken stream is resumed at the offset where the stream broke."""
    backoff = Backoff()
    while writer.size < blob.size:
        request = blob_pb2.ReadBlobRequest(digest=wire.to_digest(blob), offset_bytes=writer.size)
        try:
            for data in connection.read_blob(request):
                if not data:
                    raise IntegrityError(f"the server at {connection.address} sent an empty chunk of {blob.digest}")
                if writer.size + len(data) > blob.size:
                    raise IntegrityError(
                        f"the server at {connection.address} sent more than the {blob.size} bytes of {blob.digest}"
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


def _other_bytes(connection: Connection, blob: Blob) -> IntegrityError:
    return IntegrityError(f"the server at {connection.address} sent other bytes than blob {blob.digest}")
