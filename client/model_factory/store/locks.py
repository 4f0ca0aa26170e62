"""Locks between processes of a node: one holder at a time, and those who wait can see who it is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from model_factory.store.locking import TRIAL, Locking, open_file, open_nofollow, opened

SAY_AFTER_SECONDS = 2.0
"""Waited before it is said who holds the lock."""

LEFT_AFTER_SECONDS = 86400.0
"""Age of a file that counts as left over where no lock tells whether its writer lives."""

SCRATCH_LOCK = "lock"
"""Name of the file in a scratch folder that the owner of the folder holds a lock on."""

_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lock, as it wrote down itself."""

    pid: int
    """In its own container's numbers."""
    host: str
    """Name of its machine or container."""
    doing: str
    """For people."""
    since: float
    """Seconds since the epoch."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which {self.doing} for {max(0.0, time.time() - self.since):.0f} s"


OnWait = Callable[[Holder | None], None]
"""Told whom one waits for, once it takes a while and again when that changes; None: it did not say."""


@contextmanager
def held(path: Path, locking: Locking, doing: str, on_wait: OnWait) -> Iterator[None]:
    """Hold the lock that is the file ``path``; it goes when this process dies.

    Where locks do not work nobody waits: the same work may be done twice.
    """
    if not locking.claims:
        yield
        return
    with _locked_file(path, locking, on_wait) as file:
        holder = Holder(pid=os.getpid(), host=socket.gethostname(), doing=doing, since=time.time())
        with suppress(OSError):  # it is for people; what the lock is held for may well make room on a full disk
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), json.dumps(asdict(holder)).encode())
        try:
            yield
        finally:
            with suppress(OSError):  # a file that cannot be removed is the next holder's
                path.unlink()  # those who wait for this very file look again, see _locked_file


def read_holder(path: Path) -> Holder | None:
    """Who holds a lock, or None if nobody does or it does not say."""
    try:
        with path.open("rb") as file:
            return Holder(**json.loads(file.read(4096)))
    except (OSError, ValueError, TypeError):
        return None


def sweep(folder: Path, locking: Locking) -> None:
    """Remove what holders that died left in a folder of locks or staged files; what others hold or own stays.

    Where a lock does not tell whether a holder lives, files go once they are old, and folders stay.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if stat.S_ISDIR(path.lstat().st_mode):
                    _sweep_folder(path, locking)
                else:
                    _sweep_file(path, locking)


def _sweep_file(path: Path, locking: Locking) -> None:
    if not locking.evicts or path.name.startswith(TRIAL):  # a trial on a file is disturbed by other locks
        if time.time() - path.lstat().st_mtime > LEFT_AFTER_SECONDS:
            path.unlink()
        return
    with locking.open_to_claim(path) as number:
        if locking.claim(number) and is_file_of(path, number):
            path.unlink()


def _sweep_folder(path: Path, locking: Locking) -> None:
    if locking.evicts:
        with owned_folder(path, locking) as number:
            if number is not None:
                shutil.rmtree(path)


@contextmanager
def owned_folder(path: Path, locking: Locking) -> Iterator[int | None]:
    """Open a folder and hold its lock; None if another process holds the lock, or removed the folder."""
    with ExitStack() as stack:
        try:
            number = stack.enter_context(opened(path))
            lock = open_nofollow(Path(SCRATCH_LOCK), os.O_RDWR | os.O_CREAT, number)
            stack.callback(os.close, lock)
            is_owned = not locking.claims or (locking.claim(lock) and is_file_of(path / SCRATCH_LOCK, lock))
        except FileNotFoundError:
            is_owned = False
        yield number if is_owned else None


def writable_by_others(found: os.stat_result) -> bool:
    """Whether another user, who is not root, owns a file, or may write to it."""
    return found.st_uid not in {os.getuid(), 0} or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def is_file_of(path: Path, number: int) -> bool:
    """Whether ``path`` still names the open file, and not none or another one."""
    try:
        named, held_open = path.stat(), os.fstat(number)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (held_open.st_dev, held_open.st_ino)


@contextmanager
def _locked_file(path: Path, locking: Locking, on_wait: OnWait) -> Iterator[BinaryIO]:
    say_at = time.monotonic() + SAY_AFTER_SECONDS
    said: Holder | None = None
    while True:
        with _open_lock(path) as file:
            if locking.claim(file.fileno()):
                if is_file_of(path, file.fileno()):
                    yield file
                    return
                continue
        if time.monotonic() >= say_at and (holder := read_holder(path)) != said:
            said = holder
            on_wait(holder)
        time.sleep(_POLL_SECONDS)


def _open_lock(path: Path) -> BinaryIO:
    try:
        return open_file(path, os.O_WRONLY | os.O_CREAT, "wb", 0)
    except PermissionError:  # another user's lock, which can be waited for all the same
        return open_file(path, os.O_RDONLY, "rb", 0)
