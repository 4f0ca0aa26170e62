"""The class ``Store``; the package describes the layout of the folder."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from model_factory.digest import Blob, check_digest, digest_of
from model_factory.errors import FormatError, StoreError
from model_factory.store import contents
from model_factory.store.contents import CHECKED_NS, BlobFiles, Entry, Found, file_names, own_name
from model_factory.store.eviction import Eviction
from model_factory.store.file_locks import closed_on_error, find_file_locks
from model_factory.store.folders import PRIVATE_MODE, StoreFolders
from model_factory.store.named_locks import OnWait, hold_lock
from model_factory.store.ownership import copy_bytes, copy_to_memory, is_blob, owners_of
from model_factory.store.records import RecordFiles
from model_factory.store.staging import Staged, scratch_folder, staged, sweep

log = logging.getLogger(__name__)

_TAKEN = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
}
"""Errors for a name that another user has taken in a shared folder."""

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
            max_bytes: Bound on the size of this user's blobs and records; a file counts with whole blocks, and at least
                16 KiB. Unused files are evicted, least recently used first: before a blob is built, and when new files
                exceed the bound; a fetched blob is verified first. Blobs in use stay, even above the bound. None: no
                bound.
            setting: Name of the variable or option that chooses the folder, for error messages.

        Raises:
            StoreError: the folder can neither be created nor read.
        """
        self.max_bytes = max_bytes
        self.on_growth: Callable[[int], None] = self.grow
        """Called with the size of each file before the file is published."""
        self._setting = setting
        self._folders = StoreFolders(root, setting)
        with self._folders.errors(f"cannot use {root} as a store"), ExitStack() as stack:
            self._folders.root = self.root = root.absolute()
            self._folders.make_or_read()
            blobs, staging = stack.enter_context(self._folders.open("blobs")), None
            with suppress(FileNotFoundError):  # a store that this user can only read
                staging = stack.enter_context(self._folders.open("staging"))
            self._locks = find_file_locks(staging, blobs)
            self._owners = owners_of(self.root, staging)
        self._files = BlobFiles(self._folders, self._owners)
        self._records = RecordFiles(self._folders, self._owners)
        self._eviction = Eviction(self.root, self._locks, self._owners.me, max_bytes, setting)
        self._warn_of_locks()
        self.sweep()

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
            with suppress(OSError), self._folders.open(name) as place:
                sweep(place, self._locks, self._owners.me)

    def find(self, blob: Blob, *, may_hash: bool = True) -> Path | None:
        """Return the path of a blob, or None if the store does not have the blob. Counts as a use.

        A file without the mark of verified content, or that other users can change (see ``ownership.py``), is hashed,
        and removed if the digest differs. With ``may_hash=False``, for callers that must not wait, None is returned for
        this file. A blob of another size than ``blob.size`` stays: the size in the request is wrong.
        """
        found = self._find(blob, may_hash=may_hash)
        if found is None:
            return None
        with found.file:
            if not found.is_kept and not (may_hash and is_blob(found.file, blob)):
                if may_hash:
                    self.verify(blob.digest)  # removes the file where possible
                return None
        return self._path(blob.digest).with_name(found.name)

    def _find(self, blob: Blob, *, may_hash: bool = True) -> Found | None:
        check_digest(blob.digest)
        with self._folders.errors(f"cannot read blob {blob.digest} in {self.root}"):
            return self._files.find(blob, may_hash=may_hash)

    def open(self, blob: Blob) -> BinaryIO | None:
        """Open a blob for reading, or return None if the store does not have the blob.

        The blob counts as in use, and is not evicted, until the file and every mapping of the file are closed. Nobody
        but trusted users can change the bytes of the file (see ``ownership.py``).
        """
        found = self._find(blob)
        if found is None:
            return None
        if not found.is_kept:
            with found.file:
                return self._private_copy(found.file, blob)
        with self._folders.errors(f"cannot read blob {blob.digest} in {self.root}"), closed_on_error(found.file):
            self._locks.lock_shared(found.file.fileno())
        return found.file

    def _private_copy(self, file: BinaryIO, blob: Blob) -> BinaryIO | None:
        """Copy the file of another user: into the store under this user's own name, else into memory."""

        def write(target: BinaryIO) -> None:
            copy_bytes(file, target, blob.size)
            if not is_blob(target, blob):
                raise FormatError(f"another user's file of {blob.digest} does not match its digest")

        with self._folders.errors(f"cannot copy blob {blob.digest} of another user"):
            try:
                if self._owners.me == os.getuid():  # else the copy seems to be a file of another user, too
                    return self.add(blob, write)
            except FormatError:
                self.verify(blob.digest)  # removes the file where possible
                return None
            except StoreError as error:
                log.info("blob %s of another user is copied into memory: %s", blob.digest, error)
            return copy_to_memory(file, blob)

    def read(self, blob: Blob) -> bytes | None:
        """Return the verified content of a small blob, or None if the blob is missing or damaged."""
        found = self._find(blob)
        if found is None:
            return None
        with found.file, self._folders.errors(f"cannot read blob {blob.digest} in {self.root}"):
            data = found.file.read(blob.size + 1)
            if digest_of(data) == blob.digest:
                return data
        self.verify(blob.digest)
        return None

    def put(self, data: bytes, *, is_private: bool = False) -> Blob:
        """Store bytes as a blob; other users cannot read a private blob, whatever the umask.

        Raises:
            StoreError: the folder cannot be written, for example without space on the disk.
        """
        blob = Blob.of(data)
        if self.find(blob) is None:
            with self._folders.errors(f"cannot write to {self.root}"), self._staged() as new:
                new.file.write(data)
                self._publish(new, blob, is_private=is_private)
        return blob

    def add(self, blob: Blob, write: Callable[[BinaryIO], object], *, is_private: bool = False) -> BinaryIO:
        """Store a blob, and return the written file, open for reading; counts as a use, like :meth:`open`.

        ``write`` fills the file, verifies the digest, and raises an error to keep nothing. Where another user has taken
        the names of the blob, the file is returned without a place in the store.

        Raises:
            StoreError: the folder cannot be written, for example without space on the disk.
        """
        with self._folders.errors(f"cannot write to {self.root}"), self._staged() as new:
            write(new.file)
            try:
                self._publish(new, blob, is_private=is_private)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                log.warning("%s does not keep %s: %s", self.root, blob.digest, error.strerror)
            return new.reopened()

    @contextmanager
    def stage(self) -> Iterator[tuple[BinaryIO, Callable[[Blob], Path]]]:
        """Open a new file for a blob; call the second value with the blob's identity to publish the file.

        A file that is not published is removed. The caller computes the digest during the write; the store does not
        verify the digest.

        Raises:
            StoreError: the folder cannot be written, for example without space on the disk.
        """
        with self._folders.errors(f"cannot write to {self.root}"), self._staged() as new:
            yield new.file, lambda blob: self._publish(new, blob)

    def _publish(self, new: Staged, blob: Blob, *, is_private: bool = False) -> Path:
        mode = PRIVATE_MODE if is_private else self._folders.file_mode
        with self._folders.open("blobs", blob.digest[:2], make=True) as place:
            name = own_name(place, blob.digest, self._owners.me)
            self.on_growth(blob.size)
            new.publish(place / name, mode, CHECKED_NS)
        return self._path(blob.digest).with_name(name)

    @contextmanager
    def _staged(self) -> Iterator[Staged]:
        with self._folders.made("staging") as place, staged(place, self._locks) as new:
            yield new

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Create a folder for the duration of the block; after a crash, the next store removes the folder."""
        with ExitStack() as stack:
            with self._folders.errors(f"cannot write to {self.root}"):
                place = stack.enter_context(self._folders.made("scratch"))
                folder = stack.enter_context(scratch_folder(place, self._locks))
            yield folder

    def adopt(self, file: BinaryIO, blob: Blob) -> bool:
        """Add an open file with the verified content of a blob as a hard link, without a copy; return False on failure.

        A hard link is impossible for a file on another file system, or for a file of another user without permission.
        """
        fd = file.fileno()
        try:
            with self._folders.open("blobs", check_digest(blob.digest)[:2], make=True) as place:
                # Without src_dir_fd, Python links the symbolic link itself. An absolute path ignores the descriptor.
                os.link(f"/proc/self/fd/{fd}", place / blob.digest, src_dir_fd=fd, follow_symlinks=True)
        except FileExistsError:
            return True
        except OSError:
            return False
        with suppress(OSError):
            os.utime(fd, ns=(time.time_ns(), CHECKED_NS))
        return True

    def record(self, key: str) -> Any | None:
        """Return the document under a key, or None. A damaged record, or the record of another key, is removed.

        A record that another user made or can change is ignored: a record has no digest.
        """
        check_digest(key)
        with self._folders.errors(f"cannot read record {key} in {self.root}"):
            return self._records.read(key)

    def put_record(self, key: str, document: Any) -> None:
        """Store a document under a key; replaces the previous document. Other users cannot read the record."""
        check_digest(key)
        with self._folders.errors(f"cannot write to {self.root}"), self._staged() as new:
            self._records.write(key, document, new, self.on_growth)

    @contextmanager
    def locked(self, key: str, doing: str = "works on it", on_wait: OnWait = lambda _holder: None) -> Iterator[None]:
        """Hold the lock of a key against all processes on this node; the kernel releases the lock of a dead process.

        Waiting processes see the text ``doing``. ``on_wait`` is called with the holder during a long wait.
        """
        check_digest(key)
        with ExitStack() as stack:
            with self._folders.errors(f"cannot lock {key} in {self.root}"):
                place = stack.enter_context(self._folders.made("locks"))
                me = self._owners.me
                name = file_names(key, me)[place.stat().st_uid != me]  # only processes of one user wait for each other
                stack.enter_context(hold_lock(place / name, self._locks, me, doing, on_wait))
            yield

    def make_room(self, size: int, staged: int = 0) -> list[Entry]:
        """Evict unused blobs, least recently used first, so that ``size`` more bytes fit the bound and the disk.

        Without a bound nothing is evicted. ``staged`` bytes of ``size`` are on the disk already.

        Raises:
            StoreError: ``size`` exceeds the bound or the disk; nothing was evicted.
        """
        if self.max_bytes is None:
            return []
        return self.prune(self._room_beside(size, self.taken_bytes(), staged))

    def check_room(self, size: int) -> None:
        """Check that ``size`` more bytes would fit the bound and the disk after an eviction; nothing is evicted.

        Raises:
            StoreError: ``size`` exceeds the bound or the disk, or nothing can be evicted.
        """
        if self.max_bytes is not None:
            taken = self.taken_bytes()
            self._eviction.check(taken, self._room_beside(size, taken, 0))

    def make_disk_room(self, size: int) -> None:
        """Evict unused blobs, least recently used first, if the disk lacks space for ``size`` bytes that have arrived.

        Raises:
            StoreError: file locks do not show whether a blob is in use.
        """
        if self.max_bytes is not None and (missing := size - self.free_bytes()) > 0:
            self.prune(max(0, self.taken_bytes() - missing))

    def _room_beside(self, size: int, taken: int, staged: int) -> int:
        """Return the bytes that may stay beside ``size`` more bytes, of which ``staged`` are on the disk already."""
        bound, free = self.max_bytes or 0, self.free_bytes() + staged
        most = min(bound, taken + free)
        if size > most:
            raise StoreError(
                f"{size} bytes do not fit into {self.root}: the store may hold {bound} bytes, holds {taken}, "
                f"and the disk has {free} bytes free. Remedy: raise the bound, or set {self._setting} to a folder on a "
                "larger disk"
            )
        return most - size

    def grow(self, size: int) -> None:
        """Note a new file of ``size`` bytes, written by this process or a worker; evict unused files over the bound."""
        with self._folders.errors(f"cannot clear {self.root}"):
            self._eviction.grow(size)

    def taken_bytes(self) -> int:
        """Size of this user's blobs and records, as counted for the bound.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self._folders.errors(f"cannot read {self.root}"):
            return sum(entry.counted for entry in self._eviction.files())

    def free_bytes(self) -> int:
        """Free space of the disk, in bytes.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self._folders.errors(f"cannot read {self.root}"):
            return shutil.disk_usage(self.root).free

    def keep_bound(self) -> None:
        """Evict unused blobs until the store is within the bound."""
        if self.max_bytes is not None:
            self.prune(self.max_bytes)

    def prune(self, max_bytes: int) -> list[Entry]:
        """Evict unused files, least recently used first, down to ``max_bytes``; return the evicted blobs and records.

        Raises:
            StoreError: the store holds more, and file locks do not show whether a blob is in use.
        """
        with self._folders.errors(f"cannot clear {self.root}"):
            return self._eviction.prune(max_bytes)

    def entries(self) -> list[Entry]:
        """List the blobs, most recently used first.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self._folders.errors(f"cannot read {self.root}"):
            found = contents.entries(self.root, "blobs", self._locks, self._owners.me)
            return sorted(found, key=lambda entry: entry.used, reverse=True)

    def verify(self, digest: str) -> bool:
        """Hash a blob and return whether the digest matches; a damaged blob is removed."""
        check_digest(digest)
        with self._folders.errors(f"cannot read {self._path(digest)}"):
            return self._files.verify(digest)

    def _path(self, digest: str) -> Path:
        return self.root / "blobs" / digest[:2] / digest
