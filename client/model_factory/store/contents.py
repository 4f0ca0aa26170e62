"""The blobs of a store: sizes, times of use, and eviction."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from model_factory.store.file_locks import FileLocks, names_open_file

_NOT_REMOVABLE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors for a blob that is gone, or that this user may not remove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A blob in a store."""

    digest: str
    """Digest of the content, and name of the file."""
    size: int
    """In bytes."""
    used: float
    """Time of the last use, in seconds since the epoch."""
    links: int
    """Number of hard links; 2 where a cache shares the server's file."""
    path: Path
    """Place of the file."""
    locks: FileLocks = field(repr=False)
    """File locks of the store."""

    @property
    def in_use(self) -> bool:
        """Whether a process has the blob open or mapped. A blob that cannot be opened or locked counts as in use."""
        try:
            with self.locks.open_for_exclusive(self.path) as fd:
                return not self.locks.try_exclusive(fd)
        except FileNotFoundError:
            return False
        except OSError:
            return True


def entries(blobs: Path, locks: FileLocks) -> Iterator[Entry]:
    """List the blobs under a folder, unordered. Folders that only another user can read are skipped."""
    for path in _files(blobs):
        with suppress(FileNotFoundError, PermissionError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                yield Entry(
                    digest=path.name,
                    size=found.st_size,
                    used=found.st_atime,
                    links=found.st_nlink,
                    path=path,
                    locks=locks,
                )


def _files(blobs: Path) -> Iterator[Path]:
    for folder in list(blobs.iterdir()):
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            yield from list(folder.iterdir())


def make_room(found: list[Entry], max_bytes: int) -> list[Entry]:
    """Remove unused blobs, least recently used first, until at most ``max_bytes`` are left; return the removed blobs.

    Blobs in use stay, even above ``max_bytes``.
    """
    total = sum(entry.size for entry in found)
    removed = []
    for entry in sorted(found, key=lambda entry: entry.used):
        if total <= max_bytes:
            break
        if remove_unused(entry):
            total -= entry.size
            removed.append(entry)
    return removed


def remove_unused(entry: Entry) -> bool:
    """Remove a blob unless the blob is in use or this user may not remove the file; return whether it was removed.

    A process that opens the blob at the same moment gets the whole blob, or does not find the file.
    """
    try:
        with entry.locks.open_for_exclusive(entry.path) as fd:
            if not entry.locks.try_exclusive(fd) or not names_open_file(entry.path, fd):
                return False
            entry.path.unlink()
    except OSError as error:
        if error.errno not in _NOT_REMOVABLE:
            raise
        return False
    return True
