"""The methods of ``ModelFactoryService``: each checks a request, calls the build service or the store, and responds.

``service.proto`` documents the methods. The interceptor turns errors into statuses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from model_factory.errors import MissingBlobError
from model_factory.limits import KIB
from model_factory.store import Store
from model_factory.v1 import blob_pb2, build_pb2, capabilities_pb2, program_pb2, service_pb2_grpc, wire
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.build_records import ProgramRecord
from model_factory_server.builds.fair_shares import FairThreads
from model_factory_server.builds.service import BuildRequest, BuildResult, BuildService, DescribeResult
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import at_component
from model_factory_server.parsing.config_parser import ConfigParser
from model_factory_server.rpc import response
from model_factory_server.rpc.blob_checks import BlobChecks
from model_factory_server.rpc.blob_stream import read_chunks
from model_factory_server.rpc.reception import Context, Reception, client_of
from model_factory_server.rpc.request import (
    check_module_call,
    read_build_reference,
    read_components,
    requested_length,
)
from model_factory_server.rpc.stalled_peers import stall_timer
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.stages import Stage

T = TypeVar("T")
R = TypeVar("R")

_LARGE_BYTES = 256 * KIB  # of documents, which a thread reads: reading and hashing must not delay other requests


class Servicer(service_pb2_grpc.ModelFactoryServiceServicer):
    """Implements ``model_factory.v1.ModelFactoryService``."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        builds: BuildService,
        reception: Reception,
        parser: ConfigParser,
        backend: BackendIdentity,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._builds = builds
        self._reception = reception
        self._parser = parser
        self._threads = FairThreads("blobs", 4)
        self._backend = backend
        self._metrics = metrics
        self._checks = BlobChecks(store, metrics)

    async def GetCapabilities(  # noqa: N802
        self, request: capabilities_pb2.GetCapabilitiesRequest, context: Context
    ) -> capabilities_pb2.GetCapabilitiesResponse:
        """See service.proto."""
        return response.capabilities(self._settings, self._backend, self._store)

    async def ListBlocks(  # noqa: N802
        self, request: capabilities_pb2.ListBlocksRequest, context: Context
    ) -> capabilities_pb2.ListBlocksResponse:
        """See service.proto."""
        blocks = await self._builds.blocks(client_of(context))
        listed = capabilities_pb2.ListBlocksResponse(blocks=[response.block(item) for item in blocks])
        await self._reception.reserve(context, listed.ByteSize())
        return listed

    async def DescribeModels(  # noqa: N802
        self, request: build_pb2.DescribeModelsRequest, context: Context
    ) -> build_pb2.DescribeModelsResponse:
        """See service.proto."""
        components = await self._read(request.components, request.dtype, context)

        async def describe_all() -> dict[str, DescribeResult]:
            work = {
                name: self._builds.describe(item, portability=request.portability) for name, item in components.items()
            }
            return await _gather(work)

        def respond(described: dict[str, DescribeResult]) -> build_pb2.DescribeModelsResponse:
            messages = [response.described_component(name, item, self._store) for name, item in described.items()]
            return build_pb2.DescribeModelsResponse(components=messages)

        return await self._with_documents(context, describe_all, response.described_size, respond)

    async def BuildModels(  # noqa: N802
        self, request: build_pb2.BuildModelsRequest, context: Context
    ) -> AsyncIterator[build_pb2.BuildModelsResponse]:
        """See service.proto."""
        components = await self._read(request.components, request.dtype, context)
        events: asyncio.Queue[build_pb2.BuildModelsResponse | None] = asyncio.Queue()
        building = asyncio.create_task(self._build_all(components, request.seed, events))
        building.add_done_callback(lambda _task: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                with self._sending(context):
                    yield event
            builds = await building
            inline = response.inline_blobs(builds)
            await self._reception.reserve(context, sum(blob.size for blob in inline))
            with self._sending(context):
                yield response.manifest(builds, inline, self._store, self._backend)
        finally:
            building.cancel()

    async def RecordProgram(  # noqa: N802
        self, request: program_pb2.RecordProgramRequest, context: Context
    ) -> program_pb2.RecordProgramResponse:
        """See service.proto."""
        components = await self._read([request.component], request.dtype, context)
        check_module_call(request, self._settings.limits)
        reference = read_build_reference(request)
        ((name, component),) = components.items()

        async def record() -> ProgramRecord:
            with at_component(name):
                return await self._builds.record(
                    component, name, reference, request.module_path, request.call_json, dict(request.training)
                )

        def respond(recorded: ProgramRecord) -> program_pb2.RecordProgramResponse:
            return response.recorded_program(recorded, self._store)

        return await self._with_documents(context, record, response.recorded_size, respond)

    async def ReadBlob(  # noqa: N802
        self, request: blob_pb2.ReadBlobRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """See service.proto. Yields serialised messages."""
        blob = wire.from_digest(request.digest)
        if request.verify:
            await self._checks.check(blob)
        file = await self._threads.run(self._store.open, blob)
        if file is None:
            raise MissingBlobError(f"this store has no blob {blob.digest}. Remedy: build again")
        with file:
            length = requested_length(request, blob)
            memory = self._reception.memory(context)
            async for message in read_chunks(file.fileno(), request.offset_bytes, length, memory):
                self._metrics.blob_bytes.inc(len(wire.chunk_of(message)))
                with self._sending(context):
                    yield message

    async def _with_documents(
        self, context: Context, find: Callable[[], Awaitable[T]], size: Callable[[T], int], respond: Callable[[T], R]
    ) -> R:
        """Return a response with documents from the store, again if a document was evicted after it was found."""
        for is_last in (False, False, True):
            found = await find()
            claim = await self._reception.reserve(context, size(found))
            try:
                if size(found) > _LARGE_BYTES:
                    return await self._threads.run(respond, found)
                return respond(found)
            except response.EvictedError:
                claim.release()
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _read(
        self, components: Sequence[build_pb2.Component], dtype: str, context: Context
    ) -> dict[str, BuildRequest]:
        return await read_components(components, dtype, client_of(context), self._settings.limits, self._parser)

    async def _build_all(
        self,
        components: Mapping[str, BuildRequest],
        seed: int,
        events: asyncio.Queue[build_pb2.BuildModelsResponse | None],
    ) -> dict[str, BuildResult]:
        """Build all components at once; put their progress into ``events``."""
        started = time.monotonic()

        async def build(name: str, component: BuildRequest) -> BuildResult:
            def report(stage: Stage) -> None:
                events.put_nowait(response.progress(name, stage, time.monotonic() - started))

            return await self._builds.build(component, name, seed, report)

        return await _gather({name: build(name, component) for name, component in components.items()})

    def _sending(self, context: Context) -> AbstractContextManager[None]:
        """Guard the sending of a message: a client that does not receive the message loses its connection."""
        return stall_timer(context.peer(), self._settings.connections.stall_timeout)


async def _gather(work: Mapping[str, Coroutine[Any, Any, T]]) -> dict[str, T]:
    """Run the work of all components at once; the first error cancels the rest and names its component."""
    tasks = {name: asyncio.ensure_future(item) for name, item in work.items()}
    try:
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        for name, task in tasks.items():
            if task.done():
                with at_component(name):
                    task.result()
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    return {name: task.result() for name, task in tasks.items()}
