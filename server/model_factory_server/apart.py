"""Work in a copy of a process: what it does to modules, registries or the environment ends with the copy."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from typing import TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1


def apart(work: Callable[[], T]) -> T | None:
    """Return what ``work`` returns, which must be picklable, or None if it raised or its process died.

    Forks, so it is for processes with one thread and without a CUDA context.
    """
    receiver, sender = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            sender.send(work())
        finally:
            os._exit(0)
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        return None
    else:
        return result
    finally:
        receiver.close()
        os.waitpid(child, 0)


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
