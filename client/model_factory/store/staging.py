"""Files appear whole or not at all: written beside their place, flushed to disk, renamed into it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from model_factory.errors import StoreError
from model_factory.store.locking import NO_LOCKS, Locking, open_file
from model_factory.store.locks import is_file_of, owned_folder

_NOT_FLUSHED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}
"""Errors of file systems that cannot flush, a folder above all."""


class Staged:
    """A file being written in a staging folder."""

    def __init__(self, file: BinaryIO, path: Path, locking: Locking) -> None:
        self.file = file
        self._path = path
        self._locking = locking

    def publish(self, place: Path, modified: int | None = None) -> None:
        """Publish the file at ``place``: flushed, renamed, the rename flushed; ``modified`` is its time in ns."""
        place.parent.mkdir(exist_ok=True)
        self.file.flush()
        if modified is not None:
            with suppress(OSError):  # a file without the mark is hashed at each use
                os.utime(self.file.fileno(), ns=(self._path.stat().st_mtime_ns, modified))
        _flush(self.file.fileno())
        self._path.rename(place)
        with suppress(OSError):
            self._locking.release(self.file.fileno())  # a fork may have it open for longer
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            _flush(folder)
        finally:
            os.close(folder)


def _flush(number: int) -> None:
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise


@contextmanager
def staged(folder: Path, locking: Locking) -> Iterator[Staged]:
    """Open a new file in ``folder``; what is not published is removed.

    Other users may read the file as far as the umask allows.
    """
    while True:
        path = folder / secrets.token_hex(16)
        with open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, "wb") as file:
            try:
                if locking.claims and not (locking.claim(file.fileno()) and is_file_of(path, file.fileno())):
                    continue  # taken for a leftover before it was locked
                yield Staged(file, path, locking)
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
        with staged(path.parent, NO_LOCKS) as new:  # nobody sweeps that folder
            yield new.file
            new.publish(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def scratch_folder(folder: Path, locking: Locking) -> Iterator[Path]:
    """Make a folder in ``folder`` for as long as the block; it goes like a staged file if this process dies.

    The path is for this process alone, and short however long that of ``folder`` is: a socket's has to be.
    """
    while True:
        path = Path(tempfile.mkdtemp(dir=folder))
        with owned_folder(path, locking) as number:
            if number is None:  # taken for a leftover before it was locked
                continue
            try:
                yield Path(f"/proc/self/fd/{number}")
            finally:
                with suppress(OSError):
                    shutil.rmtree(path)
            return
