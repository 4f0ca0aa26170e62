"""Locks between processes of a node: one holder at a time, and those who wait can see who it is."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

SAY_AFTER_SECONDS = 2.0
"""Waited before it is said who holds the lock."""

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
def held(path: Path, doing: str, on_wait: OnWait) -> Iterator[None]:
    """Hold the lock that is the file ``path``; it goes when this process dies."""
    with _locked_file(path, on_wait) as file:
        holder = Holder(pid=os.getpid(), host=socket.gethostname(), doing=doing, since=time.time())
        with suppress(OSError):  # it is for people; what the lock is held for may well make room on a full disk
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), json.dumps(asdict(holder)).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # those who wait for this very file look again, see _locked_file


def read_holder(path: Path) -> Holder | None:
    """Who holds a lock, or None if nobody does or it does not say."""
    try:
        with path.open("rb") as file:
            return Holder(**json.loads(file.read(4096)))
    except (OSError, ValueError, TypeError):
        return None


def sweep(folder: Path) -> None:
    """Remove what holders that died left in a folder of locks or staged files; what others hold or own stays."""
    for path in folder.iterdir():
        with suppress(OSError), opened(path) as number:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_file_of(path, number):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file or folder to lock it."""
    number = only_a_file(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


def only_a_file(path: Path, flags: int) -> int:
    """Open what is there itself: no link is followed, and nothing is waited for, as one does for the end of a FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)


def of_strangers(found: os.stat_result) -> bool:
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
def _locked_file(path: Path, on_wait: OnWait) -> Iterator[BinaryIO]:
    say_at = time.monotonic() + SAY_AFTER_SECONDS
    said: Holder | None = None
    while True:
        with os.fdopen(only_a_file(path, os.O_WRONLY | os.O_CREAT), "wb", buffering=0) as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                if is_file_of(path, file.fileno()):
                    yield file
                    return
                continue
        if time.monotonic() >= say_at and (holder := read_holder(path)) != said:
            said = holder
            on_wait(holder)
        time.sleep(_POLL_SECONDS)
