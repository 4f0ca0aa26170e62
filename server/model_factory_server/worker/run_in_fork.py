"""Work in a fork of a process: changes to modules, registries or the environment end with the fork."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from typing import TypeVar

from model_factory_server.worker.sandbox import CRASHES, die_with

T = TypeVar("T")

_DONE, _NO_MEMORY, _DIED = "done", "no memory", "died"


def run_in_fork(work: Callable[[], T], seconds: float) -> T | None:
    """Call ``work`` in a fork and return its result, a picklable object; ``None`` if ``work`` failed or the fork died.

    For processes with one thread and without a CUDA context. Child processes of the fork are killed at the end. A
    signal that shows an error in the fork ends this process as well: the server has to know of every crash.

    Raises:
        TimeoutError: ``work`` took longer than ``seconds``, or used up the processor time of this process.
        MemoryError: ``work`` needed more memory than this process may have.

    Example:
        >>> run_in_fork(lambda: 6 * 7, seconds=10.0)
        42
    """
    receiver, sender = Pipe(duplex=False)
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            die_with(parent)
            os.setpgid(0, 0)  # a process group of its own, in the session of this process
            sender.send((_DONE, work()))
        except MemoryError:
            sender.send((_NO_MEMORY, None))
        finally:
            os._exit(0)
    sender.close()
    try:
        reply = receiver.recv() if receiver.poll(seconds) else None
    except EOFError:
        reply = (_DIED, None)
    finally:
        receiver.close()
        status = _kill_group(child)
    if status in CRASHES:
        signal.signal(status, signal.SIG_DFL)
        os.kill(os.getpid(), status)
    match reply:
        case (str(kind), result) if kind == _DONE:
            value: T = result
            return value
        case (str(kind), _) if kind == _NO_MEMORY:
            raise MemoryError
    if reply is None or status == signal.SIGXCPU:
        raise TimeoutError
    return None


def _kill_group(child: int) -> int:
    """Kill a fork and its process group; return the signal that ended the fork, or 0."""
    for kill in (os.kill, os.killpg):
        with suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
