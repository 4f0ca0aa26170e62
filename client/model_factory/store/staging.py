"""New files appear whole or not at all: written in a staging folder, flushed to disk, renamed into place.

Files and folders that a process left behind when the process died are found by their free locks, and removed.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from model_factory.errors import StoreError
from model_factory.store.file_locks import (
    NO_LOCKS,
    TRIAL,
    FileLocks,
    closed_on_error,
    names_open_file,
    open_file,
    open_nofollow,
    opened,
)
from model_factory.store.folders import current_umask, set_mode

_NOT_FLUSHED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}
"""Errors of file systems that cannot flush a file or, more often, a folder."""

LEFT_AFTER_SECONDS = 86400.0
"""Age of a leftover file where no lock shows whether the writer lives."""

SCRATCH_LOCK = "lock"
"""Name of the file in a scratch folder on which the owner of the folder holds a lock."""


class Staged:
    """A file being written in a staging folder."""

    def __init__(self, file: BinaryIO, path: Path, locks: FileLocks) -> None:
        self.file = file
        self._path = path
        self._locks = locks

    def publish(self, place: Path, mode: int, modified: int | None = None) -> None:
        """Flush the file, rename the file to ``place``, flush the rename; ``modified``: modification time in ns."""
        self.file.flush()
        set_mode(self.file.fileno(), mode)
        if modified is not None:
            with suppress(OSError):  # a file without the mark is hashed at each use
                os.utime(self.file.fileno(), ns=(os.fstat(self.file.fileno()).st_mtime_ns, modified))
        _flush(self.file.fileno())
        self._path.rename(place)
        self._unlock()
        with suppress(PermissionError):  # a folder whose names this user may not list
            _flush_folder(place.parent)

    def reopened(self) -> BinaryIO:
        """Return the same file, published or not, open for reading; the file counts as in use."""
        self.file.flush()
        self._unlock()
        file = Path(f"/proc/self/fd/{self.file.fileno()}").open("rb", buffering=0)  # noqa: SIM115  returned open
        with closed_on_error(file):
            self._locks.lock_shared(file.fileno())
        return file

    def _unlock(self) -> None:
        with suppress(OSError):
            self._locks.unlock(self.file.fileno())  # a forked process may keep the file open


def _flush_folder(place: Path) -> None:
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
    """Open a new file in ``folder``; a file that is not published is removed, and private until then."""
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
            new.publish(path, 0o644 & ~current_umask())
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


def sweep(folder: Path, locks: FileLocks, user: int) -> None:
    """Remove the user's leftovers in a folder of locks, staged files or scratch folders; living processes keep theirs.

    Where no lock shows whether the owner lives, old files are removed, and folders stay.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                found = path.lstat()
                if found.st_uid != user:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    _sweep_folder(path, locks)
                else:
                    _sweep_file(path, locks)


def _sweep_file(path: Path, locks: FileLocks) -> None:
    if not locks.allows_eviction or path.name.startswith(TRIAL):  # another lock would disturb a trial on the file
        if time.time() - path.lstat().st_mtime > LEFT_AFTER_SECONDS:
            path.unlink()
        return
    with locks.open_for_exclusive(path) as fd:
        if locks.try_exclusive(fd) and names_open_file(path, fd):
            path.unlink()


def _sweep_folder(path: Path, locks: FileLocks) -> None:
    if locks.allows_eviction:
        with owned_folder(path, locks) as fd:
            if fd is not None:
                shutil.rmtree(path)


@contextmanager
def owned_folder(path: Path, locks: FileLocks) -> Iterator[int | None]:
    """Open a folder and hold the folder's lock; None if another process holds the lock, or removed the folder."""
    with ExitStack() as stack:
        try:
            fd = stack.enter_context(opened(path))
            lock = open_nofollow(Path(SCRATCH_LOCK), os.O_RDWR | os.O_CREAT, fd)
            stack.callback(os.close, lock)
            is_owned = not locks.exclusive or (locks.try_exclusive(lock) and names_open_file(path / SCRATCH_LOCK, lock))
        except FileNotFoundError:
            is_owned = False
        yield fd if is_owned else None
