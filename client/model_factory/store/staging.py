"""New files appear whole or not at all: written in a staging folder, flushed to disk, renamed into place."""

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
from model_factory.store.file_locks import NO_LOCKS, FileLocks, names_open_file, open_file
from model_factory.store.leftovers import owned_folder

_NOT_FLUSHED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}
"""Errors of file systems that cannot flush a file or, more often, a folder."""


class Staged:
    """A file being written in a staging folder."""

    def __init__(self, file: BinaryIO, path: Path, locks: FileLocks) -> None:
        self.file = file
        self._path = path
        self._locks = locks

    def publish(self, place: Path, modified: int | None = None) -> None:
        """Flush the file, rename the file to ``place``, flush the rename; ``modified``: modification time in ns."""
        place.parent.mkdir(exist_ok=True)
        self.file.flush()
        if modified is not None:
            with suppress(OSError):  # a file without the mark is hashed at each use
                os.utime(self.file.fileno(), ns=(self._path.stat().st_mtime_ns, modified))
        _flush(self.file.fileno())
        self._path.rename(place)
        with suppress(OSError):
            self._locks.unlock(self.file.fileno())  # a forked process may keep the file open
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            _flush(folder)
        finally:
            os.close(folder)


def _flush(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise


@contextmanager
def staged(folder: Path, locks: FileLocks) -> Iterator[Staged]:
    """Open a new file in ``folder``; a file that is not published is removed.

    The umask decides whether other users can read the file.
    """
    while True:
        path = folder / secrets.token_hex(16)
        with open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, "wb") as file:
            try:
                if locks.exclusive and not (
                    locks.try_exclusive(file.fileno()) and names_open_file(path, file.fileno())
                ):
                    continue  # removed as a leftover before the lock was taken
                yield Staged(file, path, locks)
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at ``path`` if the block succeeds, and not at all otherwise.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "out" / "model.bin") as file:
    ...     _ = file.write(b"weights")
    >>> (folder / "out" / "model.bin").read_bytes()
    b'weights'

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path.parent, NO_LOCKS) as new:  # no process sweeps this folder
            yield new.file
            new.publish(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def scratch_folder(folder: Path, locks: FileLocks) -> Iterator[Path]:
    """Create a folder in ``folder`` for the duration of the block; a later sweep removes the folder of a dead process.

    The path is valid in this process alone. The path is short for any ``folder``, as the path of a socket must be.
    """
    while True:
        path = Path(tempfile.mkdtemp(dir=folder))
        with owned_folder(path, locks) as fd:
            if fd is None:  # removed as a leftover before the lock was taken
                continue
            try:
                yield Path(f"/proc/self/fd/{fd}")
            finally:
                with suppress(OSError):
                    shutil.rmtree(path)
            return
