"""Builds: from a key to what is in the store, each once. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any

from model_factory import errors
from model_factory.blocks import SELF_CHECK_CONFIG
from model_factory.config import ResolvedConfig, parse_config
from model_factory.config.request import component_seed
from model_factory.documents import encode_document
from model_factory.identity import BuildReference
from model_factory.store import Blob, Store
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.build_records import JobRecord
from model_factory_server.builds.keys import architecture_key, build_key, call_key, outline_key, reads_key, with_files
from model_factory_server.builds.worker_pool import StageCallback, WorkerPool
from model_factory_server.observe.jobs import JobWatch
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import current_rpc
from model_factory_server.observe.spans import Traces
from model_factory_server.worker.read_files import CHANGED, FileDigests, ReadFile, decode_paths
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import Task

_BUILD_AGAIN = "Remedy: build the model again with this server, or ask a server of the version that built the model"
_OTHER_ARCHITECTURE = (
    "the model was built from another config or from other files than this server reads now: a file that its "
    f"constructors read has changed. {_BUILD_AGAIN}"
)
_CHANGING = (
    "files that the build reads change while the model is built. Remedy: build again once the files are complete"
)
_ATTEMPTS = 3  # at a build whose files change while it is made
_OWN_SECONDS = 60.0  # for the server's own jobs at least: the operator's limit is for what configs make grow


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
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
class BuildResult:
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
    files: tuple[ReadFile, ...]
    """The files that the build read."""
    now: bool
    """Whether it was built for this request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A component's architecture."""

    documents: dict[str, bytes]
    """Its descriptor, and where it was asked for its programs and what is refused."""
    source: Blob | None
    """The bundle that its descriptor names; None where it needs none."""
    files: tuple[ReadFile, ...]
    """The files that the constructors read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the store has for a base key."""

    key: str
    """The final key, over files as they are now."""
    base: str
    """The key without files."""
    names: tuple[str, ...]
    """Blobs that the record must have."""
    record: JobRecord | None
    """None where the store does not have all of it."""


class _FilesChangedError(errors.BuildError):
    """A file changed while a job read the file."""


_Work = Callable[[StageCallback], Coroutine[Any, Any, Any]]  # given whom to tell of stages


class _InFlightBuild:
    """A job that is being done, and those who wait for it."""

    def __init__(self, watch: JobWatch, work: _Work) -> None:
        self.watch = watch
        self.listeners: list[StageCallback] = []  # one of each who waits
        self.stage = Stage.QUEUED
        self.task = asyncio.create_task(work(self.report))
        self.task.add_done_callback(watch.end)

    def report(self, stage: Stage) -> None:
        self.stage = stage
        self.watch.stage(stage)
        for listener in self.listeners:
            listener(stage)


