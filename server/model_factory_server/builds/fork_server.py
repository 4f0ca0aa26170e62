"""The fork server, and its worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from model_factory.environment import only_variables
from model_factory_server.worker.sandbox import NO_GPUS, kill_session
from model_factory_server.worker.task import Job

# In this order: the last module checks that the process can be forked, and freezes all imported objects.
_PRELOADED = ["model_factory_server.builds.fork_server", "model_factory_server.worker.preload"]
_VARIABLES = {
    "THP_MEM_ALLOC_ENABLE": "1",  # huge pages for large tensors: a fraction of the page faults
    "OPENBLAS_NUM_THREADS": "1",  # otherwise NumPy's OpenBLAS starts threads at its import, in the process that forks
}


@contextmanager
def socket_in(folder: Path) -> Iterator[None]:
    """Let ``multiprocessing`` keep the fork server's socket in ``folder``, if the file system allows sockets.

    By default ``multiprocessing`` makes a temporary folder, and the folder outlives a killed server.
    """
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001  there is no public way
    before = config.get("tempdir")
    if _takes_sockets(folder):
        config["tempdir"] = str(folder)
    try:
        yield
    finally:
        config["tempdir"] = before


def _takes_sockets(folder: Path) -> bool:
    """Whether a socket can be made in a folder; some network and FUSE file systems refuse sockets."""
    path = folder / "trial"
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.bind(str(path))
        except OSError:
            return False
    with suppress(OSError):
        path.unlink()
    return True


class ForkServer:
    """A process with torch imported, and with only the environment variables allowed for workers."""

    def __init__(self, allows_variable: Callable[[str], bool], *, with_gpus: bool) -> None:
        """Start the process; ``with_gpus``: leave GPUs visible, subject to ``allows_variable``."""
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        self._allows_variable = allows_variable
        self._variables = _VARIABLES if with_gpus else _VARIABLES | NO_GPUS
        self._lock = threading.Lock()
        self._pid: int | None = None
        self.ensure()

    def ensure(self) -> None:
        """Start the process unless the process is running.

        ``multiprocessing`` would restart a dead process itself, with all variables of the server.
        """
        with self._lock:
            if self._pid is None or _has_ended(self._pid):
                with only_variables(self._allows_variable, self._variables):
                    forkserver.ensure_running()
                self._pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # noqa: SLF001


def _has_ended(child: int) -> bool:
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


class WorkerProcess:
    """A worker process with its job; may be ended from another thread at any time."""

    def __init__(self, fork_server: ForkServer, job: Job, sender: Connection) -> None:
        """Prepare a process for a job; the process sends messages through ``sender``."""
        self._fork_server = fork_server
        self._process = fork_server.context.Process(target=_enter_worker, args=(job, sender), daemon=True)
        self._lock = threading.Lock()
        self._is_ended = False
        self._is_cleared = False
        self.exited_cleanly = False
        """Whether the worker sent a result: a worker without a result may leave child processes behind."""

    def start(self) -> bool:
        """Start the process, unless :meth:`end` was called; return whether the process was started."""
        with self._lock:
            if not self._is_ended:
                self._fork_server.ensure()
                self._process.start()
            return not self._is_ended

    def end(self) -> None:
        """Kill the process and its group, and prevent a later start."""
        with self._lock:
            self._is_ended = True
            if self._is_cleared or self._process.pid is None:
                return
            self._process.kill()
            with suppress(ProcessLookupError):  # the group does not exist yet, or not any more
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the end of the process and return the exit code; a negative code is the number of a signal.

        None if the process was not started, or has not ended within ``seconds``.
        """
        if self._process.pid is not None:
            self._process.join(seconds)
        return self._process.exitcode

    def clear(self) -> None:
        """End the process and its children, and release the process id: another process may get the same id."""
        self.end()
        self.wait()
        if not self.exited_cleanly and self._process.pid is not None:
            kill_session(self._process.pid)
        with self._lock:
            self._is_cleared = True
            self._process.close()  # otherwise its pipes stay open until a garbage collection


def _enter_worker(job: Job, sender: Connection) -> None:
    """Begin a worker.

    A worker first imports the module of this function. Importing gRPC there would cost every worker almost 0.1 s.
    """
    os.dup2(2, 1)  # prints of blocks go to the log; standard output has the server's address alone
    from model_factory_server.worker import preload  # noqa: PLC0415  imports torch, in the fork server and workers alone

    preload.run_job(job, sender)
