"""What a store holds: how much, when it was used, whether it is in use, and making room."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from model_factory.store.locking import Locking
from model_factory.store.locks import is_file_of

_NOT_REMOVABLE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors of a blob that is gone, or that this user may not remove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A blob in a store."""

    digest: str
    """Its name."""
    size: int
    """In bytes."""
    used: float
    """When it was last asked for, in seconds since the epoch."""
    links: int
    """In how many places its content is known: 2 where the cache shares the server's file."""
    path: Path
    """Where it lies."""
    locking: Locking = field(repr=False)
    """The locks of its store."""

    @property
    def in_use(self) -> bool:
        """Whether a process has it open or mapped; what may not be opened or locked here counts as that: it stays."""
        try:
            with self.locking.open_to_claim(self.path) as number:
                return not self.locking.claim(number)
        except FileNotFoundError:
            return False
        except OSError:
            return True


def entries(blobs: Path, locking: Locking) -> Iterator[Entry]:
    """The blobs under a folder, in no order, but for folders in the folder that only another user may read."""
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
                    locking=locking,
                )


def _files(blobs: Path) -> Iterator[Path]:
    for folder in list(blobs.iterdir()):
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            yield from list(folder.iterdir())


def make_room(found: list[Entry], max_bytes: int) -> list[Entry]:
    """Remove blobs that are not in use, least recently used first, until no more than ``max_bytes`` are left.

    What is in use stays, even if that is more.
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
    """Remove a blob unless somebody uses it, or it may not be removed here; return whether it was.

    Who opens it at the same moment has it whole, or does not find it.
    """
    try:
        with entry.locking.open_to_claim(entry.path) as number:
            if not entry.locking.claim(number) or not is_file_of(entry.path, number):
                return False
            entry.path.unlink()
    except OSError as error:
        if error.errno not in _NOT_REMOVABLE:
            raise
        return False
    return True
