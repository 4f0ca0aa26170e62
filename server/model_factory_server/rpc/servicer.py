"""The gRPC face of the builder and the store: messages in, messages out, errors as statuses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import metadata
from typing import Any

from model_factory import limits
from model_factory.blocks import Block
from model_factory.config import ResolvedConfig, parse_config
from model_factory.config.syntax.json_text import json_shape
from model_factory.documents import FORMAT
from model_factory.errors import FormatError, LimitError, MissingBlobError, RangeError
from model_factory.identity import BuildReference
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2, build_pb2, capabilities_pb2, program_pb2, service_pb2_grpc, wire
from model_factory.wording import quoted
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.service import BuildRequest, BuildResult, BuildService, DescribeResult
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import current_call
from model_factory_server.rpc.blob_stream import read_chunks
from model_factory_server.rpc.stalled_peers import close_peer_connection
from model_factory_server.settings.server_settings import LimitSettings, Settings
from model_factory_server.worker.stages import Stage

log = logging.getLogger(__name__)

Context = Any
"""``grpc.aio.ServicerContext``; the published stubs lack ``abort_with_status``."""

_DTYPES = frozenset({"", "float16", "bfloat16", "float32", "float64"})
_MAX_NAME_BYTES = 255
INLINE_BYTES = limits.MIB

# Parsing the largest config takes seconds. Few threads, since each that has work takes its share from the event loop.
_PARSERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="parser")


class Servicer(service_pb2_grpc.ModelFactoryServiceServicer):
    """Implements ``model_factory.v1.ModelFactoryService``."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        builder: BuildService,
        admission: Admission,
        backend: BackendIdentity,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._builder = builder
        self._admission = admission
        self._backend = backend
        self._metrics = metrics

    async def GetCapabilities(  # noqa: N802
        self, request: capabilities_pb2.GetCapabilitiesRequest, context: Context
    ) -> capabilities_pb2.GetCapabilitiesResponse:
        """See service.proto."""
        return capabilities_pb2.GetCapabilitiesResponse(
            server_version=metadata.version("model-factory-server"),
            format_version=FORMAT,
            backend=capabilities_pb2.Backend(
                name=self._backend.name,
                version=self._backend.version,
                code_digest=self._backend.code_digest,
                torch_version=self._backend.torch_version,
            ),
            device_kind=self._backend.device_kind,
            store_path=str(self._store.root.resolve()) if self._settings.share_store else "",
            limits=_limits(self._settings),
        )

    async def ListBlocks(  # noqa: N802
        self, request: capabilities_pb2.ListBlocksRequest, context: Context
    ) -> capabilities_pb2.ListBlocksResponse:
        """See service.proto."""
        with self._answering(context):
            return capabilities_pb2.ListBlocksResponse(blocks=[_block(item) for item in await self._builder.blocks()])

    async def DescribeModels(  # noqa: N802
        self, request: build_pb2.DescribeModelsRequest, context: Context
    ) -> build_pb2.DescribeModelsResponse:
        """See service.proto."""
        with self._answering(context) as call:
            asked = await call.read(request.components, request.dtype)
            described = await call.gather(
                {name: self._builder.describe(item, portability=request.portability) for name, item in asked.items()}
            )
            return build_pb2.DescribeModelsResponse(
                components=[_described(name, item) for name, item in described.items()]
            )

    async def BuildModels(  # noqa: N802
        self, request: build_pb2.BuildModelsRequest, context: Context
    ) -> AsyncIterator[build_pb2.BuildModelsResponse]:
        """See service.proto."""
        with self._answering(context) as call:
            asked = await call.read(request.components, request.dtype)
            events: asyncio.Queue[build_pb2.BuildModelsResponse | None] = asyncio.Queue()
            builds = {
                name: self._builder.build(item, name, request.seed, _reporter(name, events))
                for name, item in asked.items()
            }
            building = asyncio.create_task(call.gather(builds))
            building.add_done_callback(lambda _task: events.put_nowait(None))
            try:
                while (event := await events.get()) is not None:
                    with self._sending(context):
                        yield event
                built = await building
                with self._sending(context):
                    yield build_pb2.BuildModelsResponse(manifest=self._manifest(built))
            finally:
                building.cancel()

    async def RecordProgram(  # noqa: N802
        self, request: program_pb2.RecordProgramRequest, context: Context
    ) -> program_pb2.RecordProgramResponse:
        """See service.proto."""
        with self._answering(context) as call:
            asked = await call.read([request.component], request.dtype)
            _check_call(request, self._settings.limits)
            built = _reference(request)
            ((call.component, component),) = asked.items()
            programs = await self._builder.record(
                component, call.component, built, request.module_path, request.call_json, dict(request.training)
            )
            return program_pb2.RecordProgramResponse(programs_json=programs)

    async def ReadBlob(  # noqa: N802
        self, request: blob_pb2.ReadBlobRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """See service.proto. Yields messages that are serialised already."""
        with self._answering(context):
            blob = wire.from_digest(request.digest)
            file = await asyncio.to_thread(self._store.open, blob)
            if file is None:
                raise MissingBlobError(f"no blob {blob.digest} in this store. Remedy: build again")
            with file:
                if not 0 <= request.offset_bytes <= blob.size or request.limit_bytes < 0:
                    raise RangeError(
                        f"offset {request.offset_bytes} and limit {request.limit_bytes} are outside the blob, which "
                        f"has {blob.size} bytes. Remedy: an offset of 0 to {blob.size}, and a limit of 0 or more"
                    )
                left = min(request.limit_bytes or blob.size, blob.size - request.offset_bytes)
                async for message in read_chunks(file.fileno(), request.offset_bytes, left):
                    self._metrics.blob_bytes.inc(len(wire.chunk_of(message)))
                    with self._sending(context):
                        yield message

    @contextmanager
    def _sending(self, context: Context) -> Iterator[None]:
        """Around the sending of a message of a stream: ends the call if nobody takes it."""
        timer = _close_stalled_later(context, self._settings.connections.stall_timeout)
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def _answering(self, context: Context) -> Iterator[_Call]:
        """Admit a call; when it fails, say which component it was at. The interceptor makes the status.

        It counts until it is over, not until this is left: what a unary method returns is sent afterwards, and only so
        long as somebody takes it.
        """
        call = _Call(self._settings.limits, _client_of(context))
        over = ExitStack()
        over.enter_context(self._admission.call(call.client))
        context.add_done_callback(lambda _context: over.close())
        try:
            yield call
        except Exception:
            current_call().component = call.component
            raise
        over.callback(_close_stalled_later(context, self._settings.connections.stall_timeout).cancel)

    def _manifest(self, builds: dict[str, BuildResult]) -> build_pb2.Manifest:
        small: dict[str, bytes] = {}
        for built in builds.values():
            for blob in (built.descriptor, built.programs):
                if blob.size <= INLINE_BYTES and blob.digest not in small:
                    small[blob.digest] = self._store.read(blob) or b""
        return build_pb2.Manifest(
            components=[
                build_pb2.BuiltComponent(
                    name=name,
                    build_key=built.key,
                    descriptor=wire.to_digest(built.descriptor),
                    programs=wire.to_digest(built.programs),
                    weights=wire.to_digest(built.weights),
                    built_now=built.now,
                    architecture_key=built.architecture,
                )
                for name, built in builds.items()
            ],
            inline_blobs=[
                build_pb2.InlineBlob(digest=wire.to_digest(Blob(digest, len(data))), data=data)
                for digest, data in small.items()
            ],
            identity=wire.to_identity(self._backend.public),
        )


class _Call:
    """One call being answered."""

    def __init__(self, limits: LimitSettings, client: str) -> None:
        self._limits = limits
        self.client = client
        self.component = ""  # that it is at, for the error message

    async def read(self, components: Any, dtype: str) -> dict[str, BuildRequest]:
        """Check the components of a request and parse their configs, while others are answered."""
        if not components:
            raise FormatError("a request names no component. Remedy: name at least one")
        if len(components) > self._limits.max_components:
            raise LimitError(f"a request has at most {self._limits.max_components} components, got {len(components)}")
        _check_dtype(dtype)
        asked: dict[str, BuildRequest] = {}
        for component in components:
            name = component.name
            if not 0 < len(name.encode()) <= _MAX_NAME_BYTES or not name.isprintable() or name in asked:
                raise FormatError(
                    f"component names are unique, printable and have 1 to {_MAX_NAME_BYTES} bytes, got {quoted(name)}"
                )
            self.component = name
            loop = asyncio.get_running_loop()
            config = await loop.run_in_executor(_PARSERS, self._parse, component.config_json)
            asked[name] = BuildRequest(config=config, dtype=dtype, client=self.client)
        self.component = ""
        return asked

    def _parse(self, data: bytes) -> ResolvedConfig:
        self._check_extent(data)
        return parse_config(data)

    def _check_extent(self, data: bytes) -> None:
        """Refuse a config over this server's own bounds before anything is made of it."""
        if len(data) > self._limits.max_config_bytes:
            raise LimitError(f"a config takes at most {self._limits.max_config_bytes} bytes, got {len(data)}")
        values, depth = json_shape(data.decode("utf-8", "replace"))
        if values > self._limits.max_nodes:
            raise LimitError(f"a config has at most {self._limits.max_nodes} values, got {values}")
        if depth > self._limits.max_nesting + 1:  # on the wire a float may be one deeper than it stands
            raise LimitError(f"a config nests at most {self._limits.max_nesting} deep, got {depth}")

    async def gather(self, work: dict[str, Any]) -> dict[str, Any]:
        """Do the work of all components at once; the first error ends it, and says whose it was."""
        tasks = {name: asyncio.ensure_future(item) for name, item in work.items()}
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
            for name, task in tasks.items():
                self.component = name
                if task.done():
                    task.result()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        self.component = ""
        return {name: task.result() for name, task in tasks.items()}


def _close_stalled_later(context: Context, seconds: float) -> asyncio.TimerHandle:
    """End a call after a while, and with it the connection of its client, who has stopped reading."""
    task = asyncio.current_task()
    assert task is not None

    def end() -> None:
        log.warning("%s takes nothing for %g seconds: its connection is ended", context.peer(), seconds)
        if not close_peer_connection(context.peer()):
            task.cancel()

    return asyncio.get_running_loop().call_later(seconds, end)


def _check_dtype(dtype: str) -> None:
    if dtype not in _DTYPES:
        raise FormatError(f"dtype {quoted(dtype)} is not one of {', '.join(sorted(_DTYPES - {''}))}")


def _reference(request: program_pb2.RecordProgramRequest) -> BuildReference:
    """Read the build that a module to record comes from."""
    if not request.HasField("build"):
        raise FormatError(
            "a request to record a program refers to no build, so the client is of another version than this server. "
            "Remedy: install the same version on both"
        )
    built = wire.from_reference(request.build)
    _check_dtype(built.dtype)
    return built


def _check_call(request: program_pb2.RecordProgramRequest, limits: LimitSettings) -> None:
    """Refuse a call to record over this server's bounds before anything is made of it."""
    if len(request.training) > limits.max_modules:
        raise LimitError(
            f"a call has training flags of at most {limits.max_modules} modules, got {len(request.training)}"
        )
    size = len(request.call_json) + len(request.module_path) + sum(map(len, request.training))
    if size > limits.max_config_bytes:
        raise LimitError(
            f"a call, with the names of modules, takes at most {limits.max_config_bytes} bytes, got {size}"
        )


def _client_of(context: Context) -> str:
    """Whose share of the server a call takes: who it has shown to be, else the address it comes from."""
    peer: str = context.peer()
    address = peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
    return current_call().identity or address


def _reporter(name: str, events: asyncio.Queue[build_pb2.BuildModelsResponse | None]) -> Any:
    started = time.monotonic()

    def report(stage: Stage) -> None:
        progress = build_pb2.BuildProgress(
            component=name,
            stage=f"BUILD_STAGE_{stage.upper()}",
            elapsed_ms=round((time.monotonic() - started) * 1000),
        )
        events.put_nowait(build_pb2.BuildModelsResponse(progress=progress))

    return report


def _described(name: str, described: DescribeResult) -> build_pb2.DescribedComponent:
    return build_pb2.DescribedComponent(
        name=name,
        descriptor_json=described.descriptor,
        programs_json=described.programs,
        refused=described.refused,
    )


def _block(block: Block) -> capabilities_pb2.Block:
    arguments = [capabilities_pb2.BlockArgument(**asdict(argument)) for argument in block.arguments]
    return capabilities_pb2.Block(
        name=block.name, summary=block.summary, origin=block.origin, tags=block.tags, arguments=arguments
    )


def _limits(settings: Settings) -> capabilities_pb2.Limits:
    """What this server accepts, for clients to read."""
    bounds = settings.limits
    return capabilities_pb2.Limits(
        components=bounds.max_components,
        config_bytes=bounds.max_config_bytes,
        inline_bytes=INLINE_BYTES,
        weights_bytes=bounds.most_weights_bytes,
        build_timeout_ms=round(bounds.build_timeout * 1000),
        request_bytes=bounds.max_request_bytes,
        nesting=bounds.max_nesting,
        nodes=bounds.max_nodes,
        modules=bounds.max_modules,
        blob_bytes=bounds.max_blob_bytes,
        store_bytes=bounds.max_store_bytes or 0,
        memory_bytes=bounds.max_memory_bytes or 0,
        plan_timeout_ms=round(bounds.plan_timeout * 1000),
        build_cpu_timeout_ms=round(bounds.build_cpu_timeout * 1000),
        workers=settings.workers,
        queue=bounds.max_queue,
        client_workers=min(bounds.max_builds_per_client or settings.workers, settings.workers),
        client_queue=bounds.max_queue_per_client,
        calls=bounds.max_calls,
        client_calls=bounds.max_calls_per_client,
        connections=bounds.max_connections,
    )
