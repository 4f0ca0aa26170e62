"""Named locks between the processes of a node: one holder at a time, and waiting processes can see the holder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from model_factory.store.file_locks import FileLocks, names_open_file, open_file

REPORT_AFTER_SECONDS = 2.0
"""Time to wait for a lock before the holder is reported."""

_POLL_SECONDS = 0.02


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
        return f"process {self.pid} on {self.host}, which {self.doing} for {max(0.0, time.time() - self.since):.0f} s"


OnWait = Callable[[Holder | None], None]
"""Called with the lock's holder after ``REPORT_AFTER_SECONDS``, and when the holder changes; None if unknown."""


@contextmanager
def hold_lock(path: Path, locks: FileLocks, doing: str, on_wait: OnWait) -> Iterator[None]:
    """Hold the lock of the file ``path``; the kernel releases the lock when this process dies.

    Where exclusive locks do not work, no process waits: the same work may be done twice.
    """
    if not locks.exclusive:
        yield
        return
    with _locked_file(path, locks, on_wait) as file:
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
        with path.open("rb") as file:
            return Holder(**json.loads(file.read(4096)))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def _locked_file(path: Path, locks: FileLocks, on_wait: OnWait) -> Iterator[BinaryIO]:
    report_at = time.monotonic() + REPORT_AFTER_SECONDS
    reported: Holder | None = None
    while True:
        with _open_lock(path) as file:
            if locks.try_exclusive(file.fileno()):
                if names_open_file(path, file.fileno()):
                    yield file
                    return
                continue
        if time.monotonic() >= report_at and (holder := read_holder(path)) != reported:
            reported = holder
            on_wait(holder)
        time.sleep(_POLL_SECONDS)


def _open_lock(path: Path) -> BinaryIO:
    try:
        return open_file(path, os.O_WRONLY | os.O_CREAT, "wb", 0)
    except PermissionError:  # the lock of another user; waiting needs no permission to write
        return open_file(path, os.O_RDONLY, "rb", 0)
