"""Worker processes at work: each job in one of its own, within bounds, and heard until it ends. Imports no torch."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from model_factory import errors
from model_factory.documents import decode_document
from model_factory.limits import MAX_DOCUMENT_BYTES
from model_factory.store import Store
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.fork_server import ForkServer, WorkerProcess
from model_factory_server.observe.metrics import Metrics
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import Job, Task

log = logging.getLogger(__name__)

StageCallback = Callable[[Stage], None]
"""Told of every stage that a job enters."""

_EXIT_SECONDS = 10.0  # from a worker's last word to its end


class WorkerPool:
    """Runs jobs, as many at the same time as there are builders."""

    def __init__(
        self, settings: Settings, store: Store, backend: BackendIdentity, admission: Admission, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._backend = backend
        self._admission = admission
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(max_workers=settings.workers, thread_name_prefix="builder")
        self._attempts: set[WorkerProcess] = set()
        self._warned: set[str] = set()
        self._forks = ForkServer(settings.isolation.allows_variable, with_gpus=backend.device_kind != "cpu")

    @property
    def queued(self) -> int:
        """Jobs that wait for a builder."""
        return self._admission.waiting

    @property
    def running(self) -> int:
        """Worker processes there are."""
        return len(self._attempts)

    def close(self) -> None:
        """End every worker process at once."""
        for attempt in list(self._attempts):
            attempt.end()
        self._threads.shutdown(wait=True)

    async def run(self, task: Task, report: StageCallback, *, client: str = "", seconds: float = 0.0) -> Any:
        """Do a task within the operator's time for a build or ``seconds``.

        ``client`` is whose share of builders it takes. When it is cancelled the process is killed before this returns.

        Raises:
            BusyError: too many jobs wait already.
            ModelFactoryError: it failed.
        """
        loop = asyncio.get_running_loop()

        def relay(stage: str) -> None:
            loop.call_soon_threadsafe(report, Stage(stage))

        seconds = max(seconds, self._settings.limits.build_timeout)
        async with self._admission.builder(client):
            receiver, sender = self._forks.context.Pipe(duplex=False)  # here, so that what waits has none
            attempt = WorkerProcess(self._forks, self._job(task), sender)
            self._attempts.add(attempt)
            # In this call's context, so that what the thread logs belongs to it.
            context, attend = contextvars.copy_context(), functools.partial(self._attend, attempt, receiver, sender)
            attending = loop.run_in_executor(self._threads, context.run, attend, relay, seconds)
            # Given up, it fails with its process, and nobody is there to hear of it.
            attending.add_done_callback(lambda future: future.cancelled() or future.exception())
            try:
                return await asyncio.shield(attending)
            except asyncio.CancelledError:
                attempt.end()
                await asyncio.wait({attending})
                raise

    def _job(self, task: Task) -> Job:
        cores = len(os.sched_getaffinity(0))
        return Job(
            task=task,
            store=self._store.root,
            backend=self._settings.backend,
            code_stamp=self._backend.code_stamp,
            device_kind=self._backend.device_kind,
            limits=self._settings.limits,
            isolation=self._settings.isolation,
            threads=max(1, cores // self._settings.workers),
        )

    def _attend(
        self, attempt: WorkerProcess, receiver: Connection, sender: Connection, report: StageCallback, seconds: float
    ) -> Any:
        """Start a worker and listen to it until it ends; runs in a thread."""
        last = threading.Timer(seconds + _EXIT_SECONDS, attempt.end)  # of one that stops in the middle of a word
        last.start()
        try:
            with receiver:
                with sender:
                    started = attempt.start()
                if not started:
                    raise errors.ServerError("the server ended before this job began")
                try:
                    result = _listen(receiver, self._handlers(report), seconds)
                except EOFError:
                    raise _death(attempt.wait(_EXIT_SECONDS), self._settings.limits.build_cpu_timeout) from None
                attempt.exited_cleanly = True
                return result
        finally:
            last.cancel()
            attempt.clear()
            self._attempts.discard(attempt)
            with suppress(OSError):  # what is left over is swept another time
                self._store.sweep()

    def _handlers(self, report: StageCallback) -> dict[str, Callable[[Any], None]]:
        """Who hears what a worker tells besides its result."""
        return {"stage": report, "evicted": self._note_evicted, "log": _log, "warning": self._warn}

    def _warn(self, text: str) -> None:
        """Log what a worker warns of; what is so for all of them, at the first: the warm-up build, before any call."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("builder processes warn: %s", text)

    def _note_evicted(self, size: int) -> None:
        self._metrics.evicted_bytes.inc(size)
        if size:
            log.info("blobs of %d bytes left the store to make room", size)


def _death(exit_code: int | None, cpu_seconds: float) -> errors.ModelFactoryError:
    """What to say of a worker that died without a word."""
    if exit_code == -signal.SIGXCPU:
        return errors.LimitError(
            f"the build used more than the {cpu_seconds:g} seconds of processor time that this server allows"
        )
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the node may be out of memory" if name == "SIGKILL" else ""
        return errors.BuildError(f"the builder process was ended by {name}{hint}")
    how = "fell silent" if exit_code is None else f"ended with status {exit_code}"
    return errors.BuildError(f"the builder process {how} before it had a result")


def _log(text: str) -> None:
    log.error("a builder process says:\n%s", text)


def _listen(receiver: Connection, told: Mapping[str, Callable[[Any], None]], seconds: float) -> Any:
    """Return a worker's result, or raise its error; EOFError if it died without either. ``told`` hears the rest."""
    deadline = time.monotonic() + seconds
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        kind, body = decode_document(receiver.recv_bytes(MAX_DOCUMENT_BYTES), "what a builder process says")
        if kind == "result":
            return body
        if kind == "error":
            name, text, path = body
            cls = getattr(errors, name)
            raise cls(text, path=tuple(path)) if issubclass(cls, errors.LocatedError) else cls(text)
        told[kind](body)
    raise errors.LimitError(f"the build took longer than the {seconds:g} seconds that this server allows")
