"""File locks: the kind that works in a folder is found by a trial, and its reach by the options of the mount.

File systems differ. ``flock`` fails on some network and FUSE file systems. NFS grants an exclusive lock only to a
descriptor that is open for writing. Other file systems grant a lock to everybody, or keep the lock inside one machine.
Each kind of lock here belongs to the open file: the lock lasts until the last descriptor and the last mapping are gone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

Kind = Literal["flock", "ofd", "none"]

_MOUNTS = Path("/proc/self/mountinfo")
TRIAL = ".trial-"
"""Beginning of the name of a file that exists for a trial."""

_MAX_TRIED = 16
"""Blobs on which locks are tried in a folder where no file can be created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locking:
    """The locks that work in a folder."""

    kind: Kind
    """``flock``; ``ofd``, a lock of ``fcntl`` that belongs to the open file; or ``none``."""
    claims: bool
    """Whether an exclusive lock can be had."""
    writes: bool = False
    """Whether an exclusive lock needs a descriptor that is open for writing, as on NFS."""
    reaches_all: bool = True
    """Whether a lock is seen by other machines that mount the same file system."""

    @property
    def evicts(self) -> bool:
        """Whether a blob that can be locked here is certain to be in use nowhere."""
        return self.claims and self.reaches_all

    def share(self, number: int) -> None:
        """Take a shared lock on an open file; wait for an exclusive lock to end."""
        if self.kind == "flock":
            fcntl.flock(number, fcntl.LOCK_SH)
        elif self.kind == "ofd":
            fcntl.fcntl(number, fcntl.F_OFD_SETLKW, _whole_file(fcntl.F_RDLCK))

    def claim(self, number: int) -> bool:
        """Take an exclusive lock on an open file; return False if another descriptor has a lock, or locks do not work.

        The file is open for writing where ``writes`` says so.
        """
        if not self.claims:
            return False
        try:
            if self.kind == "flock":
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.fcntl(number, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except BlockingIOError:
            return False
        return True

    def release(self, number: int) -> None:
        """Give up the lock on an open file."""
        if self.kind == "flock":
            fcntl.flock(number, fcntl.LOCK_UN)
        elif self.kind == "ofd":
            fcntl.fcntl(number, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_UNLCK))

    @contextmanager
    def open_to_claim(self, path: Path) -> Iterator[int]:
        """Open a file as an exclusive lock needs the file to be open."""
        with opened(path, os.O_RDWR if self.writes else os.O_RDONLY) as number:
            yield number


NO_LOCKS = Locking(kind="none", claims=False)

_KINDS = (
    Locking(kind="flock", claims=True),
    Locking(kind="flock", claims=True, writes=True),
    Locking(kind="ofd", claims=True, writes=True),
)


def find_locking(folder: Path, blobs: Path) -> Locking:
    """Find the locks that work in a store, best first: locks that reach all machines, then the locks of this machine.

    The trial creates a file in ``folder``, and removes the file. Where no file can be created the trial uses blobs.
    """
    with opened(blobs) as number:
        mount = mount_of(number)
    kinds = [replace(locking, reaches_all=lock_reaches_all(locking.kind, mount)) for locking in _KINDS]
    with _trial_files(folder, blobs) as files:
        for locking in sorted(kinds, key=lambda locking: not locking.reaches_all):
            if any(_works(locking, file) for file in files):
                return locking
        for locking in (Locking(kind="flock", claims=False), Locking(kind="ofd", claims=False)):
            if any(_shares(locking, file) for file in files):  # a read-only mount of NFS
                return locking
    return NO_LOCKS


@dataclass(frozen=True, slots=True)
class Mount:
    """The part of a mounted file system that decides how far locks reach."""

    kind: str
    """Type of the file system, ``nfs4`` for example."""
    options: frozenset[str]
    """Options of the mount and of the file system."""


def mount_of(number: int) -> Mount:
    """Find the mount of an open file or folder; a mount without a type where the system does not tell."""
    with suppress(OSError):
        facts = Path(f"/proc/self/fdinfo/{number}").read_text(encoding="utf-8")
        mount_id = next((line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:")), "")
        return read_mount(mount_id, _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    return Mount("", frozenset())


def read_mount(mount_id: str, mounts: str) -> Mount:
    """Find a mount by its number in the text of ``/proc/self/mountinfo``."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        head, tail = before.split(" "), after.split(" ")
        if head[0] == mount_id and len(head) > 5 and len(tail) > 2:
            return Mount(tail[0], frozenset([*head[5].split(","), *tail[2].split(",")]))
    return Mount("", frozenset())


def lock_reaches_all(kind: Kind, mount: Mount) -> bool:
    """Whether a lock on a file of a mount is seen by every machine that mounts the same file system."""
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
    """Open a file or folder for as long as the block lasts."""
    number = open_nofollow(path, flags)
    try:
        yield number
    finally:
        os.close(number)


def open_file(path: Path, flags: int, mode: Literal["rb", "wb"], buffering: int = -1) -> BinaryIO:
    """Open a file as :func:`open_nofollow` does, for reading or writing."""
    number = open_nofollow(path, flags)
    try:
        return os.fdopen(number, mode, buffering)
    except OSError:  # a folder, for example
        os.close(number)
        raise


def open_nofollow(path: Path, flags: int, folder: int | None = None) -> int:
    """Open a file, never a link to another file, and without waiting for the other end of a FIFO.

    With ``folder``, the descriptor of an open folder, ``path`` is relative to the folder.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=folder)


def _whole_file(kind: int) -> bytes:
    """A ``struct flock`` over a whole file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


@contextmanager
def _trial_files(folder: Path, blobs: Path) -> Iterator[list[Path]]:
    """Create a file to try locks on, or name blobs that are there."""
    path = folder / f"{TRIAL}{secrets.token_hex(8)}"
    try:
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


def _works(locking: Locking, path: Path) -> bool:
    """Whether a shared lock keeps an exclusive lock away, and the exclusive lock is granted afterwards.

    Another process may have a blob in use; then a lock that is refused without an error is enough.
    """
    with suppress(OSError), ExitStack() as stack:
        reader = stack.enter_context(opened(path))
        writer = stack.enter_context(locking.open_to_claim(path))
        locking.share(reader)
        if locking.claim(writer):
            return False
        locking.release(reader)
        return locking.claim(writer) or not path.name.startswith(TRIAL)
    return False


def _shares(locking: Locking, path: Path) -> bool:
    with suppress(OSError), opened(path) as number:
        locking.share(number)
        return True
    return False
