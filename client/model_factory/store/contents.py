"""The files of a store, blobs and records: lookup, sizes, times of use, and eviction."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from model_factory.digest import Blob
from model_factory.store.file_locks import FileLocks, closed_on_error, names_open_file, open_file
from model_factory.store.folders import StoreFolders, folder_below
from model_factory.store.ownership import Owners, digest_of_open, open_regular

FILE_BYTES = 16384
"""Smallest size that a file counts with. File systems have about one inode per 16 KiB, so a bound on the sum of sizes
bounds the number of files, too."""

BLOCK_BYTES = 4096
"""Disk space is taken in blocks of this size."""

DIGEST_CHARACTERS = 64
_PREFIX = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{64}(?:-[0-9]{1,10})?")

_NOT_REMOVABLE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors for a blob that is gone, or that this user may not remove."""


CHECKED_NS = 1_000_000_000
"""Modification time of blobs with verified content; any later write changes the time."""


@dataclass(frozen=True, slots=True)
class Found:
    """An open file of a blob."""

    file: BinaryIO
    name: str
    """Name of the file in its folder."""
    is_kept: bool
    """Whether only trusted users can change the file: the content is verified. Else the content may be anything."""


class BlobFiles:
    """The files of the blobs of a store."""

    def __init__(self, folders: StoreFolders, owners: Owners) -> None:
        self._folders = folders
        self._owners = owners

    def find(self, blob: Blob, *, may_hash: bool = True) -> Found | None:
        """Open the first sound file of a blob that is kept, else a file of the right size that others can change.

        Raises:
            OSError: a file cannot be read.
            StoreError: a damaged file cannot be removed.
        """
        other: Found | None = None
        with suppress(FileNotFoundError, NotADirectoryError), self._folders.open("blobs", blob.digest[:2]) as place:
            for name in file_names(blob.digest, self._owners.me):
                file = open_regular(place / name)
                if file is None:
                    continue
                with closed_on_error(file):
                    about = os.fstat(file.fileno())
                    found, has_size = Found(file, name, self._owners.keep_open(place, file)), about.st_size == blob.size
                    if found.is_kept and self._is_sound(place, found, blob, may_hash=may_hash) and has_size:
                        return found
                if not found.is_kept and has_size and other is None:
                    other = found
                else:
                    file.close()
        return other

    def verify(self, digest: str) -> bool:
        """Hash the files of a blob; return whether there is a file, and all are sound. Damaged files are removed.

        Raises:
            OSError: a file cannot be read.
            StoreError: a damaged file cannot be removed.
        """
        sound = []
        with suppress(FileNotFoundError, NotADirectoryError), self._folders.open("blobs", digest[:2]) as place:
            for name in file_names(digest, self._owners.me):
                with suppress(FileNotFoundError), open_file(place / name, os.O_RDONLY, "rb", 0) as file:
                    found = Found(file, name, self._owners.keep_open(place, file))
                    sound.append(self._matches(place, found, digest))
        return bool(sound) and all(sound)

    def _is_sound(self, place: Path, found: Found, blob: Blob, *, may_hash: bool) -> bool:
        """Whether a kept file has the content of the blob: by the mark, else by its digest. Counts as a use."""
        about = os.fstat(found.file.fileno())
        keeps_name = self._owners.keep_name(place.stat(), about)
        if about.st_mtime_ns != CHECKED_NS or not keeps_name:
            if not may_hash or not self._matches(place, found, blob.digest):
                return False
            if not keeps_name:
                return True
        with suppress(OSError):  # the file of another user in a shared cache, or a read-only file system
            os.utime(found.file.fileno(), ns=(time.time_ns(), CHECKED_NS))
        return True

    def _matches(self, place: Path, found: Found, digest: str) -> bool:
        if digest_of_open(found.file) == digest:
            return True
        how = "does not match its digest"
        is_kept = found.is_kept and self._owners.keep_name(place.stat(), os.fstat(found.file.fileno()))
        self._folders.remove_damaged(place / found.name, found.file, how, is_kept=is_kept)
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A blob or a record in a store."""

    digest: str
    """Beginning of the file's name: the digest of a blob's content, or the key of a record."""
    size: int
    """In bytes."""
    used: float
    """Time of the last use, in seconds since the epoch."""
    links: int
    """Number of hard links; 2 where a cache shares the server's file."""
    path: Path
    """Place of the file."""
    is_own: bool
    """Whether the file counts for the bound of this user: the file is the user's own, or the user is root."""
    locks: FileLocks = field(repr=False)
    """File locks of the store."""

    @property
    def counted(self) -> int:
        """The size that counts for a bound, in bytes."""
        return counted_size(self.size)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Open the folder of the file without links below the store."""
        with folder_below(self.path.parents[2], *self.path.parts[-3:-1]) as place:
            yield place

    @property
    def in_use(self) -> bool:
        """Whether a process has the blob open or mapped. A blob that cannot be opened or locked counts as in use."""
        try:
            with self.folder() as place, self.locks.open_for_exclusive(place / self.path.name) as fd:
                return not self.locks.try_exclusive(fd)
        except FileNotFoundError:
            return False
        except OSError:
            return True


def file_names(digest: str, user: int) -> tuple[str, str]:
    """Return the names of a blob or record: the common name, and the name for a user where another user has the common.

    >>> file_names("ab" * 32, 1000)[1][-6:]
    'b-1000'
    """
    return digest, f"{digest}-{user}"


def own_name(place: Path, key: str, user: int) -> str:
    """Return the name of a new file in a folder: the common name, unless another user has a file of this name."""
    common, own = file_names(key, user)
    try:
        return common if (place / common).lstat().st_uid == user else own
    except FileNotFoundError:
        return common


def counted_size(size: int) -> int:
    """Return the size that a file counts with: whole blocks, and at least ``FILE_BYTES``.

    Example:
        >>> counted_size(10), counted_size(20_000)
        (16384, 20480)
    """
    return max(FILE_BYTES, -(-size // BLOCK_BYTES) * BLOCK_BYTES)


def entries(root: Path, folder: str, locks: FileLocks, user: int) -> Iterator[Entry]:
    """List the ``blobs`` or ``records`` of a store, unordered. Folders that only another user can read are skipped."""
    with folder_below(root, folder) as above:
        for prefix in [path.name for path in above.iterdir() if _PREFIX.fullmatch(path.name)]:
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError), folder_below(above, prefix) as place:
                yield from _entries_in(place, root / folder / prefix, locks, user)


def _entries_in(folder: Path, shown: Path, locks: FileLocks, user: int) -> Iterator[Entry]:
    for name in [path.name for path in folder.iterdir()]:
        with suppress(FileNotFoundError, PermissionError):
            found = (folder / name).lstat()
            if stat.S_ISREG(found.st_mode) and _NAME.fullmatch(name):
                yield Entry(
                    digest=name[:DIGEST_CHARACTERS],
                    size=found.st_size,
                    used=found.st_atime,
                    links=found.st_nlink,
                    path=shown / name,
                    is_own=user in {0, found.st_uid},
                    locks=locks,
                )


def make_room(found: list[Entry], max_bytes: int, spare: int = 0) -> list[Entry]:
    """Remove unused files, least recently used first, until at most ``max_bytes`` are left; return the removed files.

    Files in use stay, even above ``max_bytes``. With ``spare``, a removal goes on to ``spare`` bytes below
    ``max_bytes``, by files that are not larger than ``spare``.
    """
    total = sum(entry.counted for entry in found)
    removed: list[Entry] = []
    if total <= max_bytes:
        return removed
    for entry in sorted(found, key=lambda entry: entry.used):
        if total <= max_bytes - spare:
            break
        if total <= max_bytes and entry.counted > spare:
            continue
        if remove_unused(entry):
            removed.append(entry)
        elif os.path.lexists(entry.path):
            continue
        total -= entry.counted  # removed here, or by another process
    return removed


def remove_unused(entry: Entry) -> bool:
    """Remove a file unless the file is in use or this user may not remove the file; return whether it was removed.

    A process that opens the file at the same moment gets the whole blob, or does not find the file.
    """
    try:
        with entry.folder() as place, entry.locks.open_for_exclusive(path := place / entry.path.name) as fd:
            if not entry.locks.try_exclusive(fd) or not names_open_file(path, fd):
                return False
            path.unlink()
    except OSError as error:
        if error.errno not in _NOT_REMOVABLE:
            raise
        return False
    return True
