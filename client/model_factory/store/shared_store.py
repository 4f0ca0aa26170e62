"""A blob in the server's store, where this machine sees the store: opened in place instead of transferred.

The path is a hint from an untrusted peer. No symbolic link on the path is followed, the file name is the blob's digest,
the file must be a regular file of the right size, and the content is hashed before use. ``ownership.py`` has the rule
for files of other users.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from model_factory.digest import Blob, check_digest
from model_factory.store.file_locks import lock_reaches_all, mount_of
from model_factory.store.ownership import Owners, chosen_owner, copy_to_memory, has_acl, is_blob

_MAX_HINT_PARTS = 100
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = (
    os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
)  # no access to the content: opening a FIFO would block, opening a device might act


def open_shared(store: str, blob: Blob, *, is_trusted: bool = False) -> BinaryIO | None:
    """Open a blob in a store at an absolute path; None if the file is missing, unsafe or another blob.

    The blob counts as in use, and is not evicted, until the file and every mapping of the file are closed. Where the
    server would not see the lock, the blob is not opened. A file that another user can change later is not opened;
    with ``is_trusted`` a file of the store's owner is opened, and a copy of any other file.
    """
    check_digest(blob.digest)
    with suppress(OSError, ValueError):  # missing, not readable by this user, or not a path
        owner = chosen_owner(Path(store)) if is_trusted else None
        trusted = {os.getuid(), 0} if owner is None else {os.getuid(), 0, owner}
        owners = Owners(os.getuid(), frozenset(trusted), has_acl(Path(store)))
        with ExitStack() as stack:
            file = stack.enter_context(_open(store, blob))
            if not owners.keep_file(os.fstat(file.fileno())):
                return copy_to_memory(file, blob) if is_trusted else None
            if _is_shared(file) and is_blob(file, blob):
                stack.pop_all()
                return file
    return None


def _open(store: str, blob: Blob) -> BinaryIO:
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
        return Path(f"/proc/self/fd/{named}").open("rb", buffering=0)
    finally:
        os.close(named)


def _is_shared(file: BinaryIO) -> bool:
    """Lock an open file, and return whether the server sees the lock."""
    if not lock_reaches_all("flock", mount_of(file.fileno())):
        return False
    fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True
