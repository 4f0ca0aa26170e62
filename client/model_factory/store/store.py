"""The store itself; see the package."""

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
from model_factory.store.locking import find_locking, open_file
from model_factory.store.locks import OnWait, held, sweep, writable_by_others
from model_factory.store.staging import Staged, scratch_folder, staged

log = logging.getLogger(__name__)

_CHECKED_NS = 1_000_000_000
"""Modification time of blobs whose content was checked: whatever writes to one afterwards changes it."""


_FOLDERS = ("blobs", "records", "staging", "locks", "scratch")

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_warned: set[Path] = set()
"""Stores of this process whose locks were warned of."""


class Store:
    """A folder of blobs and records; made if it does not exist."""

    def __init__(self, root: Path, max_bytes: int | None = None, *, setting: str = "MODEL_FACTORY_CACHE") -> None:
        """Open a store and remove what processes that died left in it.

        ``max_bytes`` bounds what its blobs take: before one is fetched or built, those used least recently go. What is
        in use stays; then there may be more. ``setting`` names the variable or option that chooses the folder, for
        errors. A store that cannot be written to can be read.

        Raises:
            StoreError: the folder can neither be made nor read.
        """
        self.max_bytes = max_bytes
        self._setting = setting
        with self._errors(f"cannot use {root} as a store"):
            self.root = root.absolute()
            self._make_or_read()
            self._locking = find_locking(self.root / "staging", self.root / "blobs")
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
            os.scandir(self.root / "blobs").close()  # a folder of another user may be closed to this one

    def _warn_of_locks(self) -> None:
        writable = os.access(self.root / "blobs", os.W_OK)
        if self._locking.evicts or not writable or self.root in _warned:
            return
        _warned.add(self.root)
        log.warning(
            "file locks in %s %s: no blob is evicted there, and the same blob may be fetched or built twice. Remedy: "
            "set %s to a folder on a local disk",
            self.root,
            "hold on this machine alone" if self._locking.claims else "do not work",
            self._setting,
        )

    def sweep(self) -> None:
        """Remove what processes that died were writing or had locked."""
        for name in ("staging", "locks", "scratch"):
            sweep(self.root / name, self._locking)

    def find(self, blob: Blob, *, may_hash: bool = True) -> Path | None:
        """Return the file of a blob, or None if it is not here. Counts as a use.

        A file that was written to after its content was checked, or that others may write to, is hashed, and removed if
        its content is not the blob's; without ``may_hash``, for callers who cannot wait, it is not found. One of
        another size than asked for is not removed: then it is the question that is wrong.
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
            if not is_checked and not (may_hash and self._unharmed(path)):
                return None
            if found.st_size != blob.size:
                return None
            with suppress(OSError):  # another user's file in a shared cache, or a file system that is read-only now
                os.utime(path, ns=(time.time_ns(), _CHECKED_NS))
        return path

    def open(self, blob: Blob) -> BinaryIO | None:
        """Open a blob for reading, or return None if it is not here.

        It is in use, and so not evicted, until the file is closed and every mapping of it is gone.
        """
        path = self.find(blob)
        if path is None:
            return None
        with self._errors(f"cannot read {path}"):
            try:
                file = open_file(path, os.O_RDONLY, "rb", 0)
            except FileNotFoundError:  # evicted meanwhile
                return None
            try:
                self._locking.share(file.fileno())
            except OSError:
                file.close()
                raise
        return file

    def read(self, blob: Blob) -> bytes | None:
        """Return the content of a small blob, checked, or None if it is not here or damaged."""
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
        """Store bytes."""
        blob = Blob.of(data)
        if self.find(blob) is None:
            with self.stage() as (file, publish):
                file.write(data)
                publish(blob)
        return blob

    @contextmanager
    def stage(self) -> Iterator[tuple[BinaryIO, Callable[[Blob], Path]]]:
        """Open a new file to write a blob to; calling the second value with its identity publishes it.

        What is not published is removed. The caller answers for the digest: it is computed while writing.

        Raises:
            StoreError: the disk is full, say.
        """
        with self._errors(f"cannot write to {self.root}"), self._staged() as new:

            def publish(blob: Blob) -> Path:
                place = self._path("blobs", blob.digest)
                new.publish(place, _CHECKED_NS)
                return place

            yield new.file, publish

    @contextmanager
    def _staged(self) -> Iterator[Staged]:
        self._make()  # somebody may have removed them all
        with staged(self.root / "staging", self._locking) as new:
            yield new

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder for what is not to outlive this process, nor, once the store is opened again, its death."""
        with ExitStack() as stack:
            with self._errors(f"cannot write to {self.root}"):
                folder = stack.enter_context(scratch_folder(self.root / "scratch", self._locking))
            yield folder

    def adopt(self, file: BinaryIO, blob: Blob) -> bool:
        """Make a blob of an open file that was checked to be it, without copying; False where that cannot be done.

        It cannot where the file lies on another file system, or belongs to somebody else who does not allow it.
        """
        place, number = self._path("blobs", blob.digest), file.fileno()
        try:
            place.parent.mkdir(exist_ok=True)
            # Python links the link itself unless a folder is named, which a path from the root then makes no use of.
            os.link(f"/proc/self/fd/{number}", place, src_dir_fd=number, follow_symlinks=True)
        except FileExistsError:
            return True
        except OSError:
            return False
        with suppress(OSError):
            os.utime(place, ns=(time.time_ns(), _CHECKED_NS))
        return True

    def record(self, key: str) -> Any | None:
        """Return the document under a key, or None; a record that is damaged, or of another key, is removed."""
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
        """Store a document under a key, in place of any that is there."""
        place = self._path("records", key)
        with self._errors(f"cannot write to {self.root}"), self._staged() as new:
            new.file.write(encode_document({"key": key, "document": document}))
            new.publish(place)

    @contextmanager
    def locked(self, key: str, doing: str = "works on it", on_wait: OnWait = lambda _holder: None) -> Iterator[None]:
        """Hold the lock of a key against all processes on this node; it goes when its holder dies.

        ``doing`` is what others are told who wait for it; ``on_wait`` is told whom one waits for.
        """
        check_digest(key)
        with ExitStack() as stack:
            with self._errors(f"cannot lock {key} in {self.root}"):
                self._make()  # somebody may have removed them all
                stack.enter_context(held(self.root / "locks" / key, self._locking, doing, on_wait))
            yield

    def make_room(self, size: int, staged: int = 0) -> list[Entry]:
        """Evict what is not in use, least recently used first, so that ``size`` more bytes fit the bound and the disk.

        Without a bound nothing is evicted. ``staged`` of the bytes are on the disk already.

        Raises:
            StoreError: that many never fit; then nothing was evicted.
        """
        if self.max_bytes is None:
            return []
        free = self.free_bytes() + staged
        taken = sum(entry.size for entry in self.entries())
        most = min(self.max_bytes, taken + free)
        if size > most:
            raise StoreError(
                f"{size} bytes do not fit into {self.root}: it may hold {self.max_bytes}, and the disk has {free} free "
                f"beside its {taken}. Remedy: a higher bound, or a larger disk: {self._setting} names the folder"
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
        """Evict what is beyond the bound, as far as it is not in use."""
        if self.max_bytes is not None:
            self.prune(self.max_bytes)

    def prune(self, max_bytes: int) -> list[Entry]:
        """Evict blobs that are not in use, least recently used first, down to ``max_bytes``; return the evicted.

        Raises:
            StoreError: blobs would have to go, and no lock tells whether they are in use.
        """
        found = self.entries()
        taken = sum(entry.size for entry in found)
        if taken > max_bytes and not self._locking.evicts:
            raise StoreError(
                f"{self.root} holds {taken} bytes of blobs, {max_bytes} may stay, and no blob is evicted: file locks "
                "there do not tell whether a blob is in use. Remedy: stop every process that uses the folder and "
                f"remove files under {self.root / 'blobs'}, or set {self._setting} to a folder on a local disk"
            )
        with self._errors(f"cannot clear {self.root}"):
            removed = contents.make_room(found, max_bytes)
        for entry in removed:
            log.info("evicted %s (%d bytes)", entry.digest, entry.size)
        return removed

    def entries(self) -> list[Entry]:
        """The blobs, most recently used first.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self._errors(f"cannot read {self.root}"):
            found = contents.entries(self.root / "blobs", self._locking)
            return sorted(found, key=lambda entry: entry.used, reverse=True)

    def verify(self, digest: str) -> bool:
        """Hash a blob; one that is damaged is removed."""
        path = self._path("blobs", digest)
        with self._errors(f"cannot read {path}"):
            return self._unharmed(path)

    def _unharmed(self, path: Path) -> bool:
        try:
            digest = digest_of_file(path)
        except FileNotFoundError:  # evicted meanwhile
            return False
        if digest != path.name:
            self._remove_damaged(path, "does not match its digest")
        return digest == path.name

    def _path(self, folder: str, key: str) -> Path:
        check_digest(key)
        return self.root / folder / key[:2] / key

    def _remove_damaged(self, path: Path, how: str) -> None:
        log.warning("%s %s; it is removed, to be made again", path, how)
        with self._errors(f"{path} {how}, and cannot be removed"):  # it would be found again
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
    """Return the document of a record, which names its key: a copy in another place is no record.

    Raises:
        FormatError: the record is damaged, or of another key.
    """
    record = decode_document(data, f"record {key}")
    if not isinstance(record, dict) or record.keys() != {"key", "document"}:
        raise FormatError("it is not a record")
    if record["key"] != key:
        raise FormatError("it is the record of another key")
    return record["document"]
