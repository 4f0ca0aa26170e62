"""Work in a copy of a process: what it does to modules, registries or the environment ends with the copy."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from typing import TypeVar

from model_factory_server.confine import die_with_parent

T = TypeVar("T")

_DONE, _NO_MEMORY = "done", "no memory"


def apart(work: Callable[[], T], seconds: float) -> T | None:
    """Return what ``work`` returns, which must be picklable, or None if it raised or its process died.

    Forks, so it is for processes with one thread and without a CUDA context.

    Raises:
        TimeoutError: it took longer than ``seconds``.
        MemoryError: it needed more memory than this process may have.
    """
    receiver, sender = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            sender.send((_DONE, work()))
        except MemoryError:
            sender.send((_NO_MEMORY, None))
        finally:
            os._exit(0)
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError
        kind, result = receiver.recv()
        if kind == _NO_MEMORY:
            raise MemoryError
    except EOFError:
        return None
    else:
        value: T = result
        return value
    finally:
        receiver.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
