"""The methods of ``ModelFactoryService``: each checks a request, calls the build service or the store, and responds.

``service.proto`` documents the methods. The interceptor turns errors into statuses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from model_factory.errors import MissingBlobError
from model_factory.store import Store
from model_factory.v1 import blob_pb2, build_pb2, capabilities_pb2, program_pb2, service_pb2_grpc, wire
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.service import BuildRequest, BuildResult, BuildService
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import at_component, current_rpc
from model_factory_server.rpc import response
from model_factory_server.rpc.blob_stream import read_chunks
from model_factory_server.rpc.request import (
    check_module_call,
    read_build_reference,
    read_components,
    requested_length,
)
from model_factory_server.rpc.stalled_peers import stall_timer, start_stall_timer
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.stages import Stage

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Servicer(service_pb2_grpc.ModelFactoryServiceServicer):
    """Implements ``model_factory.v1.ModelFactoryService``."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        builds: BuildService,
        admission: Admission,
        backend: BackendIdentity,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._builds = builds
        self._admission = admission
        self._backend = backend
        self._metrics = metrics

    async def GetCapabilities(  # noqa: N802
        self, request: capabilities_pb2.GetCapabilitiesRequest, context: Context
    ) -> capabilities_pb2.GetCapabilitiesResponse:
        """See service.proto."""
        return response.capabilities(self._settings, self._backend, self._store)

    async def ListBlocks(  # noqa: N802
        self, request: capabilities_pb2.ListBlocksRequest, context: Context
    ) -> capabilities_pb2.ListBlocksResponse:
        """See service.proto."""
        with self._admitted(context):
            blocks = await self._builds.blocks()
            return capabilities_pb2.ListBlocksResponse(blocks=[response.block(item) for item in blocks])

    async def DescribeModels(  # noqa: N802
        self, request: build_pb2.DescribeModelsRequest, context: Context
    ) -> build_pb2.DescribeModelsResponse:
        """See service.proto."""
        with self._admitted(context) as client:
            components = await read_components(request.components, request.dtype, client, self._settings.limits)
            described = await _gather(
                {
                    name: self._builds.describe(component, portability=request.portability)
                    for name, component in components.items()
                }
            )
            return build_pb2.DescribeModelsResponse(
                components=[response.described_component(name, item) for name, item in described.items()]
            )

    async def BuildModels(  # noqa: N802
        self, request: build_pb2.BuildModelsRequest, context: Context
    ) -> AsyncIterator[build_pb2.BuildModelsResponse]:
        """See service.proto."""
        with self._admitted(context) as client:
            components = await read_components(request.components, request.dtype, client, self._settings.limits)
            events: asyncio.Queue[build_pb2.BuildModelsResponse | None] = asyncio.Queue()
            building = asyncio.create_task(self._build_all(components, request.seed, events))
            building.add_done_callback(lambda _task: events.put_nowait(None))
            try:
                while (event := await events.get()) is not None:
                    with self._sending(context):
                        yield event
                manifest = response.manifest(await building, self._store, self._backend)
                with self._sending(context):
                    yield manifest
            finally:
                building.cancel()

    async def RecordProgram(  # noqa: N802
        self, request: program_pb2.RecordProgramRequest, context: Context
    ) -> program_pb2.RecordProgramResponse:
        """See service.proto."""
        with self._admitted(context) as client:
            components = await read_components([request.component], request.dtype, client, self._settings.limits)
            check_module_call(request, self._settings.limits)
            reference = read_build_reference(request)
            ((name, component),) = components.items()
            with at_component(name):
                programs = await self._builds.record(
                    component, name, reference, request.module_path, request.call_json, dict(request.training)
                )
            return program_pb2.RecordProgramResponse(programs_json=programs)

    async def ReadBlob(  # noqa: N802
        self, request: blob_pb2.ReadBlobRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """See service.proto. Yields serialised messages."""
        with self._admitted(context):
            blob = wire.from_digest(request.digest)
            file = await asyncio.to_thread(self._store.open, blob)
            if file is None:
                raise MissingBlobError(f"this store has no blob {blob.digest}. Remedy: build again")
            with file:
                length = requested_length(request, blob)
                async for message in read_chunks(file.fileno(), request.offset_bytes, length):
                    self._metrics.blob_bytes.inc(len(wire.chunk_of(message)))
                    with self._sending(context):
                        yield message

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

    @contextmanager
    def _admitted(self, context: Context) -> Iterator[str]:
        """Count an RPC against the limits of its client; yield the name of the client.

        The RPC counts until gRPC is done: the response of a unary method is sent after the method has returned.

        Raises:
            BusyError: too many RPCs are in progress.
        """
        client = _client_of(context)
        until_done = ExitStack()
        until_done.enter_context(self._admission.rpc(client))
        context.add_done_callback(lambda _context: until_done.close())  # type: ignore[arg-type]  # wrong stubs
        yield client
        until_done.callback(start_stall_timer(context.peer(), self._settings.connections.stall_timeout).cancel)


def _client_of(context: Context) -> str:
    """Return the client for limits: the authenticated identity, else the address without its port."""
    peer = context.peer()
    address = peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
    return current_rpc().identity or address


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
