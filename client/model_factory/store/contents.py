"""What a store holds: how much, when it was used, whether it is in use, and making room."""

from __future__ import annotations

import fcntl
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_factory.store.locks import is_file_of


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

    @property
    def in_use(self) -> bool:
        """Whether a process has it open or mapped; what may not be opened here counts as that, for it cannot go."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except FileNotFoundError:
            return False
        return False


def entries(blobs: Path) -> Iterator[Entry]:
    """The blobs under a folder, in no order."""
    for path in blobs.glob("??/*"):
        with suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                yield Entry(digest=path.name, size=found.st_size, used=found.st_atime, links=found.st_nlink, path=path)


def make_room(blobs: Path, max_bytes: int) -> list[Entry]:
    """Remove blobs that are not in use, least recently used first, until no more than ``max_bytes`` are left.

    What is in use stays, even if that is more.
    """
    found = sorted(entries(blobs), key=lambda entry: entry.used)
    total = sum(entry.size for entry in found)
    removed = []
    for entry in found:
        if total <= max_bytes:
            break
        if remove_unused(entry.path):
            total -= entry.size
            removed.append(entry)
    return removed


def remove_unused(path: Path) -> bool:
    """Remove a blob unless somebody uses it, or it may not be removed here; return whether it was.

    Who opens it at the same moment has it whole, or does not find it.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_file_of(path, file.fileno()):
                return False
            path.unlink()
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False
    return True
