"""A blob in the server's store, where this machine sees the store: opened in place instead of transferred.

The path is a hint from an untrusted peer. No symbolic link on the path is followed, the file name is the blob's digest,
the file must be a regular file of the right size, and the content is hashed before use.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from model_factory.digest import Blob, check_digest, digest_of_file
from model_factory.store.file_locks import lock_reaches_all, mount_of, writable_by_others

_MAX_HINT_PARTS = 100
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = (
    os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
)  # no access to the content: opening a FIFO would block, opening a device might act


def open_shared(store: str, blob: Blob, *, is_trusted: bool = False) -> BinaryIO | None:
    """Open a blob in a store at an absolute path; None if the file is missing, unsafe or another blob.

    The blob counts as in use, and is not evicted, until the file and every mapping of the file are closed. Where the
    server would not see the lock, the blob is not opened. The owner of a file can change the file later, so the owner
    must be this process's user or root; ``is_trusted`` allows any owner.
    """
    check_digest(blob.digest)
    with suppress(OSError, ValueError):  # missing, not readable by this user, or not a path
        file = _open(store, blob, is_trusted)
        with suppress(OSError):
            if _is_blob(file, blob):
                return file
        file.close()
    return None


def _open(store: str, blob: Blob, is_trusted: bool) -> BinaryIO:
    """Walk from the root to the blob's file, folder by folder without links, and open a file of the right size."""
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
        if not is_trusted and writable_by_others(found):
            raise ValueError(store)
        return Path(f"/proc/self/fd/{named}").open("rb", buffering=0)
    finally:
        os.close(named)


def _is_blob(file: BinaryIO, blob: Blob) -> bool:
    if not lock_reaches_all("flock", mount_of(file.fileno())):
        return False
    fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    return digest_of_file(Path(f"/proc/self/fd/{file.fileno()}")) == blob.digest
