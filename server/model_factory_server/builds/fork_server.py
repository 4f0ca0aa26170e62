"""Fork servers, and their worker processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from model_factory.environment import environment
from model_factory.errors import ServerError
from model_factory_server.worker.fork_server_main import JOB, READY
from model_factory_server.worker.sandbox import CRASHES, NO_GPUS
from model_factory_server.worker.task import Job

_VARIABLES = {
    "THP_MEM_ALLOC_ENABLE": "1",  # huge pages for large tensors: a fraction of the page faults
    "OPENBLAS_NUM_THREADS": "1",  # otherwise NumPy's OpenBLAS starts threads at its import, in the process that forks
}
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from model_factory_server.worker import fork_server_main as program; "
    "program.main({socket})"
)
_CODE_BYTES = 16
_END_SECONDS = 2.0


class ForkServer:
    """A process with torch imported, and with only the environment variables allowed for workers."""

    def __init__(self, allows_variable: Callable[[str], bool], *, with_gpus: bool) -> None:
        """Start the process; ``with_gpus``: leave GPUs visible, subject to ``allows_variable``."""
        variables = {name: value for name, value in environment().items() if allows_variable(name)}
        variables |= _VARIABLES if with_gpus else _VARIABLES | NO_GPUS
        self._requests, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = _PROGRAM.format(path=sys.path, socket=end.fileno())
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001  as multiprocessing
        with end:
            self._process = subprocess.Popen(  # noqa: S603  this package's own program
                [sys.executable, *flags, "-c", program],
                env=variables,
                stdin=subprocess.DEVNULL,
                pass_fds=[end.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal reaches the server alone, also during the imports
            )
        self._lock = threading.Lock()
        self._workers = 0
        self._is_retired = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def wait_until_ready(self) -> bool:
        """Wait until workers can be forked; return False if the process ended before."""
        return self._requests.recv_into(bytearray(len(READY))) > 0

    def fork(self, job: Job) -> tuple[Connection, socket.socket]:
        """Start a worker for a job; return the connection of the job, and the socket for the worker's end.

        Raises:
            OSError: the process has ended.
        """
        connection, theirs = multiprocessing.Pipe()
        end, their_end = socket.socketpair()
        try:
            with theirs, their_end, self._lock:
                socket.send_fds(self._requests, [JOB], [theirs.fileno(), their_end.fileno()])
                self._workers += 1
        except BaseException:
            connection.close()
            end.close()
            raise
        with suppress(OSError):  # the worker has ended: there is no message to read, either
            connection.send(job)
        return connection, end

    def release(self) -> None:
        """Note the end of a worker; a retired process ends with its last worker."""
        with self._lock:
            self._workers -= 1
            self._end_if_unused()

    def retire(self) -> None:
        """Fork no more workers; the process ends with its last worker."""
        with self._lock:
            self._is_retired = True
            self._end_if_unused()

    def wait_for_end(self) -> None:
        """Wait for the end of a process that has closed its sockets."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def close(self) -> None:
        """End the process and every process below; at its start, when no other process is below, at once."""
        with suppress(OSError):  # the process has ended
            self._requests.shutdown(socket.SHUT_RDWR)
        self._requests.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _end_if_unused(self) -> None:
        if self._is_retired and not self._workers:
            self._requests.close()
            threading.Thread(target=self._process.wait, daemon=True).start()


class WorkerProcess:
    """A worker process with its job; may be ended from another thread at any time."""

    def __init__(self, fork_server: ForkServer, job: Job) -> None:
        """Prepare a process for a job."""
        self._fork_server = fork_server
        self._job = job
        self._temporary = ""
        self._lock = threading.Lock()
        self._end: socket.socket | None = None
        self._is_ended = False
        self._code: int | None = None
        self.crashed = False
        """Whether a signal of an error ended the process: memory may have been overwritten."""

    def start(self) -> Connection:
        """Start the process and return the connection with its messages.

        Raises:
            ServerError: :meth:`end` was called before, or the fork server has ended.
        """
        with self._lock:
            if self._is_ended:
                raise ServerError("the server ended before this job began")
            try:
                self._temporary = tempfile.mkdtemp(prefix="model-factory-")
                job = dataclasses.replace(self._job, temporary=Path(self._temporary))
                connection, self._end = self._fork_server.fork(job)
            except OSError as error:
                raise ServerError(f"no worker process can be started: {error}") from error
            return connection

    def has_message(self, connection: Connection, seconds: float) -> bool:
        """Wait for a message; return False if ``seconds`` have passed.

        Raises:
            EOFError: the process has ended without another message; other processes can still hold the connection.
        """
        assert self._end is not None  # started
        ready = wait([connection, self._end], seconds)
        if ready and connection not in ready and not connection.poll():  # again: the last message precedes the end
            raise EOFError
        return bool(ready)

    def end(self) -> None:
        """Have the process killed, and prevent a later start."""
        with self._lock:
            self._is_ended = True
            if self._end is not None:
                with suppress(OSError):  # the fork server has ended, and its workers with it
                    self._end.shutdown(socket.SHUT_WR)

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until the process and all processes below have ended; return the exit code.

        A negative code is the number of a signal; None if the process was not started, or has not ended within
        ``seconds``, or if the fork server has ended.
        """
        if self._end is not None and self._code is None:
            self._end.settimeout(seconds)
            data = bytearray(_CODE_BYTES)
            with suppress(TimeoutError, ConnectionError):
                if size := self._end.recv_into(data):
                    self._code = int(data[:size])
                    self.crashed = not self._is_ended and -self._code in CRASHES
                else:
                    self._fork_server.wait_for_end()
        return self._code

    def clear(self) -> None:
        """End the process and all processes below, and remove temporary files."""
        self.end()
        self.wait()
        if self._temporary:
            with suppress(RecursionError):
                shutil.rmtree(self._temporary, ignore_errors=True)
        with self._lock:
            if self._end is not None:
                self._end.close()
                self._end = None
                self._fork_server.release()
