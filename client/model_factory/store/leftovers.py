"""Files and folders that a process left behind when the process died: found by their free locks, and removed."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from model_factory.store.file_locks import TRIAL, FileLocks, names_open_file, open_nofollow, opened

LEFT_AFTER_SECONDS = 86400.0
"""Age of a leftover file where no lock shows whether the writer lives."""

SCRATCH_LOCK = "lock"
"""Name of the file in a scratch folder on which the owner of the folder holds a lock."""


def sweep(folder: Path, locks: FileLocks) -> None:
    """Remove leftovers in a folder of locks, staged files or scratch folders; entries of living processes stay.

    Where no lock shows whether the owner lives, old files are removed, and folders stay.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if stat.S_ISDIR(path.lstat().st_mode):
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
