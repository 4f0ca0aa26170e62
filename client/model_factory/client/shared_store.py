"""A server's file that this machine sees, too: opened where it lies instead of transferred.

The place is a hint from a stranger. Nothing on the way to the file is followed that could lead elsewhere, its name can
only be a blob's, it has to be a regular file of the right size, and it counts only once its content was hashed.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from model_factory.digest import check_digest, digest_of_file
from model_factory.store import Blob
from model_factory.store.locking import lock_reaches_all, mount_of
from model_factory.store.locks import writable_by_others

_MAX_HINT_PARTS = 100
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # opens nothing: a FIFO would block, a device might act


def open_shared(store: str, blob: Blob, *, of_anyone: bool = False) -> BinaryIO | None:
    """Open a blob in a store at an absolute path that someone named; None if it is not there, or not it.

    It is in use, and so not evicted, until the file is closed and every mapping of it is gone; where the server would
    not see the lock, the blob is not opened. Its owner could write to it later, so it has to be this process's user or
    root's, unless it may be ``of_anyone``.
    """
    check_digest(blob.digest)
    with suppress(OSError, ValueError):  # not here, not ours to read, or no path at all
        file = _open(store, blob, of_anyone)
        with suppress(OSError):
            if _is_blob(file, blob):
                return file
        file.close()
    return None


def _open(store: str, blob: Blob, of_anyone: bool) -> BinaryIO:
    """Walk from the root to the blob's file, one real folder after the other, and open it if it is a file like that."""
    parts = PurePosixPath(store).parts
    if not Path(store).is_absolute() or ".." in parts or len(parts) > _MAX_HINT_PARTS:
        raise ValueError(store)
    folder = os.open("/", _FOLDER)
    try:
        for name in (*parts[1:], "blobs", blob.digest[:2]):
            below = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        named = os.open(blob.digest, _NAME, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        found = os.fstat(named)
        if not stat.S_ISREG(found.st_mode) or found.st_size != blob.size:
            raise ValueError(store)
        if not of_anyone and writable_by_others(found):
            raise ValueError(store)
        return Path(f"/proc/self/fd/{named}").open("rb", buffering=0)
    finally:
        os.close(named)


def _is_blob(file: BinaryIO, blob: Blob) -> bool:
    if not lock_reaches_all("flock", mount_of(file.fileno())):
        return False
    fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    return digest_of_file(Path(f"/proc/self/fd/{file.fileno()}")) == blob.digest
