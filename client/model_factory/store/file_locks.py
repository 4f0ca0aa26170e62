"""File locks: find the kind of lock that works in a folder by a trial, and its reach by the options of the mount.

File systems differ. ``flock`` fails on some network and FUSE file systems. NFS grants an exclusive lock only to a
descriptor that is open for writing. Other file systems grant every lock, or keep locks inside one machine.
Each kind of lock here belongs to the open file: the lock lasts until the last descriptor and the last mapping are gone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

Kind = Literal["flock", "ofd", "none"]

_MOUNTS = Path("/proc/self/mountinfo")
TRIAL = ".trial-"
"""Prefix of the name of a file that exists for a trial."""

SHARED_WAIT_SECONDS = 1.0
"""Time to wait for the end of an exclusive lock on a blob."""

_POLL_SECONDS = 0.005

_MAX_TRIED = 16
"""Number of blobs on which locks are tried where no file can be created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLocks:
    """The kind of file lock that works in a folder, and the operations on open files."""

    kind: Kind
    """``flock``; ``ofd``, a lock of ``fcntl`` that belongs to the open file; or ``none``."""
    exclusive: bool
    """Whether exclusive locks work."""
    needs_writable: bool = False
    """Whether an exclusive lock needs a descriptor that is open for writing, as on NFS."""
    reaches_all: bool = True
    """Whether other machines that mount the same file system see a lock."""

    @property
    def allows_eviction(self) -> bool:
        """Whether an exclusive lock on a blob means that no process on any machine uses the blob."""
        return self.exclusive and self.reaches_all

    def lock_shared(self, fd: int) -> None:
        """Take a shared lock on an open file; wait a moment for an exclusive lock to end, and go on without a lock.

        An eviction holds an exclusive lock for a moment, another user of a shared folder for any time. A file that is
        evicted without the lock stays whole while the file is open.
        """
        deadline = time.monotonic() + SHARED_WAIT_SECONDS
        while not self._try_shared(fd) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _try_shared(self, fd: int) -> bool:
        try:
            if self.kind == "flock":
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            elif self.kind == "ofd":
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_RDLCK))
        except BlockingIOError:
            return False
        return True

    def try_exclusive(self, fd: int) -> bool:
        """Take an exclusive lock on an open file; return False if another descriptor has a lock, or locks do not work.

        Where ``needs_writable`` is set, the file must be open for writing.
        """
        if not self.exclusive:
            return False
        try:
            if self.kind == "flock":
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except BlockingIOError:
            return False
        return True

    def unlock(self, fd: int) -> None:
        """Release the lock on an open file."""
        if self.kind == "flock":
            fcntl.flock(fd, fcntl.LOCK_UN)
        elif self.kind == "ofd":
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_UNLCK))

    @contextmanager
    def open_for_exclusive(self, path: Path) -> Iterator[int]:
        """Open a file in the mode that an exclusive lock needs."""
        with opened(path, os.O_RDWR if self.needs_writable else os.O_RDONLY) as fd:
            yield fd


NO_LOCKS = FileLocks(kind="none", exclusive=False)

_KINDS = (
    FileLocks(kind="flock", exclusive=True),
    FileLocks(kind="flock", exclusive=True, needs_writable=True),
    FileLocks(kind="ofd", exclusive=True, needs_writable=True),
)


