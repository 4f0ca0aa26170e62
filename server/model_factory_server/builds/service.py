"""The build service: from a request to a result in the store; equal requests share a job. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic

from model_factory import errors
from model_factory.blocks import SELF_CHECK_CONFIG, Block
from model_factory.config.request import component_seed
from model_factory.documents import encode_document
from model_factory.identity import BuildReference
from model_factory.store import Blob, Store
from model_factory_server.backends.checkpoint_catalogue import checkpoint_digest
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.build_records import (
    BuildRecord,
    DescriptionRecord,
    ProgramRecord,
    Record,
    files_agree,
    merge_files,
)
from model_factory_server.builds.checked_config import CheckedConfig
from model_factory_server.builds.fair_shares import Claim
from model_factory_server.builds.in_flight import InFlightJobs, Work, ignore_stages
from model_factory_server.builds.keys import architecture_key, build_key, call_key, final_key, outline_key
from model_factory_server.builds.record_store import Lookup, RecordStore
from model_factory_server.builds.worker_pool import JobResult, Output, StageCallback, WorkerPool
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import current_rpc
from model_factory_server.observe.spans import Traces
from model_factory_server.worker.files.read_files import CHANGED, ReadFile
from model_factory_server.worker.outputs import BuildOutput, DescribeOutput, ListOutput, RecordOutput
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import BuildTask, DescribeTask, ListTask, RecordTask, Task

_BUILD_AGAIN = "Remedy: build the model again with this server, or use a server of the version that built the model"
_OTHER_ARCHITECTURE = (
    "the model was built from another config or from other files than this server reads now: a file read by its "
    f"constructors has changed. {_BUILD_AGAIN}"
)
_FILES_CHANGE = "files read by the build change during the build. Remedy: build again once the files are complete"
_MAX_ATTEMPTS = 3  # at a build whose files change during the build
_OWN_JOB_SECONDS = 60.0  # the server's own jobs get at least this time: the operator's limit is for configs


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """A requested component."""

    config: CheckedConfig
    """The component's config."""
    dtype: str
    """Dtype of the floating tensors; empty: unchanged."""
    client: str
    """The client whose share of workers the jobs use."""
    seconds: float = 0.0
    """Minimum seconds per job; the operator's limit applies if longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """A built component in the store."""

    key: str
    """The build key, with files."""
    architecture_key: str
    """The build key without the seed."""
    descriptor: Blob
    """The module tree."""
    programs: Blob
    """The recorded forwards."""
    weights: Blob
    """The parameters and buffers."""
    source: Blob | None
    """The bundle named by the descriptor; ``None`` where the descriptor names no bundle."""
    files: tuple[ReadFile, ...]
    """Files read by the build."""
    built_now: bool
    """Whether the component was built for this request."""
    checkpoint_digest: str
    """Digest of the checkpoint that the config names; empty without one."""
    notice: str
    """Missing and unexpected tensors of the checkpoint, in words; empty without any."""
    warnings: tuple[str, ...] = ()
    """Warnings of the constructors, also of an earlier build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeResult:
    """The architecture of a component."""

    descriptor: Blob
    """The module tree."""
    programs: Blob | None
    """The recorded forwards; ``None`` where the request did not include portability."""
    refused: Mapping[str, str]
    """Why modules cannot be sent, by path; the empty path is the whole model."""
    source: Blob | None
    """The bundle named by the descriptor; ``None`` where the descriptor names no bundle."""
    files: tuple[ReadFile, ...]
    """Files read by the constructors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept(Generic[Record]):
    """A record, found or made, and its final key."""

    key: str
    record: Record


class _FilesChangedError(errors.BuildError):
    """A file changed while a job read the file."""


class BuildService:
    """Turns requests into results in the store; equal requests at the same time share a job."""

    def __init__(
        self, store: Store, backend: BackendIdentity, pool: WorkerPool, metrics: Metrics, traces: Traces
    ) -> None:
        self._store = store
        self._backend = backend
        self._pool = pool
        self._metrics = metrics
        self._records = RecordStore(store)
        self._in_flight = InFlightJobs(metrics, traces)

    async def build(self, request: BuildRequest, name: str, seed: int, on_stage: StageCallback) -> BuildResult:
        """Return a built component; ``name`` is the component's name in a request with ``seed``.

        Raises:
            ModelFactoryError: the component cannot be built.
        """
        own_seed = component_seed(seed, name)
        lookup = await self._records.look_up(
            build_key(self._backend, request.config, request.dtype, own_seed), BuildRecord
        )
        current_rpc().builds.append(lookup.key)
        self._metrics.lookups.labels(self._lookup_outcome(lookup)).inc()
        work = functools.partial(self._build, request, lookup.base_key, own_seed)
        kept = await self._found_or_made("build", lookup, work, client=request.client, on_stage=on_stage)
        on_stage(Stage.DONE)
        architecture = architecture_key(self._backend, request.config, request.dtype)
        return BuildResult(
            key=kept.key,
            architecture_key=final_key(architecture, kept.record.files),
            descriptor=kept.record.descriptor,
            programs=kept.record.programs,
            weights=kept.record.weights,
            source=kept.record.source,
            files=kept.record.files,
            built_now=lookup.record is None,
            checkpoint_digest=self._checkpoint_digest(request.config.checkpoint, kept.record.files),
            notice=kept.record.notice,
            warnings=kept.record.warnings,
        )

    async def describe(self, request: BuildRequest, *, portability: bool) -> DescribeResult:
        """Return a component's descriptor without building weights; with ``portability`` also programs and refusals.

        Raises:
            ModelFactoryError: the component cannot be described.
        """
        record = (await self._description(request, portability=portability)).record
        return DescribeResult(
            descriptor=record.descriptor,
            programs=record.programs,
            refused=record.refused,
            source=record.source,
            files=record.files,
        )

    async def record(
        self,
        request: BuildRequest,
        name: str,
        built: BuildReference,
        path: str,
        call: bytes,
        training: Mapping[str, bool],
    ) -> ProgramRecord:
        """Return the program of a module for a call, or the module as source code.

        Args:
            request: The component of the module.
            name: The component's name.
            built: The build of the trainer's module.
            path: Path of the module inside the component.
            call: The call, an encoded ``ExampleCall``.
            training: Training flags at the call, by path below the module.

        Raises:
            OutdatedBuildError: this server would build another module.
            ModelFactoryError: the call cannot be recorded.
        """
        self._check_identity(built)
        description = await self._description(replace(request, dtype=built.dtype), portability=True)
        if description.key != built.architecture_key:
            raise errors.OutdatedBuildError(_OTHER_ARCHITECTURE)
        task = RecordTask(
            config=request.config.wire,
            seed=component_seed(built.seed, name),
            dtype=request.dtype,
            path=path,
            call=call,
            training=dict(training),
            built=built,
            descriptor=description.record.descriptor,
        )
        lookup = await self._records.look_up(call_key(built, request.dtype, path, call, training), ProgramRecord)
        work = functools.partial(self._record, request, lookup.base_key, task)
        program = await self._found_or_made("record", lookup, work, client=request.client)
        if not files_agree(description.record.files, program.record.files):
            raise errors.OutdatedBuildError(_OTHER_ARCHITECTURE)
        return program.record

    async def blocks(self, client: str) -> tuple[Block, ...]:
        """Return every block that configs may name, sorted by name; the job uses the share of ``client``."""
        return await self._in_flight.join_or_start("list", "list", self._list, client)

    async def warm_up(self) -> None:
        """Construct, record, verify and store a small block, even if the store has the block already.

        Raises:
            ServerError: this server cannot build: because of the backend, a plug-in, a limit or the store.
        """
        config = CheckedConfig.parse(encode_document(dict(SELF_CHECK_CONFIG)))
        request = BuildRequest(config=config, dtype="", client="", seconds=_OWN_JOB_SECONDS)
        key = build_key(self._backend, request.config, "", 0)
        work = functools.partial(self._build, request, key, 0, uses_known=False)
        try:
            await self._in_flight.join_or_start("warm_up", key, work, request.client)
        except errors.ModelFactoryError as error:
            raise errors.ServerError(f"the warm-up build failed, so this server cannot build: {error}") from error

    def _checkpoint_digest(self, name: str, files: tuple[ReadFile, ...]) -> str:
        path = self._backend.checkpoints.get(name)
        return "" if path is None else checkpoint_digest(path, {file.path: file.digest for file in files})

    def _lookup_outcome(self, lookup: Lookup[BuildRecord]) -> str:
        if lookup.record is not None:
            return "hit"
        return "joined" if lookup.key in self._in_flight else "miss"

    def _check_identity(self, built: BuildReference) -> None:
        """Refuse a module built by a server with other code."""
        differences = built.identity.differences(self._backend.public)
        if differences:
            raise errors.OutdatedBuildError(
                f"the model was built by a server of another version ({'; '.join(differences)}), and programs of "
                f"this server's code do not fit the model. {_BUILD_AGAIN}"
            )

    async def _description(self, request: BuildRequest, *, portability: bool) -> _Kept[DescriptionRecord]:
        """Return the documents of a component, recorded with ``portability`` and an outline without."""
        make_key = architecture_key if portability else outline_key
        base_key = make_key(self._backend, request.config, request.dtype)
        lookup = await self._records.look_up(base_key, DescriptionRecord)
        work = functools.partial(self._describe, request, base_key, portability=portability)
        return await self._found_or_made(
            "describe", lookup, work, in_flight_key=f"describe {lookup.key}", client=request.client
        )

    async def _build(
        self,
        request: BuildRequest,
        base_key: str,
        seed: int,
        on_stage: StageCallback,
        claim: Claim,
        *,
        uses_known: bool = True,
    ) -> BuildRecord:
        """Build a component; the documents of an earlier build under another seed are used with ``uses_known``."""
        architecture = architecture_key(self._backend, request.config, request.dtype)
        known = (await self._records.look_up(architecture, DescriptionRecord)).record if uses_known else None
        blobs = None if known is None else known.architecture
        task = BuildTask(config=request.config.wire, seed=seed, dtype=request.dtype, known=blobs)
        result = await self._run(request, task, BuildOutput.from_document, on_stage, claim)
        files = result.files
        if known is None or blobs is None:
            await self._records.put(architecture, DescriptionRecord.from_build(result.output, files))
        else:
            if not files_agree(known.files, files):
                raise _FilesChangedError(_FILES_CHANGE)
            files = merge_files(known.files, files)
        record = BuildRecord.from_output(result.output, files, result.warnings)
        await self._records.put(base_key, record)
        return record

    async def _describe(
        self, request: BuildRequest, base_key: str, on_stage: StageCallback, claim: Claim, *, portability: bool
    ) -> DescriptionRecord:
        task = DescribeTask(config=request.config.wire, dtype=request.dtype, portability=portability)
        result = await self._run(request, task, DescribeOutput.from_document, on_stage, claim)
        record = DescriptionRecord.from_output(result.output, result.files)
        if not record.refused:  # refusals depend on limits, and limits belong to no key
            await self._records.put(base_key, record)
        return record

    async def _record(
        self, request: BuildRequest, base_key: str, task: RecordTask, on_stage: StageCallback, claim: Claim
    ) -> ProgramRecord:
        result = await self._run(request, task, RecordOutput.from_document, on_stage, claim)
        record = ProgramRecord.from_output(result.output, result.files)
        await self._records.put(base_key, record)
        return record

    async def _list(self, on_stage: StageCallback, claim: Claim) -> tuple[Block, ...]:
        result = await self._pool.run(
            ListTask(), ListOutput.from_document, on_stage, claim=claim, seconds=_OWN_JOB_SECONDS
        )
        return result.output.blocks

    async def _run(
        self,
        request: BuildRequest,
        task: Task,
        decode: Callable[[object], Output],
        on_stage: StageCallback,
        claim: Claim,
    ) -> JobResult[Output]:
        """Run a task in a worker.

        Raises:
            _FilesChangedError: a file changed while the job read the file.
        """
        result = await self._pool.run(task, decode, on_stage, claim=claim, seconds=request.seconds)
        if any(file.digest == CHANGED for file in result.files):
            raise _FilesChangedError(_FILES_CHANGE)
        return result

    async def _found_or_made(
        self,
        kind: str,
        lookup: Lookup[Record],
        work: Work[Record],
        *,
        in_flight_key: str = "",
        client: str,
        on_stage: StageCallback = ignore_stages,
    ) -> _Kept[Record]:
        """Return the found record, or the record made by ``work``; ``work`` is repeated while files change.

        The job may have begun before this request, and may have read an old version of a file.
        """
        if lookup.record is not None:
            return _Kept(key=lookup.key, record=lookup.record)

        async def look_up_again(report: StageCallback, claim: Claim) -> Record:
            # An equal job may have ended after the lookup, before this coroutine went on.
            stored = (await self._records.look_up(lookup.base_key, lookup.record_type)).record
            return await work(report, claim) if stored is None else stored

        for _ in range(_MAX_ATTEMPTS):
            try:
                record = await self._in_flight.join_or_start(
                    kind, in_flight_key or lookup.key, look_up_again, client, on_stage
                )
            except _FilesChangedError:
                continue
            if await self._records.is_current(record.files):
                return _Kept(key=final_key(lookup.base_key, record.files), record=record)
        raise errors.BuildError(_FILES_CHANGE)
