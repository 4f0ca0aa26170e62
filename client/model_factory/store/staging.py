"""Files appear whole or not at all: written beside their place, flushed to disk, renamed into it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model_factory.errors import StoreError
from model_factory.store.locks import is_file_of, opened


class Staged:
    """A file being written in a staging folder."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self._path = path

    def publish(self, place: Path, modified: int | None = None) -> None:
        """Publish the file at ``place``: flushed, renamed, the rename flushed; ``modified`` is its time in ns."""
        place.parent.mkdir(exist_ok=True)
        self._path.chmod(0o644)
        self.file.flush()
        if modified is not None:
            os.utime(self.file.fileno(), ns=(self._path.stat().st_mtime_ns, modified))
        os.fsync(self.file.fileno())
        self._path.rename(place)
        fcntl.flock(self.file.fileno(), fcntl.LOCK_UN)  # a fork may have it open for longer
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def staged(folder: Path) -> Iterator[Staged]:
    """Open a new file in ``folder``; what is not published is removed."""
    while True:
        number, name = tempfile.mkstemp(dir=folder)
        path = Path(name)
        with os.fdopen(number, "wb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if not is_file_of(path, file.fileno()):  # taken for a leftover before it was locked
                continue
            try:
                yield Staged(file, path)
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write to that appears at ``path`` when all went well, and not at all otherwise.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path.parent) as new:
            yield new.file
            new.publish(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a folder in ``folder`` for as long as the block; it goes like a staged file if this process dies.

    The path is for this process alone, and short however long that of ``folder`` is: a socket's has to be.
    """
    while True:
        path = Path(tempfile.mkdtemp(dir=folder))
        with opened(path) as number:
            fcntl.flock(number, fcntl.LOCK_EX)
            if not is_file_of(path, number):  # taken for a leftover before it was locked
                continue
            try:
                yield Path(f"/proc/self/fd/{number}")
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return
