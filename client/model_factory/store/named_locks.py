"""Named locks between the processes of a node: one holder at a time, and waiting processes can see the holder."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import BinaryIO

from model_factory.store.file_locks import FileLocks, closed_on_error, names_open_file, open_file
from model_factory.wording import printable

REPORT_AFTER_SECONDS = 2.0
"""Time to wait for a lock before the holder is reported."""

_POLL_SECONDS = 0.02
_MAX_TAKEN = 10  # times that another user takes the name of a lock before this process goes on without the lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The holder of a lock, as the holder described itself in the lock's file."""

    pid: int
    """Process id, in the numbering of the holder's container."""
    host: str
    """Name of the holder's machine or container."""
    doing: str
    """The work in progress, for people."""
    since: float
    """Start of the work, in seconds since the epoch."""

    def __str__(self) -> str:
        seconds = max(0.0, time.time() - self.since)
        return printable(f"process {self.pid} on {self.host}, which {self.doing} for {seconds:.0f} s")


OnWait = Callable[[Holder | None], None]
"""Called with the lock's holder after ``REPORT_AFTER_SECONDS``, and when the holder changes; None if unknown."""


@contextmanager
def hold_lock(path: Path, locks: FileLocks, user: int, doing: str, on_wait: OnWait) -> Iterator[None]:
    """Hold the lock of the file ``path``; the kernel releases the lock when this process dies.

    Where exclusive locks do not work, or another user than ``user`` has taken the name of the file and keeps the name,
    no process waits: the same work may be done twice.
    """
    if not locks.exclusive:
        yield
        return
    with _locked_file(path, locks, user, on_wait) as file:
        if file is None:
            yield
            return
        holder = Holder(pid=os.getpid(), host=socket.gethostname(), doing=doing, since=time.time())
        with suppress(OSError):  # for people; the work under the lock may be to make room on a full disk
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), json.dumps(asdict(holder)).encode())
        try:
            yield
        finally:
            with suppress(OSError):  # a file that cannot be removed is left to the next holder
                path.unlink()  # a process that waits for this file notices, see _locked_file


def read_holder(path: Path) -> Holder | None:
    """Read the holder of a lock; None without a holder or a readable description."""
    try:
        with open_file(path, os.O_RDONLY, "rb") as file:
            holder = Holder(**json.loads(file.read(4096)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    types = (int, str, str, float)  # another user may have written the file
    return holder if tuple(map(type, astuple(holder))) == types else None


@contextmanager
def _locked_file(path: Path, locks: FileLocks, user: int, on_wait: OnWait) -> Iterator[BinaryIO | None]:
    report_at = time.monotonic() + REPORT_AFTER_SECONDS
    reported: Holder | None = None
    taken = 0
    while True:
        opened = _open_lock(path, user)
        if opened is None:
            taken += 1
            if taken < _MAX_TAKEN and _removed(path):
                continue
            yield None
            return
        with opened as file:
            if locks.try_exclusive(file.fileno()):
                if names_open_file(path, file.fileno()):
                    yield file
                    return
                continue
        if time.monotonic() >= report_at and (holder := read_holder(path)) != reported:
            reported = holder
            on_wait(holder)
        time.sleep(_POLL_SECONDS)


def _open_lock(path: Path, user: int) -> BinaryIO | None:
    """Open the file of a lock, or return None if another user has taken the name."""
    try:
        file = open_file(path, os.O_WRONLY | os.O_CREAT, "wb", 0)
    except OSError:
        with suppress(FileNotFoundError):
            if path.lstat().st_uid != user:
                return None
        raise
    with closed_on_error(file):
        found = os.fstat(file.fileno())
        if found.st_uid == user and stat.S_ISREG(found.st_mode):
            return file
    file.close()
    return None


def _removed(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a sticky folder, or a folder in the place of the file
        return False
    return True
