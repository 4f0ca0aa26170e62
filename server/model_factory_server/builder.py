"""Builds: from a key to what is in the store, each once, in worker processes. Imports no torch."""

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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from model_factory import errors
from model_factory.components import component_seed
from model_factory.config import ResolvedConfig, parse_config
from model_factory.documents import decode_document, encode_document
from model_factory.limits import MAX_DOCUMENT_BYTES
from model_factory.store import Blob, Store
from model_factory_server.admission import Admission
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.forks import Attempt, ForkServer
from model_factory_server.keys import architecture_key, build_key, call_key, outline_key
from model_factory_server.observe.call import current_call
from model_factory_server.observe.jobs import JobWatch
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.spans import Traces
from model_factory_server.settings import Settings

log = logging.getLogger(__name__)

OnStage = Callable[[str], None]

_EXIT_SECONDS = 10.0  # from a worker's last word to its end
_OWN_SECONDS = 60.0  # of the server's own jobs: the operator's limit is for what configs make grow
_WARM_UP = encode_document(
    {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 1, "out_features": 1}]}},
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A component in the store."""

    key: str
    """Its build key."""
    descriptor: Blob
    """The module tree."""
    programs: Blob
    """The recorded forwards."""
    weights: Blob
    """The parameters and buffers."""
    source: Blob | None
    """The bundle that its descriptor names; None where it needs none."""
    now: bool
    """Whether it was built for this request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A component's architecture."""

    documents: dict[str, bytes]
    """Its descriptor, and where it was asked for its programs and what is refused."""
    source: Blob | None
    """The bundle that its descriptor names; None where it needs none."""


class _Flight:
    """A job that is being done, and those who wait for it."""

    def __init__(self, watch: JobWatch) -> None:
        self.watch = watch
        self.listeners: list[OnStage] = []  # one of each who waits
        self.stage = "queued"
        self.task: asyncio.Task[Any] | None = None

    def report(self, stage: str) -> None:
        self.stage = stage
        self.watch.stage(stage)
        for listener in self.listeners:
            listener(stage)


