"""Worker processes: the fork server that they come from, and each of them from its start to its end."""

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

# In this order: the last one has the check that this process can be forked, and freezes what is imported.
_PRELOADED = ["model_factory_server.builds.fork_server", "model_factory_server.worker.preload"]
_VARIABLES = {
    "THP_MEM_ALLOC_ENABLE": "1",  # large tensors take huge pages, with a fraction of the page faults
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's OpenBLAS would start threads at its import, in the process that forks
}


@contextmanager
def socket_in(folder: Path) -> Iterator[None]:
    """Have ``multiprocessing`` keep the fork server's socket in ``folder``.

    It makes a temporary folder of its own otherwise, which outlives a server that is killed. A file system without
    sockets leaves no other way.
    """
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001  there is no other way
    before = config.get("tempdir")
    if _takes_sockets(folder):
        config["tempdir"] = str(folder)
    try:
        yield
    finally:
        config["tempdir"] = before


def _takes_sockets(folder: Path) -> bool:
    """Whether a socket can be made in a folder: some network and FUSE file systems refuse sockets."""
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
    """A process that has imported torch, and is started with nothing but the variables that workers may see."""

    def __init__(self, allows_variable: Callable[[str], bool], *, with_gpus: bool) -> None:
        """``with_gpus`` is whether builds may see any, as far as ``allows_variable`` lets them."""
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        self._allows_variable = allows_variable
        self._variables = _VARIABLES if with_gpus else _VARIABLES | NO_GPUS
        self._lock = threading.Lock()
        self._pid: int | None = None
        self.ensure()

    def ensure(self) -> None:
        """Start it, also when it has died; otherwise ``multiprocessing`` would, with every variable there is."""
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
    """A worker process doing a job; may be given up from another thread at any time."""

    def __init__(self, forks: ForkServer, job: Job, sender: Connection) -> None:
        """Prepare a process that does a job, and sends what comes of it."""
        self._forks = forks
        self._process = forks.context.Process(target=_enter_worker, args=(job, sender), daemon=True)
        self._lock = threading.Lock()
        self._over = False
        self._gone = False
        self.exited_cleanly = False
        """Whether the process came to its end as it should, and so left nothing behind."""

    def start(self) -> bool:
        """Start the process, unless it has been given up."""
        with self._lock:
            if not self._over:
                self._forks.ensure()
                self._process.start()
            return not self._over

    def end(self) -> None:
        """Kill the process and its group; nothing is started from now on."""
        with self._lock:
            self._over = True
            if self._gone or self._process.pid is None:
                return
            self._process.kill()
            with suppress(ProcessLookupError):  # it had not made its group yet, or all are gone
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until the process has ended and return its exit code, negative for a signal's number.

        None if it has not begun, or has not ended after ``seconds``.
        """
        if self._process.pid is not None:
            self._process.join(seconds)
        return self._process.exitcode

    def clear(self) -> None:
        """End what is left, for good: from now on its number may be another process's."""
        self.end()
        self.wait()
        if not self.exited_cleanly and self._process.pid is not None:
            kill_session(self._process.pid)
        with self._lock:
            self._gone = True
            self._process.close()  # its pipes stay open until garbage is collected otherwise


def _enter_worker(job: Job, sender: Connection) -> None:
    """Where a worker begins: in this module, since the module of what it is told to call is imported there first.

    Importing one that knows gRPC would cost every worker almost a tenth of a second.
    """
    os.dup2(2, 1)  # what blocks print is for the log; standard output says where the server listens
    from model_factory_server.worker import preload  # noqa: PLC0415  torch, which only the fork server and its workers import

    preload.work(job, sender)
