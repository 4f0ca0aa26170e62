"""Builds: from a key to what is in the store, each once. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from model_factory import errors
from model_factory.blocks import SELF_CHECK_CONFIG
from model_factory.components import component_seed
from model_factory.config import ResolvedConfig, parse_config
from model_factory.documents import encode_document
from model_factory.identity import BuildReference
from model_factory.store import Blob, Store
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.job import Task
from model_factory_server.keys import architecture_key, build_key, call_key, outline_key
from model_factory_server.observe.call import current_call
from model_factory_server.observe.jobs import JobWatch
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.spans import Traces
from model_factory_server.pool import OnStage, WorkerPool

_BUILD_AGAIN = "Remedy: build the model again with this server, or ask a server of the version that built the model"
_OWN_SECONDS = 60.0  # for the server's own jobs at least: the operator's limit is for what configs make grow


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A component that is asked for."""

    config: ResolvedConfig
    """What it is."""
    dtype: str
    """What floating tensors are cast to; empty: left."""
    client: str
    """Whose share of builders it takes."""
    seconds: float = 0.0
    """That its jobs may take each, if the operator has not allowed more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A component in the store."""

    key: str
    """Its build key."""
    architecture: str
    """Its build key without the seed."""
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


_Work = Callable[[OnStage], Coroutine[Any, Any, Any]]  # given whom to tell of stages


class _Flight:
    """A job that is being done, and those who wait for it."""

    def __init__(self, watch: JobWatch, work: _Work) -> None:
        self.watch = watch
        self.listeners: list[OnStage] = []  # one of each who waits
        self.stage = "queued"
        self.task = asyncio.create_task(work(self.report))
        self.task.add_done_callback(watch.end)

    def report(self, stage: str) -> None:
        self.stage = stage
        self.watch.stage(stage)
        for listener in self.listeners:
            listener(stage)