class Builder:
    """Turns requests into builds; equal ones at the same time share one."""

    def __init__(
        self, settings: Settings, store: Store, backend: BackendIdentity, metrics: Metrics, traces: Traces
    ) -> None:
        self._settings = settings
        self._store = store
        self._backend = backend
        self._metrics = metrics
        self._traces = traces
        self.admission = Admission(settings.limits, settings.builders)
        self._threads = ThreadPoolExecutor(max_workers=settings.builders, thread_name_prefix="builder")
        self._flights: dict[str, _Flight] = {}
        self._attempts: set[Attempt] = set()
        self._warned: set[str] = set()
        self._forks = ForkServer(settings.isolation.allows_variable, with_gpus=backend.device_kind != "cpu")

    async def build(
        self, name: str, config: ResolvedConfig, seed: int, dtype: str, on_stage: OnStage, *, client: str
    ) -> Built:
        """Return a component's build, from the store if it is there; ``client`` is whose share of builders it takes.

        Raises:
            ModelFactoryError: it cannot be built.
        """
        own_seed = component_seed(seed, name)
        key = build_key(self._backend, config, dtype, own_seed)
        current_call().builds.append(key)
        record = await self._complete(key, "descriptor", "programs", "weights")
        if record is not None:
            self._metrics.lookups.labels("hit").inc()
            on_stage("done")
            return _built(key, record, now=False)
        self._metrics.lookups.labels("joined" if key in self._flights else "miss").inc()
        record = await self._once(
            "build", key, lambda report: self._build(key, config, own_seed, dtype, report, client), on_stage
        )
        on_stage("done")
        return _built(key, record, now=True)

    async def describe(self, config: ResolvedConfig, dtype: str, *, travel: bool, client: str) -> Described:
        """Return a component's descriptor without building its weights; with ``travel`` also how it travels."""
        key = (architecture_key if travel else outline_key)(self._backend, config, dtype)
        record = await self._complete(key, "descriptor", *(["programs"] if travel else []))
        if record is None:
            record = await self._once(
                "describe",
                f"describe {key}",
                lambda report: self._describe(key, config, dtype, report, client, travel=travel),
            )
        names = [name for name in ("descriptor", "programs", "refused") if name in record]
        return Described(documents={name: self._read(record[name]) for name in names}, source=_source(record))

    async def record(
        self, config: ResolvedConfig, dtype: str, path: str, call: bytes, training: dict[str, bool], *, client: str
    ) -> bytes:
        """Return the program of one module for one call."""
        key = call_key(self._backend, config, dtype, path, call, training)
        record = await self._complete(key, "programs")
        if record is None:
            job: dict[str, Any] = {"kind": "record", "path": path, "call": call, "training": tuple(training.items())}
            record = await self._once("record", key, lambda report: self._run(config, dtype, report, client, **job))
            await self._keep(key, record)
        return self._read(record["programs"])

    async def blocks(self) -> list[dict[str, Any]]:
        """Return what configs may name."""
        return await self._once(  # type: ignore[no-any-return]
            "list", "list", lambda report: self._run(None, "", report, "", seconds=_OWN_SECONDS, kind="list")
        )

    async def warm_up(self) -> None:
        """Build a small model through all that builds go through, also if it is in the store already.

        Raises:
            ModelFactoryError: nothing can be built here: of the backend, a plug-in or the store, say.
        """
        config = parse_config(_WARM_UP)
        key = build_key(self._backend, config, "", 0)
        await self._once(
            "warm_up", key, lambda report: self._build(key, config, 0, "", report, "", seconds=_OWN_SECONDS)
        )

    @property
    def queued(self) -> int:
        """Jobs that wait for a builder."""
        return self.admission.waiting

    @property
    def running(self) -> int:
        """Builder processes at work."""
        return len(self._attempts)

    def close(self) -> None:
        """End every worker process at once."""
        for attempt in list(self._attempts):
            attempt.end()
        self._threads.shutdown(wait=True)

    async def _build(
        self,
        key: str,
        config: ResolvedConfig,
        seed: int,
        dtype: str,
        report: OnStage,
        client: str,
        *,
        seconds: float = 0.0,
    ) -> Any:
        architecture = architecture_key(self._backend, config, dtype)
        known = await self._complete(architecture, "descriptor", "programs")
        job = {"kind": "build", "seed": seed, "known": None if known is None else tuple(known["descriptor"])}
        result = await self._run(config, dtype, report, client, seconds=seconds, **job)
        record = (known or {}) | result
        if known is None:
            await self._keep(architecture, {name: record[name] for name in record if name != "weights"})
        await self._keep(key, record)
        return record

    async def _describe(
        self, key: str, config: ResolvedConfig, dtype: str, report: OnStage, client: str, *, travel: bool
    ) -> Any:
        record = await self._run(config, dtype, report, client, kind="describe", travel=travel)
        if "refused" not in record:  # what is refused depends on limits that are in no key
            await self._keep(key, record)
        return record

    async def _once(
        self, kind: str, key: str, work: Callable[[OnStage], Any], on_stage: OnStage = lambda _stage: None
    ) -> Any:
        """Do ``work`` unless it is being done already; all who ask meanwhile get its result or its error."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(JobWatch(self._metrics, self._traces, kind, key))
            flight.task = asyncio.create_task(work(flight.report))
            flight.task.add_done_callback(lambda _task: self._forget(key, flight))
            flight.task.add_done_callback(flight.watch.end)
        on_stage(flight.stage)
        flight.listeners.append(on_stage)
        assert flight.task is not None
        try:
            return await asyncio.shield(flight.task)  # one waiter that goes away does not take it from the others
        finally:
            flight.listeners.remove(on_stage)
            if not flight.listeners and not flight.task.done():  # nobody wants it any more
                self._forget(key, flight)
                flight.task.cancel()

    def _forget(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _run(
        self,
        config: ResolvedConfig | None,
        dtype: str,
        report: OnStage,
        client: str,
        *,
        seconds: float = 0.0,
        **job: Any,
    ) -> Any:
        """Do one job in a process of its own, in at most ``seconds``; by default those of a build.

        When it is cancelled the process is killed before this returns.
        """
        job = {
            "store": self._store.root,
            "config": config.wire if config is not None else b"",
            "dtype": dtype,
            "backend": self._settings.backend,
            "code_stamp": self._backend.code_stamp,
            "device_kind": self._backend.device_kind,
            "limits": self._settings.limits,
            "isolation": self._settings.isolation,
            "threads": max(1, len(os.sched_getaffinity(0)) // self._settings.builders),
            **job,
        }
        loop = asyncio.get_running_loop()

        def relay(stage: str) -> None:
            loop.call_soon_threadsafe(report, stage)

        seconds = seconds or self._settings.limits.build_timeout
        async with self.admission.builder(client):
            receiver, sender = self._forks.context.Pipe(duplex=False)  # here, so that what waits has none
            attempt = Attempt(self._forks, job, sender)
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

    def _attend(
        self, attempt: Attempt, receiver: Connection, sender: Connection, report: OnStage, seconds: float
    ) -> Any:
        """Start a worker and listen to it until it ends; runs in a thread."""
        self._attempts.add(attempt)
        last = threading.Timer(seconds + _EXIT_SECONDS, attempt.end)  # of one that stops in the middle of a word
        last.start()
        try:
            with receiver:
                with sender:
                    started = attempt.start()
                if not started:
                    return None
                try:
                    result = _listen(receiver, self._hearers(report), seconds)
                except EOFError:
                    raise _death(attempt.wait(_EXIT_SECONDS), self._settings.limits.build_cpu_timeout) from None
                attempt.is_well = True
                return result
        finally:
            last.cancel()
            attempt.clear()
            self._attempts.discard(attempt)
            with suppress(OSError):  # what is left over is swept another time
                self._store.sweep()

    def _hearers(self, report: OnStage) -> dict[str, Callable[[Any], None]]:
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

    async def _complete(self, key: str, *names: str) -> Any | None:
        """Return a record if every blob it names is in the store; those may have to be hashed, so others are served."""
        return await asyncio.to_thread(self._complete_now, key, *names)

    def _complete_now(self, key: str, *names: str) -> Any | None:
        record = self._store.record(key)
        try:
            if record is None or not record.keys() >= set(names):
                return None
            found = all(self._store.find(Blob(*entry)) for entry in record.values())
        except (AttributeError, TypeError, errors.FormatError):  # damaged: it is written anew
            return None
        return record if found else None

    async def _keep(self, key: str, record: Any) -> None:
        """Put a record into the store; flushing it to the disk may take a while, and others wait for the loop."""
        await asyncio.to_thread(self._store.put_record, key, record)

    def _read(self, entry: list[Any]) -> bytes:
        data = self._store.read(Blob(*entry))
        if data is None:
            raise errors.StoreError(f"blob {entry[0]} vanished from the store")
        return data


def _built(key: str, record: dict[str, list[Any]], *, now: bool) -> Built:
    blobs = {name: Blob(*record[name]) for name in ("descriptor", "programs", "weights")}
    return Built(key=key, now=now, source=_source(record), **blobs)


def _source(record: dict[str, list[Any]]) -> Blob | None:
    return Blob(*record["source"]) if "source" in record else None


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
            raise cls(text, path=tuple(path)) if issubclass(cls, errors.PlacedError) else cls(text)
        told[kind](body)
    raise errors.LimitError(f"the build took longer than the {seconds:g} seconds that this server allows")
