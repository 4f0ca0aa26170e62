"""Runs each job in a worker process of its own, within bounds, and reads the worker's messages. Imports no torch."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from model_factory import errors
from model_factory.errors import safe_text
from model_factory.limits import MAX_DOCUMENT_BYTES, MAX_WARNING_CHARS, MAX_WARNINGS
from model_factory.store import Store
from model_factory.wording import shortened
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.current_fork_server import CurrentForkServer
from model_factory_server.builds.fair_shares import Claim
from model_factory_server.builds.fork_server import ForkServer, WorkerProcess
from model_factory_server.observe.metrics import Metrics
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.files.read_files import ReadFile
from model_factory_server.worker.messages import (
    BlobsEvicted,
    ErrorLogged,
    FileStored,
    JobDone,
    JobFailed,
    ModelWarned,
    StageEntered,
    WarningRaised,
    decode_message,
)
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import Job, Task

log = logging.getLogger(__name__)

Output = TypeVar("Output")

StageCallback = Callable[[Stage], None]
"""Called with every stage of a job."""

_Ended = tuple[JobDone, tuple[str, ...]]  # the last message, and the warnings of constructors
_EXIT_SECONDS = 10.0  # from the last message of a worker to its end


@dataclass(frozen=True, slots=True)
class JobResult(Generic[Output]):
    """The result of a job."""

    output: Output
    """The output of the task."""
    files: tuple[ReadFile, ...]
    """Files read by the job."""
    warnings: tuple[str, ...] = ()
    """Warnings of the model's constructors."""