class BuildService:
    """Turns requests into builds; equal ones at the same time share one."""

    def __init__(
        self, store: Store, backend: BackendIdentity, pool: WorkerPool, metrics: Metrics, traces: Traces
    ) -> None:
        self._store = store
        self._backend = backend
        self._pool = pool
        self._metrics = metrics
        self._traces = traces
        self._flights: dict[str, _InFlightBuild] = {}
        self._digests = FileDigests()

    async def build(self, asked: BuildRequest, name: str, seed: int, on_stage: StageCallback) -> BuildResult:
        """Return the build of the component ``name`` in a request with ``seed``, from the store if it is there.

        Raises:
            ModelFactoryError: it cannot be built.
        """
        own_seed = component_seed(seed, name)
        base = build_key(self._backend, asked.config, asked.dtype, own_seed)
        found = await self._find(base, "descriptor", "programs", "weights")
        current_rpc().builds.append(found.key)
        if found.record is not None:
            self._metrics.lookups.labels("hit").inc()
        else:
            self._metrics.lookups.labels("joined" if found.key in self._flights else "miss").inc()
        made = await self._made(
            "build", found, lambda report: self._build(asked, base, own_seed, report), on_stage=on_stage
        )
        on_stage(Stage.DONE)
        return _built(made, self._architecture_key(asked, made), now=found.record is None)

    async def describe(self, asked: BuildRequest, *, portability: bool) -> Described:
        """Return a component's descriptor without building its weights; with ``travel`` also how it travels.

        Raises:
            ModelFactoryError: it cannot be described.
        """
        record = (await self._description(asked, portability=portability)).record
        assert record is not None
        names = [name for name in ("descriptor", "programs", "refused") if name in record.blobs]
        documents = {name: self._read(record.blobs[name]) for name in names}
        return Described(documents=documents, source=record.source, files=record.files)

    async def record(
        self, asked: BuildRequest, name: str, built: BuildReference, path: str, call: bytes, training: dict[str, bool]
    ) -> bytes:
        """Return the program of one module of the component ``name`` for one call; ``built`` made the module.

        Raises:
            OutdatedBuildError: this server would build another module.
            ModelFactoryError: the call cannot be recorded.
        """
        self._check_identity(built)
        architecture = await self._description(replace(asked, dtype=built.dtype), portability=True)
        assert architecture.record is not None
        if architecture.key != built.architecture_key:
            raise errors.OutdatedBuildError(_OTHER_ARCHITECTURE)
        task = Task(
            kind="record",
            config=asked.config.wire,
            seed=component_seed(built.seed, name),
            dtype=asked.dtype,
            path=path,
            call=call,
            training=training,
            built=built,
            known=_known(architecture.record),
        )
        base = call_key(built, asked.dtype, path, call, training)

        async def work(report: StageCallback) -> JobRecord:
            return await self._keep(base, await self._run(asked, task, report))

        made = await self._made("record", await self._find(base, "programs"), work)
        assert made.record is not None
        if not _agree(architecture.record.files, made.record.files):
            raise errors.OutdatedBuildError(_OTHER_ARCHITECTURE)
        return self._read(made.record.blobs["programs"])

    async def blocks(self) -> list[dict[str, Any]]:
        """Return what configs may name."""
        return await self._once("list", "list", self._list)  # type: ignore[no-any-return]

    async def warm_up(self) -> None:
        """Construct, record, verify and store a small block, also if the store has the block already.

        Raises:
            ServerError: nothing can be built here: because of the backend, a plug-in, a limit or the store, say.
        """
        config = parse_config(encode_document(dict(SELF_CHECK_CONFIG)))
        asked = BuildRequest(config=config, dtype="", client="", seconds=_OWN_SECONDS)
        key = build_key(self._backend, asked.config, "", 0)
        try:
            await self._once("warm_up", key, lambda report: self._build(asked, key, 0, report, anew=True))
        except errors.ModelFactoryError as error:
            raise errors.ServerError(
                f"the warm-up build, which shows that builds work here, failed: {error}"
            ) from error

    def _check_identity(self, built: BuildReference) -> None:
        """Refuse to go on with a build that a server of other code made."""
        found = built.identity.differences(self._backend.public)
        if found:
            raise errors.OutdatedBuildError(
                f"the model was built by a server of another version ({'; '.join(found)}), and a program of this "
                f"server's code is not the model's. {_BUILD_AGAIN}"
            )

    def _architecture_key(self, asked: BuildRequest, made: _Found) -> str:
        """Key of a build without its seed, over the same files."""
        assert made.record is not None
        return with_files(architecture_key(self._backend, asked.config, asked.dtype), made.record.files)

    async def _description(self, asked: BuildRequest, *, portability: bool) -> _Found:
        """Return what this server would build, without weights, described where the store does not have it."""
        base = (architecture_key if portability else outline_key)(self._backend, asked.config, asked.dtype)
        found = await self._find(base, "descriptor", *(["programs"] if portability else []))
        work = functools.partial(self._describe, asked, base, portability=portability)
        return await self._made("describe", found, work, flight=f"describe {found.key}")

    async def _build(
        self, asked: BuildRequest, base: str, seed: int, report: StageCallback, *, anew: bool = False
    ) -> JobRecord:
        """``anew`` is whether to record and verify also where the store has the architecture."""
        architecture = architecture_key(self._backend, asked.config, asked.dtype)
        known = None if anew else (await self._find(architecture, "descriptor", "programs")).record
        task = Task(kind="build", config=asked.config.wire, dtype=asked.dtype, seed=seed, known=_known(known))
        record = await self._run(asked, task, report)
        if known is None:
            await self._keep(architecture, record.without("weights"))
        else:
            if not _agree(known.files, record.files):
                raise _FilesChangedError(_CHANGING)
            record = record.over(known)
        return await self._keep(base, record.without("placement"))  # which builds alone need

    async def _describe(self, asked: BuildRequest, base: str, report: StageCallback, *, portability: bool) -> JobRecord:
        task = Task(kind="describe", config=asked.config.wire, dtype=asked.dtype, portability=portability)
        record = await self._run(asked, task, report)
        if "refused" in record.blobs:  # what is refused depends on limits that are in no key
            return record
        return await self._keep(base, record)

    async def _list(self, report: StageCallback) -> list[dict[str, Any]]:
        result, _ = await self._pool.run(Task(kind="list"), report, seconds=_OWN_SECONDS)
        return result  # type: ignore[no-any-return]

    async def _run(self, asked: BuildRequest, task: Task, report: StageCallback) -> JobRecord:
        blobs, files = await self._pool.run(task, report, client=asked.client, seconds=asked.seconds)
        record = JobRecord.of({"blobs": blobs, "files": files})
        if any(file.digest == CHANGED for file in record.files):
            raise _FilesChangedError(_CHANGING)
        return record

    async def _made(
        self, kind: str, found: _Found, work: _Work, *, flight: str = "", on_stage: StageCallback = lambda _stage: None
    ) -> _Found:
        """Return what was found, or what ``work`` makes; made again where files have changed meanwhile.

        A job that began before this request may have read a file that has changed since, and that nobody waits for.
        """
        if found.record is not None:
            return found

        async def look_again(report: StageCallback) -> JobRecord:
            # An equal job may have ended while the lookup was on its way back from its thread.
            stored = (await self._find(found.base, *found.names)).record
            return await work(report) if stored is None else stored

        for _ in range(_ATTEMPTS):
            try:
                record: JobRecord = await self._once(kind, flight or found.key, look_again, on_stage)
            except _FilesChangedError:
                continue
            if await self._current(file.path for file in record.files) == tuple(sorted(record.files, key=_path_of)):
                return replace(found, key=with_files(found.base, record.files), record=record)
        raise errors.BuildError(_CHANGING)

    async def _find(self, base: str, *names: str) -> _Found:
        """Return the final key of a base as files are now, and the record if every blob it names is in the store.

        Files and blobs may have to be hashed, so others are served meanwhile.
        """
        return await asyncio.to_thread(self._find_now, base, *names)

    def _find_now(self, base: str, *names: str) -> _Found:
        key = with_files(base, self._digests.current(self._reads(base)))
        try:
            document = self._store.record(key)
            record = None if document is None else JobRecord.of(document)
            if record is not None and not (record.blobs.keys() >= set(names) and self._has(record)):
                record = None
        except (AttributeError, TypeError, errors.FormatError):  # damaged: it is written anew
            record = None
        return _Found(key=key, base=base, names=names, record=record)

    def _has(self, record: JobRecord) -> bool:
        return all(self._store.find(blob) for blob in record.blobs.values())

    def _reads(self, base: str) -> tuple[str, ...]:
        """Paths that the last job of a key read."""
        try:
            return decode_paths(self._store.record(reads_key(base)) or [])
        except errors.FormatError:  # damaged: the next job writes it anew
            return ()

    async def _current(self, paths: Iterable[str]) -> tuple[ReadFile, ...]:
        return await asyncio.to_thread(self._digests.current, list(paths))

    async def _keep(self, base: str, record: JobRecord) -> JobRecord:
        """Put a record into the store; flushing it to the disk may take a while, and others wait for the loop."""

        def keep() -> None:
            self._store.put_record(with_files(base, record.files), record.document())
            paths = tuple(sorted(file.path for file in record.files))
            if paths != self._reads(base):
                self._store.put_record(reads_key(base), list(paths))

        await asyncio.to_thread(keep)
        return record

    async def _once(self, kind: str, key: str, work: _Work, on_stage: StageCallback = lambda _stage: None) -> Any:
        """Do ``work`` unless it is being done already; all who ask meanwhile get its result or its error."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _InFlightBuild(JobWatch(self._metrics, self._traces, kind, key), work)
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

    def _forget(self, key: str, flight: _InFlightBuild) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _read(self, blob: Blob) -> bytes:
        data = self._store.read(blob)
        if data is None:
            raise errors.StoreError(f"blob {blob.digest} vanished from the store")
        return data


def _built(made: _Found, architecture: str, *, now: bool) -> BuildResult:
    record = made.record
    assert record is not None
    blobs = {name: record.blobs[name] for name in ("descriptor", "programs", "weights")}
    return BuildResult(
        key=made.key, architecture=architecture, now=now, source=record.source, files=record.files, **blobs
    )


def _known(record: JobRecord | None) -> dict[str, list[str | int]] | None:
    """What a worker is given of an architecture that the store has."""
    return None if record is None else {name: [blob.digest, blob.size] for name, blob in record.blobs.items()}


def _path_of(file: ReadFile) -> str:
    return file.path


def _agree(before: Iterable[ReadFile], now: Iterable[ReadFile]) -> bool:
    """Whether two jobs read the same content wherever both of them read."""
    digests = {file.path: file.digest for file in before}
    return all(digests.get(file.path, file.digest) == file.digest for file in now)
