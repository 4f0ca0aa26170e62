"""The gRPC face of the builder and the store: messages in, messages out, errors as statuses."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

import grpc

from model_factory import limits
from model_factory.config import ResolvedConfig, parse_config
from model_factory.documents import FORMAT, decode_document
from model_factory.errors import FormatError, LimitError, ModelFactoryError, ServerError
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2, build_pb2, capabilities_pb2, program_pb2, service_pb2_grpc, wire
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builder import Builder, Built
from model_factory_server.settings import Settings

log = logging.getLogger(__name__)

Context = Any
"""``grpc.aio.ServicerContext``; the published stubs lack ``abort_with_status``."""

_DTYPES = frozenset({"", "float16", "bfloat16", "float32", "float64"})
_MAX_NAME_BYTES = 255
INLINE_BYTES = limits.MIB


class Servicer(service_pb2_grpc.ModelFactoryServiceServicer):
    """Implements ``model_factory.v1.ModelFactoryService``."""

    def __init__(self, settings: Settings, store: Store, builder: Builder, backend: BackendIdentity) -> None:
        self._settings = settings
        self._store = store
        self._builder = builder
        self._backend = backend

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
            limits=capabilities_pb2.Limits(
                components=limits.MAX_COMPONENTS,
                config_bytes=limits.MAX_CONFIG_BYTES,
                inline_bytes=INLINE_BYTES,
                weights_bytes=self._settings.limits.max_weights_bytes,
                build_timeout_ms=round(self._settings.limits.build_timeout * 1000),
            ),
        )

    async def ListBlocks(  # noqa: N802
        self, request: capabilities_pb2.ListBlocksRequest, context: Context
    ) -> capabilities_pb2.ListBlocksResponse:
        """See service.proto."""
        async with _answering(context, "ListBlocks"):
            return capabilities_pb2.ListBlocksResponse(blocks=[_block(item) for item in await self._builder.blocks()])

    async def DescribeModels(  # noqa: N802
        self, request: build_pb2.DescribeModelsRequest, context: Context
    ) -> build_pb2.DescribeModelsResponse:
        """See service.proto."""
        async with _answering(context, "DescribeModels") as call:
            configs = call.read(request.components, request.dtype)
            described = await call.gather(
                {
                    name: self._builder.describe(config, request.dtype, travel=request.travel)
                    for name, config in configs.items()
                }
            )
            return build_pb2.DescribeModelsResponse(
                components=[_described(name, documents) for name, documents in described.items()]
            )

    async def BuildModels(  # noqa: N802
        self, request: build_pb2.BuildModelsRequest, context: Context
    ) -> AsyncIterator[build_pb2.BuildModelsResponse]:
        """See service.proto."""
        async with _answering(context, "BuildModels") as call:
            configs = call.read(request.components, request.dtype)
            events: asyncio.Queue[build_pb2.BuildModelsResponse | None] = asyncio.Queue()
            builds = {
                name: self._builder.build(name, config, request.seed, request.dtype, _reporter(name, events))
                for name, config in configs.items()
            }
            building = asyncio.create_task(call.gather(builds))
            building.add_done_callback(lambda _task: events.put_nowait(None))
            try:
                while (event := await events.get()) is not None:
                    yield event
                yield build_pb2.BuildModelsResponse(manifest=self._manifest(await building))
            finally:
                building.cancel()

    async def RecordProgram(  # noqa: N802
        self, request: program_pb2.RecordProgramRequest, context: Context
    ) -> program_pb2.RecordProgramResponse:
        """See service.proto."""
        async with _answering(context, "RecordProgram") as call:
            configs = call.read([request.component], request.dtype)
            if len(request.call_json) > limits.MAX_CONFIG_BYTES:
                raise LimitError(f"a call takes at most {limits.MAX_CONFIG_BYTES} bytes, got {len(request.call_json)}")
            name, config = next(iter(configs.items()))
            call.component = name
            programs = await self._builder.record(
                config,
                request.dtype,
                request.module_path,
                request.method or "forward",
                request.call_json,
                dict(request.training),
            )
            return program_pb2.RecordProgramResponse(programs_json=programs)

    async def ReadBlob(  # noqa: N802
        self, request: blob_pb2.ReadBlobRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """See service.proto. Yields the chunks themselves; :func:`wire.frame_chunk` makes them messages."""
        async with _answering(context, "ReadBlob"):
            blob = wire.from_digest(request.digest)
            path = self._store.find(blob)
            if path is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"no blob {blob.digest} in this store; build again")
                return
            if not 0 <= request.offset_bytes <= blob.size or request.limit_bytes < 0:
                await context.abort(
                    grpc.StatusCode.OUT_OF_RANGE, f"offset {request.offset_bytes} is outside the {blob.size} bytes"
                )
            left = min(request.limit_bytes or blob.size, blob.size - request.offset_bytes)
            with path.open("rb") as file:
                file.seek(request.offset_bytes)
                while left:
                    data = await asyncio.to_thread(file.read, min(limits.BLOB_CHUNK_BYTES, left))
                    if not data:
                        raise ServerError(f"blob {blob.digest} ended early")
                    left -= len(data)
                    yield data

    def _manifest(self, builds: dict[str, Built]) -> build_pb2.Manifest:
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
                )
                for name, built in builds.items()
            ],
            inline_blobs=[
                build_pb2.InlineBlob(digest=wire.to_digest(Blob(digest, len(data))), data=data)
                for digest, data in small.items()
            ],
        )


class _Call:
    """One call being answered: which component it is at, for the error message."""

    def __init__(self) -> None:
        self.component = ""

    def read(self, components: Any, dtype: str) -> dict[str, ResolvedConfig]:
        """Check the components of a request and parse their configs."""
        if not 0 < len(components) <= limits.MAX_COMPONENTS:
            raise LimitError(f"a request has 1 to {limits.MAX_COMPONENTS} components, got {len(components)}")
        if dtype not in _DTYPES:
            raise FormatError(f"dtype {dtype!r} is not one of {', '.join(sorted(_DTYPES - {''}))}")
        configs: dict[str, ResolvedConfig] = {}
        for component in components:
            name = self.component = component.name
            if not name or len(name.encode()) > _MAX_NAME_BYTES or name in configs:
                raise FormatError(
                    f"component names are unique and have 1 to {_MAX_NAME_BYTES} bytes, got {name[:80]!r}"
                )
            if len(component.config_json) > limits.MAX_CONFIG_BYTES:
                raise LimitError(
                    f"a config takes at most {limits.MAX_CONFIG_BYTES} bytes, got {len(component.config_json)}"
                )
            configs[name] = parse_config(component.config_json)
        self.component = ""
        return configs

    async def gather(self, work: dict[str, Any]) -> dict[str, Any]:
        """Do the work of all components at once; the first error ends it, and says whose it was."""
        tasks = {name: asyncio.ensure_future(item) for name, item in work.items()}
        try:
            for name, task in tasks.items():
                self.component = name
                await task
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        self.component = ""
        return {name: task.result() for name, task in tasks.items()}


@asynccontextmanager
async def _answering(context: Context, method: str) -> AsyncIterator[_Call]:
    """Turn errors into statuses: ours with their details, all others with a request id for the log and nothing else."""
    call = _Call()
    try:
        yield call
    except ModelFactoryError as error:
        log.info("%s refused: %s", method, error)
        await context.abort_with_status(wire.to_status(error, call.component))
    except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
        raise
    except Exception:
        request_id = uuid.uuid4().hex
        log.exception("%s failed, request %s", method, request_id)
        await context.abort_with_status(wire.to_status(ServerError(f"internal error, request {request_id}")))


def _reporter(name: str, events: asyncio.Queue[build_pb2.BuildModelsResponse | None]) -> Any:
    started = time.monotonic()

    def report(stage: str) -> None:
        progress = build_pb2.BuildProgress(
            component=name,
            stage=f"BUILD_STAGE_{stage.upper()}",
            elapsed_ms=round((time.monotonic() - started) * 1000),
        )
        events.put_nowait(build_pb2.BuildModelsResponse(progress=progress))

    return report


def _described(name: str, documents: dict[str, bytes]) -> build_pb2.DescribedComponent:
    return build_pb2.DescribedComponent(
        name=name,
        descriptor_json=documents["descriptor"],
        programs_json=documents.get("programs", b""),
        refused=decode_document(documents["refused"], "what is refused") if "refused" in documents else {},
    )


def _block(item: dict[str, Any]) -> capabilities_pb2.Block:
    arguments = [capabilities_pb2.BlockArgument(**argument) for argument in item["arguments"]]
    return capabilities_pb2.Block(
        name=item["name"], summary=item["summary"], origin=item["origin"], arguments=arguments
    )
