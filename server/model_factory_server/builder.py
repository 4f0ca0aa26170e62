"""Builds: from a key to what is in the store, each once, in worker processes. Imports no torch."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

from model_factory import errors
from model_factory.components import component_seed
from model_factory.config import ResolvedConfig
from model_factory.store import Blob, Store
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.keys import architecture_key, build_key, call_key
from model_factory_server.settings import Settings

OnStage = Callable[[str], None]

_PRELOADED = "model_factory_server.warm"
_LISTING_SECONDS = 60.0  # the server's own, at its start: the operator's limit is for what configs make grow


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
    now: bool
    """Whether it was built for this request."""


class _Flight:
    """A job that is being done, and those who wait for it."""

    def __init__(self) -> None:
        self.listeners: list[OnStage] = []
        self.stage = "queued"
        self.task: asyncio.Task[Any] | None = None

    def report(self, stage: str) -> None:
        self.stage = stage
        for listener in self.listeners:
            listener(stage)


class Builder:
    """Turns requests into builds; equal ones at the same time share one."""

    def __init__(self, settings: Settings, store: Store, backend: BackendIdentity) -> None:
        self._settings = settings
        self._store = store
        self._backend = backend
        self._slots = asyncio.Semaphore(settings.builders)
        self._threads = ThreadPoolExecutor(max_workers=settings.builders, thread_name_prefix="builder")
        self._flights: dict[str, _Flight] = {}
        self._workers: set[Any] = set()
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOADED])

    async def build(self, name: str, config: ResolvedConfig, seed: int, dtype: str, on_stage: OnStage) -> Built:
        """Return a component's build, from the store if it is there.

        Raises:
            ModelFactoryError: it cannot be built.
        """
        own_seed = component_seed(seed, name)
        key = build_key(self._backend, config, dtype, own_seed)
        record = self._complete(key, "descriptor", "programs", "weights")
        if record is not None:
            on_stage("done")
            return _built(key, record, now=False)
        record = await self._once(key, lambda report: self._build(key, config, own_seed, dtype, report), on_stage)
        on_stage("done")
        return _built(key, record, now=True)

    async def describe(self, config: ResolvedConfig, dtype: str, *, travel: bool) -> dict[str, bytes]:
        """Return a component's descriptor without building its weights; with ``travel`` also how it travels."""
        key = architecture_key(self._backend, config, dtype)
        record = self._complete(key, "descriptor", *(["programs"] if travel else []))
        if record is None:
            record = await self._once(
                f"describe {travel} {key}", lambda report: self._describe(key, config, dtype, report, travel)
            )
        return {name: self._read(record[name]) for name in ("descriptor", "programs", "refused") if name in record}

    async def record(
        self, config: ResolvedConfig, dtype: str, path: str, method: str, call: bytes, training: dict[str, bool]
    ) -> bytes:
        """Return the program of one method of a module for one call."""
        key = call_key(self._backend, config, dtype, path, method, call, training)
        record = self._complete(key, "programs")
        if record is None:
            job: dict[str, Any] = {
                "kind": "record",
                "path": path,
                "method": method,
                "call": call,
                "training": tuple(training.items()),
            }
            record = await self._once(key, lambda report: self._run(config, dtype, report, **job))
            self._store.put_record(key, record)
        return self._read(record["programs"])

    async def blocks(self) -> list[dict[str, Any]]:
        """Return what configs may name."""
        return await self._once(  # type: ignore[no-any-return]
            "list", lambda report: self._run(None, "", report, seconds=_LISTING_SECONDS, kind="list")
        )

    def close(self) -> None:
        """End every worker process at once."""
        for process in list(self._workers):
            process.kill()
        self._threads.shutdown(wait=True)

    async def _build(self, key: str, config: ResolvedConfig, seed: int, dtype: str, report: OnStage) -> Any:
        architecture = architecture_key(self._backend, config, dtype)
        known = self._complete(architecture, "descriptor", "programs")
        descriptor = None if known is None else tuple(known["descriptor"])
        result = await self._run(config, dtype, report, kind="build", seed=seed, known=descriptor)
        record = (known or {}) | result
        if known is None:
            self._store.put_record(architecture, {name: record[name] for name in record if name != "weights"})
        self._store.put_record(key, record)
        return record

    async def _describe(self, key: str, config: ResolvedConfig, dtype: str, report: OnStage, travel: bool) -> Any:
        record = await self._run(config, dtype, report, kind="describe", travel=travel)
        if "refused" not in record:  # what is refused depends on limits that are in no key
            self._store.put_record(key, record)
        return record

    async def _once(self, key: str, work: Callable[[OnStage], Any], on_stage: OnStage = lambda _stage: None) -> Any:
        """Do ``work`` unless it is being done already; all who ask meanwhile get its result or its error."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(work(flight.report))
            flight.task.add_done_callback(lambda _task: self._flights.pop(key, None))
        on_stage(flight.stage)
        flight.listeners.append(on_stage)
        try:
            assert flight.task is not None
            return await asyncio.shield(flight.task)  # one waiter that goes away does not take it from the others
        finally:
            flight.listeners.remove(on_stage)

    async def _run(
        self, config: ResolvedConfig | None, dtype: str, report: OnStage, *, seconds: float = 0.0, **job: Any
    ) -> Any:
        """Do one job in a process of its own, in at most ``seconds``; by default those of a build."""
        job = {
            "store": self._store.root,
            "config": config.wire if config is not None else b"",
            "dtype": dtype,
            "backend": self._settings.backend,
            "code_stamp": self._backend.code_stamp,
            "device_kind": self._backend.device_kind,
            "max_weights_bytes": self._settings.limits.max_weights_bytes,
            "threads": max(1, len(os.sched_getaffinity(0)) // self._settings.builders),
            **job,
        }
        loop = asyncio.get_running_loop()

        def relay(stage: str) -> None:
            loop.call_soon_threadsafe(report, stage)

        async with self._slots:
            return await loop.run_in_executor(
                self._threads, self._attend, job, relay, seconds or self._settings.limits.build_timeout
            )

    def _attend(self, job: dict[str, Any], report: OnStage, seconds: float) -> Any:
        """Start a worker and listen to it until it ends; runs in a thread."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_enter_worker, args=(job, sender), daemon=True)
        process.start()
        self._workers.add(process)
        try:
            sender.close()
            return _listen(receiver, report, seconds)
        except EOFError:
            process.join()
            raise errors.BuildError(_death_text(process.exitcode)) from None
        finally:
            process.kill()
            process.join()
            self._workers.discard(process)
            receiver.close()

    def _complete(self, key: str, *names: str) -> Any | None:
        """Return a record if every blob it names is in the store."""
        record = self._store.record(key)
        if record is None or not record.keys() >= set(names):
            return None
        if any(self._store.find(Blob(*entry)) is None for entry in record.values()):
            return None
        return record

    def _read(self, entry: list[Any]) -> bytes:
        data = self._store.read(Blob(*entry))
        if data is None:
            raise errors.StoreError(f"blob {entry[0]} vanished from the store")
        return data


def _built(key: str, record: dict[str, list[Any]], *, now: bool) -> Built:
    blobs = {name: Blob(*record[name]) for name in ("descriptor", "programs", "weights")}
    return Built(key=key, now=now, **blobs)


def _enter_worker(job: dict[str, Any], sender: Connection) -> None:
    from model_factory_server import worker  # noqa: PLC0415  torch, which only the fork server and its workers import

    worker.main(worker.Job(**job), sender)


def _death_text(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the node may be out of memory" if name == "SIGKILL" else ""
        return f"the builder process was ended by {name}{hint}"
    return f"the builder process ended with status {exit_code} before it had a result"


def _listen(receiver: Connection, report: OnStage, seconds: float) -> Any:
    """Return a worker's result, or raise its error; EOFError if it died without either."""
    deadline = time.monotonic() + seconds
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        kind, body = receiver.recv()
        if kind == "stage":
            report(body)
        elif kind == "result":
            return body
        else:
            name, text, path = body
            cls = getattr(errors, name)
            raise cls(text, path=tuple(path)) if cls is errors.ConfigError else cls(text)
    raise errors.LimitError(f"the build took longer than the {seconds:g} seconds that this server allows")
