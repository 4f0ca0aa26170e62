"""The process of the fork server: forks a worker for each job, and ends everything that a worker leaves behind.

The server talks to this process through a socket without an address, so that no other process can ask for workers.
A request is a message with two descriptors: the connection of the job, and a socket for the worker's end. The server
closes its end of the socket to have the worker killed; this process writes the worker's exit code to the socket.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NoReturn

from model_factory_server.worker.sandbox import adopt_orphans, die_with, forbid_inspection, kill_children

READY = b"ready"
"""Message of the fork server once workers can be forked."""

JOB = b"job"
"""Request for a worker, with two descriptors."""

_FAILED = 1  # status of a worker that raised an error outside of a job


@dataclass(eq=False, slots=True)
class _Worker:
    """A worker that runs, or whose end has not been reported."""

    pid: int
    end: socket.socket
    """For the exit code; the other end is closed to have the worker killed."""
    code: int | None = None
    """Exit code; a negative code is the number of a signal."""


def main(control: int) -> None:
    """Serve requests for workers from the socket with the descriptor ``control``, until the socket is closed."""
    forbid_inspection()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    from model_factory_server.worker import preload  # noqa: PLC0415  takes seconds, and needs the settings above

    with socket.socket(fileno=control) as requests:
        with suppress(BrokenPipeError):
            requests.send(READY)
        _ForkServer(requests, preload.run_job).serve()


class _ForkServer:
    """The loop of the fork server."""

    def __init__(self, requests: socket.socket, run_job: Callable[[Connection], None]) -> None:
        self._requests = requests
        self._run_job = run_job
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_up, self._on_signal = socket.socketpair()

    def serve(self) -> None:
        """Serve until the server closes its socket; then kill every worker."""
        for end in (self._wake_up, self._on_signal):
            end.setblocking(False)
        signal.set_wakeup_fd(self._on_signal.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._requests, selectors.EVENT_READ)
        self._selector.register(self._wake_up, selectors.EVENT_READ)
        serving = True
        while serving:
            for key, _ in self._selector.select(0.0 if self._is_clearing() else None):
                if key.fileobj is self._requests:
                    serving = self._receive()
                elif key.fileobj is self._wake_up:
                    self._wake_up.recv_into(bytearray(4096))
                else:
                    self._kill(key.data)
            self._clear()
        while kill_children(keeping=()):
            pass

    def _is_clearing(self) -> bool:
        return any(worker.code is not None for worker in self._workers.values())

    def _receive(self) -> bool:
        """Fork a worker for a request; return False if the server has closed its socket."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._requests, len(JOB), 2)
        except ConnectionError:  # closed with the unread READY
            return False
        if not message:
            return False
        connection, end = descriptors
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError:  # too many processes, or no memory: the server sees the end of both descriptors
            traceback.print_exc()
            os.close(end)
            return True
        finally:
            if os.getpid() == parent:
                os.close(connection)
        if child == 0:
            self._enter_worker(parent, connection, end)
        worker = _Worker(child, socket.socket(fileno=end))
        self._workers[child] = worker
        self._selector.register(worker.end, selectors.EVENT_READ, worker)
        return True

    def _enter_worker(self, parent: int, connection: int, end: int) -> NoReturn:
        """Run a job in a fork, without the descriptors of the fork server."""
        status = _FAILED
        try:
            die_with(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(end)
            self._selector.close()
            for item in (
                self._requests,
                self._wake_up,
                self._on_signal,
                *(item.end for item in self._workers.values()),
            ):
                item.close()
            os.dup2(2, 1)  # prints of blocks go to the log; standard output has the server's address alone
            self._run_job(Connection(connection))
            status = 0
        except BaseException:  # noqa: BLE001  the fork must end here
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _kill(self, worker: _Worker) -> None:
        """Kill a worker whose job has been given up."""
        self._selector.unregister(worker.end)
        if worker.code is None:  # else the process id may belong to another process
            os.kill(worker.pid, signal.SIGKILL)

    def _clear(self) -> None:
        """Note which workers have ended, kill their orphans, and report the end once no orphan is left."""
        for worker in self._workers.values():
            if worker.code is None:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                worker.code = os.waitstatus_to_exitcode(status) if pid else None
        if not self._is_clearing():
            return
        living = [pid for pid, worker in self._workers.items() if worker.code is None]
        if kill_children(keeping=living):
            return
        for worker in [item for item in self._workers.values() if item.code is not None]:
            with suppress(KeyError):
                self._selector.unregister(worker.end)
            with suppress(OSError):  # the server waits no longer
                worker.end.send(str(worker.code).encode())
            worker.end.close()
            del self._workers[worker.pid]