class WorkerPool:
    """Runs jobs, at most ``--workers`` at the same time."""

    def __init__(
        self, settings: Settings, store: Store, backend: BackendIdentity, admission: Admission, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._backend = backend
        self._admission = admission
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(max_workers=settings.workers, thread_name_prefix="worker")
        self._processes: set[WorkerProcess] = set()
        self._warnings: set[str] = set()
        allows_variable, with_gpus = settings.isolation.allows_variable, backend.device_kind != "cpu"
        self._fork_server = CurrentForkServer(
            lambda: ForkServer(allows_variable, with_gpus=with_gpus), metrics.fork_server_replacements.inc
        )

    @property
    def queued(self) -> int:
        """Number of jobs waiting for a worker."""
        return self._admission.waiting

    @property
    def running(self) -> int:
        """Number of worker processes."""
        return len(self._processes)

    def close(self) -> None:
        """End every worker process at once."""
        for process in list(self._processes):
            process.end()
        self._threads.shutdown(wait=True)
        self._fork_server.close()

    async def run(
        self,
        task: Task,
        decode: Callable[[object], Output],
        on_stage: StageCallback,
        *,
        claim: Claim,
        seconds: float = 0.0,
    ) -> JobResult[Output]:
        """Run a task in a worker; after a cancellation the process is killed before this method returns.

        Args:
            task: What to do.
            decode: Reads the document of the task's output.
            on_stage: Called with every stage.
            claim: The claim of the job's clients on a worker.
            seconds: Time for the job; a longer limit of the operator applies instead.

        Raises:
            BusyError: too many jobs wait already.
            ModelFactoryError: the job failed.
        """
        seconds = max(seconds, self._settings.limits.build_timeout)
        while True:
            await self._fork_server.wait_for(claim.clients)  # first, so that no worker is held meanwhile
            async with self._admission.worker(claim):
                if self._fork_server.is_ready_for(claim.clients):
                    done, warnings = await self._run(task, on_stage, claim, seconds)
                    return JobResult(decode(done.output), done.files, warnings)

    async def _run(self, task: Task, on_stage: StageCallback, claim: Claim, seconds: float) -> _Ended:
        """Run a task in a new worker."""
        loop = asyncio.get_running_loop()

        def on_stage_in_loop(stage: Stage) -> None:
            loop.call_soon_threadsafe(on_stage, stage)

        fork_server = self._fork_server.get()
        process = WorkerProcess(fork_server, self._job(task))
        self._processes.add(process)
        # In the context of this RPC, so that log lines of the thread name the RPC.
        context = contextvars.copy_context()
        attend = functools.partial(self._attend, process, on_stage_in_loop, seconds)
        attending = loop.run_in_executor(self._threads, context.run, attend)
        # After a cancellation the thread fails together with its process, and nobody reads the error.
        attending.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            return await asyncio.shield(attending)
        except asyncio.CancelledError:
            process.end()
            await asyncio.wait({attending})
            raise
        finally:
            if process.crashed:
                self._fork_server.note_crash(fork_server, claim.clients)
            self._fork_server.replace_if_ended()

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

    def _attend(self, process: WorkerProcess, on_stage: StageCallback, seconds: float) -> _Ended:
        """Start a worker and read its messages until its end; runs in a thread."""
        killer = threading.Timer(seconds + _EXIT_SECONDS, process.end)  # for a worker stopped within a message
        killer.start()
        try:
            with process.start() as connection:
                try:
                    ended = self._read_messages(process, connection, on_stage, seconds)
                except (EOFError, ConnectionError):
                    raise self._error_of(process) from None
                if process.wait(_EXIT_SECONDS) != 0:
                    raise self._error_of(process)
                return ended
        finally:
            killer.cancel()
            process.clear()
            self._processes.discard(process)
            with suppress(OSError):  # the next sweep removes the rest
                self._store.sweep()

    def _error_of(self, process: WorkerProcess) -> errors.ModelFactoryError:
        return _error_of_dead_worker(process.wait(_EXIT_SECONDS), self._settings.limits.build_cpu_timeout)

    def _read_messages(
        self, process: WorkerProcess, receiver: Connection, on_stage: StageCallback, seconds: float
    ) -> _Ended:
        """Read messages up to the last message, and return the last message and the warnings.

        Raises:
            EOFError: the worker died before its last message.
            LimitError: the worker took too long.
            ModelFactoryError: the job failed.
        """
        deadline = time.monotonic() + seconds
        warnings: list[str] = []
        while process.has_message(receiver, max(0.0, deadline - time.monotonic())):
            match decode_message(receiver.recv_bytes(MAX_DOCUMENT_BYTES)):
                case JobDone() as done:
                    return done, tuple(warnings)
                case JobFailed() as failed:
                    raise failed.exception()
                case StageEntered(stage):
                    on_stage(stage)
                case BlobsEvicted(size):
                    self._note_evicted(size)
                case FileStored(size):
                    self._store.grow(size)
                case WarningRaised(text):
                    self._warn(text)
                case ModelWarned(text):
                    _note_warning(warnings, text)
                case ErrorLogged(text):
                    log.error("a worker process failed:\n%s", text)
        raise errors.LimitError(f"the job took longer than the {seconds:g} seconds that this server allows")

    def _warn(self, text: str) -> None:
        """Log a warning once: all workers share its cause, and the warm-up build is the first to raise the warning."""
        if text not in self._warnings:
            self._warnings.add(text)
            log.warning("worker processes warn: %s", text)

    def _note_evicted(self, size: int) -> None:
        self._metrics.evicted_bytes.inc(size)
        if size:
            log.info("evicted blobs of %d bytes from the store to make room", size)


def _note_warning(warnings: list[str], text: str) -> None:
    """Log a constructor's warning with the build's RPC, and note the warning for the record of the build."""
    if len(warnings) < MAX_WARNINGS:
        warnings.append(shown := safe_text(shortened(text, MAX_WARNING_CHARS)))
        log.warning("a constructor warns: %s", shown)


def _error_of_dead_worker(exit_code: int | None, cpu_seconds: float) -> errors.ModelFactoryError:
    """Return the error for a worker dead before its last message."""
    if exit_code == -signal.SIGXCPU:
        return errors.LimitError(
            f"the build used more than the {cpu_seconds:g} seconds of processor time that this server allows"
        )
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the node may be out of memory" if name == "SIGKILL" else ""
        return errors.BuildError(f"the worker process was ended by {name}{hint}")
    how = "closed its pipe" if exit_code is None else f"ended with status {exit_code}"
    return errors.BuildError(f"the worker process {how} before it had a result")
