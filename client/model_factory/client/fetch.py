"""Fetch a blob: from the node cache, else from the server's store on a shared disk, else over the network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import BinaryIO

import grpc

from model_factory.client.connection import Connection
from model_factory.client.retry import Backoff, is_disconnect
from model_factory.digest import digest_of
from model_factory.errors import IntegrityError, StoreError, UnavailableError
from model_factory.limits import KIB
from model_factory.memory import reusing_memory
from model_factory.store import Blob, Holder, Store
from model_factory.store.hashing_writer import HashingWriter
from model_factory.store.shared_store import open_shared
from model_factory.v1 import blob_pb2, wire

log = logging.getLogger(__name__)

PROGRESS_BYTES = 64 * KIB
"""Bytes of a blob that count as progress: a server that breaks each stream after a byte is given up."""

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
    *,
    is_private: bool = False,
) -> BinaryIO:
    """Return a blob as an open file. The blob stays in the cache while the file or a mapping of the file is open.

    One process of a node transfers a blob; other processes that need the same blob wait. Unused blobs are evicted for
    bytes that have arrived, never for the size that a server claims. Other users cannot read a private blob.

    Raises:
        UnavailableError: the server went away.
        IntegrityError: the server sent other bytes, twice.
        MissingBlobError: the server does not have the blob, or found its file damaged.
        StoreError: the cache cannot be written.
    """
    file = cache.open(blob)
    if file is not None:
        return file
    # A server that sends slowly holds the lock, so processes that use other servers do not wait for this server.
    key = digest_of(f"{blob.digest} from {connection.address}".encode())
    with cache.locked(key, f"fetches {blob.size} bytes from {connection.address}", on_wait):
        file = cache.open(blob) or _open_in_shared_store(connection, cache, blob)
        if file is not None:
            return file
        cache.check_room(blob.size)
        transfer = _Transfer(connection, cache, blob, on_bytes)
        try:
            file = cache.add(blob, transfer.write, is_private=is_private)
        except _OtherBytesError as error:  # the server's disk may have damaged the file
            log.warning("%s; the server is asked to verify the blob", error)
            file = cache.add(blob, transfer.write_verified, is_private=is_private)
        _keep_bound(cache)
    return file


def read_blob(
    connection: Connection, cache: Store, blob: Blob, inline: Mapping[str, bytes], *, is_private: bool = False
) -> bytes:
    """Return the content of a small blob from the cache, from ``inline`` (by digest) or from the server; cache it.

    Other users of the cache cannot read a private blob.

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
        with fetch_blob(connection, cache, blob, is_private=is_private) as file:
            return file.read()
    if Blob.of(data) != blob:
        raise _other_bytes(connection, blob)
    cache.add(blob, lambda file: file.write(data), is_private=is_private).close()
    return data


def _open_in_shared_store(connection: Connection, cache: Store, blob: Blob) -> BinaryIO | None:
    """Open the blob in a server's store that this node sees; add the file to the cache as a hard link if possible."""
    for folder, is_trusted in connection.shared_stores():
        file = open_shared(folder, blob, is_trusted=is_trusted)
        if file is not None:
            if cache.adopt(file, blob):
                _keep_bound(cache)
            return file
    return None


def _keep_bound(cache: Store) -> None:
    """Evict unused blobs after a new blob was verified: a size that a server claims makes nothing go."""
    try:
        cache.keep_bound()
    except StoreError as error:  # no obstacle to this build
        log.warning("%s stays larger than its bound: %s", cache.root, error)


class _OtherBytesError(IntegrityError):
    """A whole blob arrived, with another digest."""


class _Transfer:
    """The transfer of a blob from a server to a file."""

    def __init__(self, connection: Connection, cache: Store, blob: Blob, on_bytes: OnBytes) -> None:
        self._connection = connection
        self._cache = cache
        self._blob = blob
        self._on_bytes = on_bytes

    def write(self, file: BinaryIO) -> None:
        """Write the blob's bytes to ``file`` and verify the digest."""
        self._write(file, self._on_bytes, verify=False)

    def write_verified(self, file: BinaryIO) -> None:
        """Write the blob's bytes, after the server has verified its own file."""
        self._write(file, lambda _count: None, verify=True)

    def _write(self, file: BinaryIO, on_bytes: OnBytes, *, verify: bool) -> None:
        writer = HashingWriter(file)
        with reusing_memory(), self._connection.errors():
            self._receive(writer, on_bytes, verify=verify)
        if writer.digest() != self._blob.digest:
            raise _other_bytes(self._connection, self._blob)

    def _receive(self, writer: HashingWriter, on_bytes: OnBytes, *, verify: bool) -> None:
        """Receive all bytes; a broken stream is resumed at the offset where the stream broke."""
        backoff, renewed_at = Backoff(), 0
        blob, server = self._blob, f"the server at {self._connection.address}"
        while writer.size < blob.size:
            request = blob_pb2.ReadBlobRequest(
                digest=wire.to_digest(blob), offset_bytes=writer.size, verify=verify and not writer.size
            )
            try:
                for data in self._connection.read_blob(request):
                    if not data:
                        raise IntegrityError(f"{server} sent an empty chunk of {blob.digest}")
                    if writer.size + len(data) > blob.size:
                        raise IntegrityError(f"{server} sent more than the {blob.size} bytes of {blob.digest}")
                    self._cache.make_disk_room(len(data))
                    writer.write(data)
                    on_bytes(len(data))
                    if writer.size - renewed_at >= PROGRESS_BYTES:
                        backoff.renew()
                        renewed_at = writer.size
                if writer.size < blob.size and not backoff.wait():
                    ended = f"ended blob {blob.digest} after {writer.size} of {blob.size} bytes"
                    raise UnavailableError(f"{server} {ended}")
            except grpc.RpcError as error:
                if not is_disconnect(error) or not backoff.wait():
                    raise


def _other_bytes(connection: Connection, blob: Blob) -> IntegrityError:
    return _OtherBytesError(f"the server at {connection.address} sent other bytes than blob {blob.digest}")
