"""The class ``Store``; the package describes the layout of the folder."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from model_factory.digest import Blob, check_digest, digest_of, digest_of_file
from model_factory.documents import decode_document, encode_document
from model_factory.errors import FormatError, StoreError
from model_factory.store import contents
from model_factory.store.contents import Entry
from model_factory.store.file_locks import find_file_locks, open_file, writable_by_others
from model_factory.store.leftovers import sweep
from model_factory.store.named_locks import OnWait, hold_lock
from model_factory.store.staging import Staged, scratch_folder, staged

log = logging.getLogger(__name__)

_CHECKED_NS = 1_000_000_000
"""Modification time of blobs with verified content; any later write changes the time."""

_FOLDERS = ("blobs", "records", "staging", "locks", "scratch")

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_warned: set[Path] = set()
"""Stores for which this process has logged a warning about file locks."""


class Store:
    """A folder of blobs and records, created if missing.

    >>> import tempfile
    >>> store = Store(Path(tempfile.mkdtemp()))
    >>> blob = store.put(b"weights")
    >>> store.read(blob)
    b'weights'
    """

    def __init__(self, root: Path, max_bytes: int | None = None, *, setting: str = "MODEL_FACTORY_CACHE") -> None:
        """Open a store and remove leftovers of processes that died.

        A store without permission to write is opened for reading.

        Args:
            root: The folder.
            max_bytes: Bound on the size of all blobs. Before a blob is fetched or built, unused blobs are evicted,
                least recently used first. Blobs in use stay, even above the bound. None: no bound.
            setting: Name of the variable or option that chooses the folder, for error messages.

        Raises:
            StoreError: the folder can neither be created nor read.
        """
        self.max_bytes = max_bytes
        self._setting = setting
        with self._errors(f"cannot use {root} as a store"):
            self.root = root.absolute()
            self._make_or_read()
            self._locks = find_file_locks(self.root / "staging", self.root / "blobs")
        self._warn_of_locks()
        self.sweep()

    def _make(self) -> None:
        for name in _FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def _make_or_read(self) -> None:
        try:
            self._make()
        except OSError:
            if not os.access(self.root / "blobs", os.R_OK | os.X_OK):
                raise
        else:
            os.scandir(self.root / "blobs").close()  # this user may be unable to read the folder of another user

    def _warn_of_locks(self) -> None:
        writable = os.access(self.root / "blobs", os.W_OK)
        if self._locks.allows_eviction or not writable or self.root in _warned:
            return
        _warned.add(self.root)
        log.warning(
            "file locks in %s %s: no blob is evicted there, and the same blob may be fetched or built twice. Remedy: "
            "set %s to a folder on a local disk",
            self.root,
            "work on this machine alone" if self._locks.exclusive else "do not work",
            self._setting,
        )

    def sweep(self) -> None:
        """Remove files and locks of processes that died."""
        for name in ("staging", "locks", "scratch"):
            sweep(self.root / name, self._locks)

    def find(self, blob: Blob, *, may_hash: bool = True) -> Path | None:
        """Return the path of a blob, or None if the store does not have the blob. Counts as a use.

        A file that was changed after verification, or that other users can write to, is hashed, and removed if the
        digest differs. With ``may_hash=False``, for callers that must not wait, None is returned for this file. A blob
        of another size than ``blob.size`` stays: the size in the request is wrong.
        """
        path = self._path("blobs", blob.digest)
        with self._errors(f"cannot read {path}"):
            try:
                found = path.lstat()
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(found.st_mode):
                return None
            is_checked = found.st_mtime_ns == _CHECKED_NS and not writable_by_others(found)
            if not is_checked and not (may_hash and self._verify_file(path)):
                return None
            if found.st_size != blob.size:
                return None
            with suppress(OSError):  # the file of another user in a shared cache, or a read-only file system
                os.utime(path, ns=(time.time_ns(), _CHECKED_NS))
        return path

    def open(self, blob: Blob) -> BinaryIO | None:
        """Open a blob for reading, or return None if the store does not have the blob.

        The blob counts as in use, and is not evicted, until the file and every mapping of the file are closed.
        """
        path = self.find(blob)
        if path is None:
            return None
        with self._errors(f"cannot read {path}"):
            try:
                file = open_file(path, os.O_RDONLY, "rb", 0)
            except FileNotFoundError:  # evicted in the meantime
                return None
            try:
                self._locks.lock_shared(file.fileno())
            except OSError:
                file.close()
                raise
        return file

    def read(self, blob: Blob) -> bytes | None:
        """Return the verified content of a small blob, or None if the blob is missing or damaged."""
        path = self.find(blob)
        if path is None:
            return None
        with self._errors(f"cannot read {path}"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
            if digest_of(data) != blob.digest:
                self._remove_damaged(path, "does not match its digest")
                return None
        return data

    def put(self, data: bytes) -> Blob:
        """Store bytes as a blob.

        Raises:
            StoreError: the folder cannot be written, for example without space on the disk.
        """
        blob = Blob.of(data)
        if self.find(blob) is None:
            with self.stage() as (file, publish):
                file.write(data)
                publish(blob)
        return blob

    @contextmanager
    def stage(self) -> Iterator[tuple[BinaryIO, Callable[[Blob], Path]]]:
        """Open a new file for a blob; call the second value with the blob's identity to publish the file.

        A file that is not published is removed. The caller computes the digest during the write; the store does not
        verify the digest.

        Raises:
            StoreError: the folder cannot be written, for example without space on the disk.
        """
        with self._errors(f"cannot write to {self.root}"), self._staged() as new:

            def publish(blob: Blob) -> Path:
                place = self._path("blobs", blob.digest)
                new.publish(place, _CHECKED_NS)
                return place

            yield new.file, publish

    @contextmanager
    def _staged(self) -> Iterator[Staged]:
        self._make()  # another process may have removed the folders
        with staged(self.root / "staging", self._locks) as new:
            yield new

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Create a folder for the duration of the block; after a crash, the next store removes the folder."""
        with ExitStack() as stack:
            with self._errors(f"cannot write to {self.root}"):
                folder = stack.enter_context(scratch_folder(self.root / "scratch", self._locks))
            yield folder

    def adopt(self, file: BinaryIO, blob: Blob) -> bool:
        """Add an open file with the verified content of a blob as a hard link, without a copy; return False on failure.

        A hard link is impossible for a file on another file system, or for a file of another user without permission.
        """
        place, fd = self._path("blobs", blob.digest), file.fileno()
        try:
            place.parent.mkdir(exist_ok=True)
            # Without src_dir_fd, Python links the symbolic link itself. An absolute path ignores the descriptor.
            os.link(f"/proc/self/fd/{fd}", place, src_dir_fd=fd, follow_symlinks=True)
        except FileExistsError:
            return True
        except OSError:
            return False
        with suppress(OSError):
            os.utime(place, ns=(time.time_ns(), _CHECKED_NS))
        return True

    def record(self, key: str) -> Any | None:
        """Return the document under a key, or None. A damaged record, or the record of another key, is removed."""
        path = self._path("records", key)
        with self._errors(f"cannot read {path}"):
            try:
                return _document_of(key, path.read_bytes())
            except FileNotFoundError:
                return None
            except FormatError as error:
                self._remove_damaged(path, f"is damaged: {error}")
                return None

    def put_record(self, key: str, document: Any) -> None:
        """Store a document under a key; replaces the previous document."""
        place = self._path("records", key)
        with self._errors(f"cannot write to {self.root}"), self._staged() as new:
            new.file.write(encode_document({"key": key, "document": document}))
            new.publish(place)

    @contextmanager
    def locked(self, key: str, doing: str = "works on it", on_wait: OnWait = lambda _holder: None) -> Iterator[None]:
        """Hold the lock of a key against all processes on this node; the kernel releases the lock of a dead process.

        Waiting processes see the text ``doing``. ``on_wait`` is called with the holder during a long wait.
        """
        check_digest(key)
        with ExitStack() as stack:
            with self._errors(f"cannot lock {key} in {self.root}"):
                self._make()  # another process may have removed the folders
                stack.enter_context(hold_lock(self.root / "locks" / key, self._locks, doing, on_wait))
            yield

    def make_room(self, size: int, staged: int = 0) -> list[Entry]:
        """Evict unused blobs, least recently used first, so that ``size`` more bytes fit the bound and the disk.

        Without a bound nothing is evicted. ``staged`` bytes of ``size`` are on the disk already.

        Raises:
            StoreError: ``size`` exceeds the bound or the disk; nothing was evicted.
        """
        if self.max_bytes is None:
            return []
        free = self.free_bytes() + staged
        taken = sum(entry.size for entry in self.entries())
        most = min(self.max_bytes, taken + free)
        if size > most:
            raise StoreError(
                f"{size} bytes do not fit into {self.root}: the store may hold {self.max_bytes} bytes, holds {taken}, "
                f"and the disk has {free} bytes free. Remedy: raise the bound, or set {self._setting} to a folder on a "
                "larger disk"
            )
        return self.prune(most - size)

    def free_bytes(self) -> int:
        """Free space of the disk, in bytes.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self._errors(f"cannot read {self.root}"):
            return shutil.disk_usage(self.root).free

    def keep_bound(self) -> None:
        """Evict unused blobs until the store is within the bound."""
        if self.max_bytes is not None:
            self.prune(self.max_bytes)

    def prune(self, max_bytes: int) -> list[Entry]:
        """Evict unused blobs, least recently used first, down to ``max_bytes``; return the evicted blobs.

        Raises:
            StoreError: the store holds more, and file locks do not show whether a blob is in use.
        """
        found = self.entries()
        taken = sum(entry.size for entry in found)
        if taken > max_bytes and not self._locks.allows_eviction:
            raise StoreError(
                f"{self.root} holds {taken} bytes of blobs, {max_bytes} may stay, and no blob is evicted: file locks "
                "there do not show whether a blob is in use. Remedy: stop every process that uses the folder and "
                f"remove files under {self.root / 'blobs'}, or set {self._setting} to a folder on a local disk"
            )
        with self._errors(f"cannot clear {self.root}"):
            removed = contents.make_room(found, max_bytes)
        for entry in removed:
            log.info("evicted %s (%d bytes)", entry.digest, entry.size)
        return removed

    def entries(self) -> list[Entry]:
        """List the blobs, most recently used first.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self._errors(f"cannot read {self.root}"):
            found = contents.entries(self.root / "blobs", self._locks)
            return sorted(found, key=lambda entry: entry.used, reverse=True)

    def verify(self, digest: str) -> bool:
        """Hash a blob and return whether the digest matches; a damaged blob is removed."""
        path = self._path("blobs", digest)
        with self._errors(f"cannot read {path}"):
            return self._verify_file(path)

    def _verify_file(self, path: Path) -> bool:
        try:
            digest = digest_of_file(path)
        except FileNotFoundError:  # evicted in the meantime
            return False
        if digest != path.name:
            self._remove_damaged(path, "does not match its digest")
        return digest == path.name

    def _path(self, folder: str, key: str) -> Path:
        check_digest(key)
        return self.root / folder / key[:2] / key

    def _remove_damaged(self, path: Path, how: str) -> None:
        log.warning("%s %s; the file is removed, and made again when needed", path, how)
        with self._errors(f"{path} {how}, and cannot be removed"):  # else the next reader finds the same damage
            path.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            need = (
                "with more space" if error.errno in _NO_SPACE else "that this user may read and write, on a local disk"
            )
            remedy = f"set {self._setting} to a folder {need}"
            raise StoreError(f"{what}: {error.strerror or error}. Remedy: {remedy}") from error


def _document_of(key: str, data: bytes) -> Any:
    """Return the document of a record. A record contains its key, so that a copy under another key is refused.

    Raises:
        FormatError: the record is damaged, or has another key.
    """
    record = decode_document(data, f"record {key}")
    if not isinstance(record, dict) or record.keys() != {"key", "document"}:
        raise FormatError("the file is not a record: expected exactly the keys 'key' and 'document'")
    if record["key"] != key:
        raise FormatError("the record has another key")
    return record["document"]
