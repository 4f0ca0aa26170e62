"""Whose files count in a folder that several users share: the rule, in one place.

A store trusts this process's user, root, and the owner of the store's folder, unless another user could have made or
exchanged the folder (:func:`chosen_owner`).

- A file is *kept* if a trusted user owns the file, and nobody else may write to the file: hashed bytes stay the same.
- A name is *kept* if a trusted user owns the folder, and nobody else may write to the folder. In a sticky folder, a
  name is kept while the file has no second name.

=====================================  =============================================================================
file and name are kept                 the mark of verified content counts; the file is used in place
only the file is kept                  the file is hashed at each use, and used in place
another regular file                   a blob is copied to a private file, and the copy is hashed; a record is ignored
link, FIFO, socket, device, folder     ignored
=====================================  =============================================================================
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from model_factory.digest import Blob, digest_of_file
from model_factory.limits import MIB
from model_factory.store.file_locks import TRIAL, closed_on_error, mount_id, open_file, open_nofollow

_ACLS = ("system.posix_acl_access", "system.posix_acl_default", "system.nfs4_acl")
_MAX_LINKS = 40
_PIECE_BYTES = 64 * MIB
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class Owners:
    """The users whose files count in a folder."""

    me: int
    """The user that owns this process's new files; another user than the process's on NFS with ``root_squash``."""
    trusted: frozenset[int]
    """Users who may change a file between the check and the use."""
    has_acl: bool
    """Whether the folder has an access control list: the group bits of a mode are then the bits of many users."""

    def keep_file(self, found: os.stat_result) -> bool:
        """Whether only trusted users can change the bytes of a file."""
        return stat.S_ISREG(found.st_mode) and found.st_uid in self.trusted and not self._others_may_write(found)

    def keep_open(self, folder: Path, file: BinaryIO) -> bool:
        """Whether only trusted users can change an open file of an open folder.

        Another user may mount a file system that names any owner; the names of a kept folder are no mounts of others.
        """
        found = os.fstat(file.fileno())
        if not self.keep_file(found):
            return False
        return self.keep_name(folder.stat(), found) or mount_id(int(folder.name)) == mount_id(file.fileno())

    def keep_name(self, folder: os.stat_result, found: os.stat_result) -> bool:
        """Whether only trusted users can give a kept file another name in a folder."""
        if folder.st_uid not in self.trusted:
            return False
        return not self._others_may_write(folder) or (bool(folder.st_mode & stat.S_ISVTX) and found.st_nlink == 1)

    def _others_may_write(self, found: os.stat_result) -> bool:
        return _others_may_write(found, has_acl=self.has_acl)


def owners_of(root: Path, staging: Path | None) -> Owners:
    """Find the users whose files count in a store; ``staging`` is a folder for a trial, if there is one."""
    owner = chosen_owner(root)
    trusted = {os.getuid(), 0} if owner is None else {os.getuid(), 0, owner}
    return Owners(_user_of_new_files(staging), frozenset(trusted), has_acl(root))


def open_regular(path: Path) -> BinaryIO | None:
    """Open a file for reading; return None without a regular file, and for an unreadable file of another user.

    Raises:
        OSError: a file of a trusted user cannot be read.
    """
    owner = -1
    try:
        found = path.lstat()
        owner = found.st_uid
        if not stat.S_ISREG(found.st_mode):
            return None
        file = open_file(path, os.O_RDONLY, "rb", 0)
    except FileNotFoundError:
        return None
    except PermissionError:
        if (path.parent.stat().st_uid if owner < 0 else owner) == os.getuid():
            raise
        return None
    with closed_on_error(file):
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
    file.close()
    return None


def chosen_owner(root: Path) -> int | None:
    """Return the owner of a folder if only this user, root or the owner could have made or exchanged the folder.

    >>> chosen_owner(Path("/"))
    0
    """
    owner = root.stat().st_uid
    try:
        return owner if _is_chosen(root, {os.getuid(), 0, owner}) else None
    except OSError:  # a folder on the path cannot be read, or has just changed
        return None


def _is_chosen(root: Path, users: set[int]) -> bool:
    """Whether only ``users`` could have made or exchanged a folder: each name of the path, and of links on the path."""
    place, links, names = Path("/"), 0, list(reversed(root.absolute().parts[1:]))
    while names:
        name = names.pop()
        if name == "..":
            place = place.parent
            continue
        folder, found = place.stat(), (place / name).lstat()
        is_own = bool(folder.st_mode & stat.S_ISVTX) and found.st_uid in {os.getuid(), 0}
        if folder.st_uid not in users or (_others_may_write(folder, has_acl=has_acl(place)) and not is_own):
            return False
        if stat.S_ISLNK(found.st_mode):
            target = (place / name).readlink()
            links += 1
            if links > _MAX_LINKS:
                return False
            names.extend(reversed([part for part in target.parts if part != "/"]))
            place = Path("/") if target.is_absolute() else place
        else:
            place /= name
    return True


def has_acl(folder: Path) -> bool:
    """Whether a folder has an access control list, for itself or for new files; lists inside a folder are its owner's.

    >>> has_acl(Path("/"))
    False
    """
    with suppress(OSError):  # a file system without extended attributes
        return not set(_ACLS).isdisjoint(os.listxattr(folder))
    return False


def _others_may_write(found: os.stat_result, *, has_acl: bool) -> bool:
    """Whether the mode allows other users to write; without an ACL, the owner's private group has no other users."""
    is_private = not has_acl and _is_private_group(found.st_uid, found.st_gid)
    by_group = bool(found.st_mode & stat.S_IWGRP) and not is_private
    return by_group or bool(found.st_mode & stat.S_IWOTH)


