"""A folder of blobs and records: the server's store, and the trainer node's cache.

Blobs are content, named by their digest. Records are small documents under a key: which blobs a build resulted in, say.
Both are written beside their place, flushed to disk and renamed into it, so a reader sees a whole one or none, and
several processes may use one folder at a time.

::

    blobs/ab/abcd...     content
    records/ab/abcd...   canonical JSON
    staging/             being written; a file nobody holds a lock on is left over from a process that died
    locks/               one empty file per thing being made
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model_factory.digest import check_digest, digest_of
from model_factory.documents import decode_document, encode_document
from model_factory.errors import IntegrityError, StoreError

_EMPTY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Blob:
    """Identity of content."""

    digest: str
    """blake3, 64 hexadecimal digits."""
    size: int
    """In bytes."""


class Store:
    """A folder of blobs and records; made if it does not exist."""

    def __init__(self, root: Path) -> None:
        """Open a store and remove what processes that died left in it.

        Raises:
            StoreError: the folder cannot be made or written to.
        """
        self.root = root.absolute()
        try:
            for name in ("blobs", "records", "staging", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self.sweep()
        except OSError as error:
            raise StoreError(f"cannot use {self.root} as a store: {error.strerror or error}") from error

    def find(self, blob: Blob) -> Path | None:
        """Return the file of a blob, or None if it is not here.

        Raises:
            IntegrityError: a file is here, but of another size.
        """
        path = self._path("blobs", blob.digest)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
        if size != blob.size:
            raise IntegrityError(f"{path} has {size} bytes where {blob.size} were promised; remove it and try again")
        return path

    def read(self, blob: Blob) -> bytes | None:
        """Return the content of a small blob, checked, or None if it is not here."""
        path = self.find(blob)
        if path is None:
            return None
        data = path.read_bytes()
        if digest_of(data) != blob.digest:
            raise IntegrityError(f"{path} does not match its digest; remove it and try again")
        return data

    def put(self, data: bytes) -> Blob:
        """Store bytes."""
        blob = Blob(digest_of(data), len(data))
        if self.find(blob) is None:
            with self.stage() as (file, publish):
                file.write(data)
                publish(blob)
        return blob

    @contextmanager
    def stage(self) -> Iterator[tuple[BinaryIO, Publish]]:
        """Open a new file to write a blob to; calling the second value with its identity publishes it.

        What is not published is removed. The caller answers for the digest: it is computed while writing.

        Raises:
            StoreError: the disk is full, say.
        """
        try:
            number, name = tempfile.mkstemp(dir=self.root / "staging")
            path = Path(name)
            with os.fdopen(number, "wb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
                try:
                    yield file, Publish(self, file, path)
                finally:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write to {self.root}: {error.strerror or error}") from error

    def record(self, key: str) -> Any | None:
        """Return the document under a key, or None."""
        try:
            data = self._path("records", key).read_bytes()
        except FileNotFoundError:
            return None
        return decode_document(data, f"record {key}")

    def put_record(self, key: str, document: Any) -> None:
        """Store a document under a key, in place of any that is there."""
        with self.stage() as (file, publish):
            file.write(encode_document(document))
            publish.to(self._path("records", key))

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold the lock of a key against all processes on this node; it goes when its holder dies."""
        path = self._path("locks", key)
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            yield

    def _path(self, folder: str, key: str) -> Path:
        check_digest(key)
        return self.root / folder / key[:2] / key

    def sweep(self) -> None:
        """Remove what processes that died were writing."""
        with suppress(FileNotFoundError):  # whoever removes a whole store must not stop its user here
            for path in (self.root / "staging").iterdir():
                with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    status = path.stat()
                    # A new empty one may belong to a writer that has not locked it yet.
                    if status.st_size > 0 or time.time() - status.st_mtime > _EMPTY_SECONDS:
                        path.unlink()


class Publish:
    """Turns a staged file into a blob or record."""

    def __init__(self, store: Store, file: BinaryIO, path: Path) -> None:
        self._store = store
        self._file = file
        self._path = path

    def __call__(self, blob: Blob) -> Path:
        """Publish the staged file as a blob and return its place."""
        return self.to(self._store._path("blobs", blob.digest))  # noqa: SLF001  one thing in two classes

    def to(self, place: Path) -> Path:
        """Publish the staged file at ``place``: flushed, renamed, the rename flushed."""
        self._file.flush()
        os.fsync(self._file.fileno())
        place.parent.mkdir(exist_ok=True)
        self._path.chmod(0o644)
        self._path.rename(place)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return place
