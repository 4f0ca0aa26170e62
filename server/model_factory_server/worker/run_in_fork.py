"""Work in a copy of a process: what it does to modules, registries or the environment ends with the copy."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from typing import TypeVar

from model_factory_server.worker.sandbox import die_with_parent

T = TypeVar("T")

_DONE, _NO_MEMORY, _DIED = "done", "no memory", "died"


def run_in_fork(work: Callable[[], T], seconds: float) -> T | None:
    """Return what ``work`` returns, which must be picklable, or None if it raised or its process died.

    Forks, so it is for processes with one thread and without a CUDA context.

    What the copy started is gone when this returns.

    Raises:
        TimeoutError: it took longer than ``seconds``, or all the processor time that this process may use.
        MemoryError: it needed more memory than this process may have.
    """
    receiver, sender = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            os.setpgid(0, 0)  # of its own, in this process's session
            sender.send((_DONE, work()))
        except MemoryError:
            sender.send((_NO_MEMORY, None))
        finally:
            os._exit(0)
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(seconds) else None
    except EOFError:
        answer = (_DIED, None)
    finally:
        receiver.close()
        status = _end(child)
    match answer:
        case (str(kind), result) if kind == _DONE:
            value: T = result
            return value
        case (str(kind), _) if kind == _NO_MEMORY:
            raise MemoryError
    if answer is None or status == signal.SIGXCPU:
        raise TimeoutError
    return None


def _end(child: int) -> int:
    """Kill a copy and its group; return the signal that ended the copy, or 0."""
    for kill in (os.kill, os.killpg):
        with suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