class Builder:
    """Turns requests into builds; equal ones at the same time share one."""

    def __init__(
        self, store: Store, backend: BackendIdentity, pool: WorkerPool, metrics: Metrics, traces: Traces
    ) -> None:
        self._store = store
        self._backend = backend
        self._pool = pool
        self._metrics = metrics
        self._traces = traces
        self._flights: dict[str, _Flight] = {}

    async def build(self, asked: Asked, name: str, seed: int, on_stage: OnStage) -> Built:
        """Return the build of the component ``name`` in a request with ``seed``, from the store if it is there.

        Raises:
            ModelFactoryError: it cannot be built.
        """
        own_seed = component_seed(seed, name)
        key = build_key(self._backend, asked.config, asked.dtype, own_seed)
        architecture = architecture_key(self._backend, asked.config, asked.dtype)
        current_call().builds.append(key)
        record = await self._complete(key, "descriptor", "programs", "weights")
        if record is not None:
            self._metrics.lookups.labels("hit").inc()
            on_stage("done")
            return _built(key, architecture, record, now=False)
        self._metrics.lookups.labels("joined" if key in self._flights else "miss").inc()
        record = await self._once("build", key, lambda report: self._build(asked, key, own_seed, report), on_stage)
        on_stage("done")
        return _built(key, architecture, record, now=True)

    async def describe(self, asked: Asked, *, travel: bool) -> Described:
        """Return a component's descriptor without building its weights; with ``travel`` also how it travels.

        Raises:
            ModelFactoryError: it cannot be described.
        """
        key = (architecture_key if travel else outline_key)(self._backend, asked.config, asked.dtype)
        record = await self._complete(key, "descriptor", *(["programs"] if travel else []))
        if record is None:
            record = await self._once(
                "describe", f"describe {key}", lambda report: self._describe(asked, key, report, travel=travel)
            )
        names = [name for name in ("descriptor", "programs", "refused") if name in record]
        return Described(documents={name: self._read(record[name]) for name in names}, source=_source(record))

    async def record(
        self, asked: Asked, built: BuildReference, path: str, call: bytes, training: dict[str, bool]
    ) -> bytes:
        """Return the program of one module for one call; ``built`` is the build that the module comes from.

        Raises:
            OutdatedBuildError: this server would build another module.
            ModelFactoryError: the call cannot be recorded.
        """
        self._check_identity(built)
        architecture, known = await self._architecture(replace(asked, dtype=built.dtype))
        if architecture != built.architecture_key:
            raise errors.OutdatedBuildError(f"the config of the call is not that of the build. {_BUILD_AGAIN}")
        key = call_key(architecture, asked.dtype, path, call, training)
        record = await self._complete(key, "programs")
        if record is None:
            task = Task(
                kind="record",
                config=asked.config.wire,
                dtype=asked.dtype,
                path=path,
                call=call,
                training=training,
                built=built,
                known=known,
            )
            record = await self._once("record", key, lambda report: self._run(asked, task, report))
            await self._keep(key, record)
        return self._read(record["programs"])

    async def blocks(self) -> list[dict[str, Any]]:
        """Return what configs may name."""
        return await self._once(  # type: ignore[no-any-return]
            "list", "list", lambda report: self._pool.run(Task(kind="list"), report, seconds=_OWN_SECONDS)
        )

    def _check_identity(self, built: BuildReference) -> None:
        """Refuse to go on with a build that a server of other code made."""
        found = built.identity.differences(self._backend.public)
        if found:
            raise errors.OutdatedBuildError(
                f"the model was built by a server of another version ({'; '.join(found)}), and a program of this "
                f"server's code is not the model's. {_BUILD_AGAIN}"
            )

    async def _architecture(self, asked: Asked) -> tuple[str, Any]:
        """Return the key and the record of what this server would build, described where it is not known."""
        key = architecture_key(self._backend, asked.config, asked.dtype)
        record = await self._complete(key, "descriptor", "programs")
        if record is None:
            record = await self._once(
                "describe", f"describe {key}", lambda report: self._describe(asked, key, report, travel=True)
            )
        return key, record

    async def warm_up(self) -> None:
        """Construct, record, verify and store a small block, also if the store has the block already.

        Raises:
            ServerError: nothing can be built here: because of the backend, a plug-in, a limit or the store, say.
        """
        config = parse_config(encode_document(dict(SELF_CHECK_CONFIG)))
        asked = Asked(config=config, dtype="", client="", seconds=_OWN_SECONDS)
        key = build_key(self._backend, asked.config, "", 0)
        try:
            await self._once("warm_up", key, lambda report: self._build(asked, key, 0, report, anew=True))
        except errors.ModelFactoryError as error:
            raise errors.ServerError(
                f"the warm-up build, which shows that builds work here, failed: {error}"
            ) from error

    async def _build(self, asked: Asked, key: str, seed: int, report: OnStage, *, anew: bool = False) -> Any:
        """``anew`` is whether to record and verify also where the store has the architecture."""
        architecture = architecture_key(self._backend, asked.config, asked.dtype)
        known = None if anew else await self._complete(architecture, "descriptor", "programs")
        task = Task(kind="build", config=asked.config.wire, dtype=asked.dtype, seed=seed, known=known)
        result = await self._run(asked, task, report)
        record = (known or {}) | result
        if known is None:
            await self._keep(architecture, {name: record[name] for name in record if name != "weights"})
        record.pop("placement", None)  # builds alone need it
        await self._keep(key, record)
        return record

    async def _describe(self, asked: Asked, key: str, report: OnStage, *, travel: bool) -> Any:
        task = Task(kind="describe", config=asked.config.wire, dtype=asked.dtype, travel=travel)
        record = await self._run(asked, task, report)
        if "refused" not in record:  # what is refused depends on limits that are in no key
            await self._keep(key, record)
        return record

    async def _run(self, asked: Asked, task: Task, report: OnStage) -> Any:
        return await self._pool.run(task, report, client=asked.client, seconds=asked.seconds)

    async def _once(self, kind: str, key: str, work: _Work, on_stage: OnStage = lambda _stage: None) -> Any:
        """Do ``work`` unless it is being done already; all who ask meanwhile get its result or its error."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(JobWatch(self._metrics, self._traces, kind, key), work)
            flight.task.add_done_callback(lambda _task: self._forget(key, flight))
        on_stage(flight.stage)
        flight.listeners.append(on_stage)
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


def _built(key: str, architecture: str, record: dict[str, list[Any]], *, now: bool) -> Built:
    blobs = {name: Blob(*record[name]) for name in ("descriptor", "programs", "weights")}
    return Built(key=key, architecture=architecture, now=now, source=_source(record), **blobs)


def _source(record: dict[str, list[Any]]) -> Blob | None:
    return Blob(*record["source"]) if "source" in record else None