def find_file_locks(folder: Path | None, blobs: Path) -> FileLocks:
    """Find the locks that work in a store. Locks that reach all machines are preferred to locks of this machine.

    The trial creates a file in ``folder``, and removes the file. Where no file can be created, the trial uses blobs.
    """
    fd = os.open(blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount = mount_of(fd)
    finally:
        os.close(fd)
    kinds = [replace(kind, reaches_all=lock_reaches_all(kind.kind, mount)) for kind in _KINDS]
    with _trial_files(folder, blobs) as files:
        for locks in sorted(kinds, key=lambda kind: not kind.reaches_all):
            if any(_exclusive_works(locks, file) for file in files):
                return locks
        for locks in (FileLocks(kind="flock", exclusive=False), FileLocks(kind="ofd", exclusive=False)):
            if any(_shared_works(locks, file) for file in files):  # a read-only mount of NFS
                return locks
    return NO_LOCKS


@dataclass(frozen=True, slots=True)
class Mount:
    """Type and options of a mounted file system; both decide how far locks reach."""

    kind: str
    """Type of the file system, ``nfs4`` for example."""
    options: frozenset[str]
    """Options of the mount and of the file system."""


def mount_id(fd: int) -> str:
    """Return the number of the mount of an open file or folder.

    Raises:
        OSError: the system does not show the number.
    """
    facts = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="utf-8")
    return next((line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:")), "")


def mount_of(fd: int) -> Mount:
    """Find the mount of an open file or folder; return a mount without a type where the system has no list."""
    with suppress(OSError):
        return read_mount(mount_id(fd), _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    return Mount("", frozenset())


def read_mount(mount_id: str, mounts: str) -> Mount:
    """Find a mount by its number in the text of ``/proc/self/mountinfo``.

    >>> read_mount("22", "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw").kind
    'ext4'
    """
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        head, tail = before.split(" "), after.split(" ")
        if head[0] == mount_id and len(head) > 5 and len(tail) > 2:
            return Mount(tail[0], frozenset([*head[5].split(","), *tail[2].split(",")]))
    return Mount("", frozenset())


def lock_reaches_all(kind: Kind, mount: Mount) -> bool:
    """Whether every machine with the same file system sees a lock on a file of the mount.

    >>> lock_reaches_all("flock", Mount("nfs4", frozenset({"local_lock=flock"})))
    False
    """
    if mount.kind in {"nfs", "nfs4"}:
        own = "flock" if kind == "flock" else "posix"
        return not mount.options & {f"local_lock={own}", "local_lock=all", "nolock"}
    if mount.kind in {"cifs", "smb3", "lustre"}:
        return not mount.options & {"nobrl", "localflock"}
    if mount.kind == "fuse.fuse-overlayfs":  # the root of a container without privileges: a local disk
        return True
    return mount.kind not in {"fuse", "virtiofs", "9p", "beegfs", "afs"} and not mount.kind.startswith("fuse.")


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file or folder for the duration of the block."""
    fd = open_nofollow(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def open_file(path: Path, flags: int, mode: Literal["rb", "wb"], buffering: int = -1) -> BinaryIO:
    """Open a file object with :func:`open_nofollow`."""
    fd = open_nofollow(path, flags)
    try:
        return os.fdopen(fd, mode, buffering)
    except OSError:  # a folder, for example
        os.close(fd)
        raise


@contextmanager
def closed_on_error(file: BinaryIO) -> Iterator[None]:
    """Close a file if the block raises an error."""
    try:
        yield
    except BaseException:
        file.close()
        raise


def open_nofollow(path: Path, flags: int, folder: int | None = None) -> int:
    """Open a file without following a symbolic link, and without waiting for the other end of a FIFO.

    A new file is private. ``path`` is relative to ``folder``, the descriptor of an open folder, if given.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)


def names_open_file(path: Path, fd: int) -> bool:
    """Whether ``path`` still names the open file: the file was neither removed nor replaced."""
    try:
        named, held_open = path.lstat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (held_open.st_dev, held_open.st_ino)


def _whole_file(kind: int) -> bytes:
    """A ``struct flock`` over a whole file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


@contextmanager
def _trial_files(folder: Path | None, blobs: Path) -> Iterator[list[Path]]:
    """Create a file to try locks on; where no file can be created, list existing blobs instead."""
    path = (folder or blobs) / f"{TRIAL}{secrets.token_hex(8)}"
    try:
        if folder is None:
            raise FileNotFoundError(path)
        os.close(open_nofollow(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    except OSError:
        yield list(_some(blobs.glob("??/*")))
        return
    try:
        yield [path]
    finally:
        with suppress(OSError):
            path.unlink()


def _some(paths: Iterable[Path]) -> Iterator[Path]:
    with suppress(OSError):
        yield from islice(paths, _MAX_TRIED)


def _exclusive_works(locks: FileLocks, path: Path) -> bool:
    """Whether a shared lock excludes an exclusive lock, and the exclusive lock is granted afterwards.

    Another process may use a blob; on a blob an exclusive lock that is refused without an error is enough.
    """
    with suppress(OSError), ExitStack() as stack:
        reader = stack.enter_context(opened(path))
        writer = stack.enter_context(locks.open_for_exclusive(path))
        locks.lock_shared(reader)
        if locks.try_exclusive(writer):
            return False
        locks.unlock(reader)
        return locks.try_exclusive(writer) or not path.name.startswith(TRIAL)
    return False


def _shared_works(locks: FileLocks, path: Path) -> bool:
    with suppress(OSError), opened(path) as fd:
        locks.lock_shared(fd)
        return True
    return False