@lru_cache(maxsize=64)
def _is_private_group(user: int, group: int) -> bool:
    """Whether a group is the group of one user, with the user's name, as many distributions make for each user."""
    try:
        person, found = pwd.getpwuid(user), grp.getgrgid(group)
    except KeyError:
        return False
    return person.pw_gid == group and found.gr_name == person.pw_name and set(found.gr_mem) <= {person.pw_name}


def _user_of_new_files(staging: Path | None) -> int:
    with suppress(OSError):
        if staging is not None:
            path = staging / f"{TRIAL}{secrets.token_hex(8)}"
            fd = open_nofollow(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                return os.fstat(fd).st_uid
            finally:
                os.close(fd)
                path.unlink()
    return os.getuid()


def copy_bytes(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy the first ``size`` bytes of an open file; fewer if the file is shorter."""
    offset = 0
    target.flush()
    while offset < size:
        count = os.sendfile(target.fileno(), source.fileno(), offset, min(_PIECE_BYTES, size - offset))
        if count == 0:
            return
        offset += count


def copy_to_memory(source: BinaryIO, blob: Blob) -> BinaryIO | None:
    """Return a copy of a blob that nobody can change; None if the file has other bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     _ = file.write(b"weights")
    ...     file.flush()
    ...     with copy_to_memory(file, Blob.of(b"weights")) as copy:
    ...         copy.read()
    b'weights'

    Raises:
        OSError: the file cannot be read, or the copy does not fit into memory.
    """
    copy = os.fdopen(os.memfd_create(blob.digest[:12], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b", 0)
    with closed_on_error(copy):
        copy_bytes(source, copy, blob.size)
        fcntl.fcntl(copy.fileno(), fcntl.F_ADD_SEALS, _SEALS)
        if is_blob(copy, blob):
            copy.seek(0)
            return copy
    copy.close()
    return None


def is_blob(file: BinaryIO, blob: Blob) -> bool:
    """Whether an open file has the size and the digest of a blob."""
    if os.fstat(file.fileno()).st_size != blob.size:
        return False
    return digest_of_open(file) == blob.digest


def digest_of_open(file: BinaryIO) -> str:
    """Compute the digest of an open file."""
    return digest_of_file(Path(f"/proc/self/fd/{file.fileno()}"))
