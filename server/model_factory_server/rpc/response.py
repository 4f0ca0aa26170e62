"""Maps results to the messages of responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata

from model_factory.blocks import Block
from model_factory.documents import FORMAT
from model_factory.limits import MIB
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, capabilities_pb2, wire
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.service import BuildResult, DescribeResult
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.stages import Stage

INLINE_BYTES = MIB
"""Size limit of a blob inside a manifest."""

_STAGES = {
    Stage.QUEUED: build_pb2.BUILD_STAGE_QUEUED,
    Stage.CONSTRUCTING: build_pb2.BUILD_STAGE_CONSTRUCTING,
    Stage.RECORDING: build_pb2.BUILD_STAGE_RECORDING,
    Stage.WRITING: build_pb2.BUILD_STAGE_WRITING,
    Stage.DONE: build_pb2.BUILD_STAGE_DONE,
}


def capabilities(
    settings: Settings, backend: BackendIdentity, store: Store
) -> capabilities_pb2.GetCapabilitiesResponse:
    """Describe this server: versions, backend, limits, and the path of the store if the store is shared."""
    return capabilities_pb2.GetCapabilitiesResponse(
        server_version=metadata.version("model-factory-server"),
        format_version=FORMAT,
        backend=capabilities_pb2.Backend(
            name=backend.name,
            version=backend.version,
            code_digest=backend.code_digest,
            torch_version=backend.torch_version,
        ),
        device_kind=backend.device_kind,
        store_path=str(store.root.resolve()) if settings.share_store else "",
        limits=_limits(settings),
    )


def progress(component: str, stage: Stage, seconds: float) -> build_pb2.BuildModelsResponse:
    """Report the stage of a component, ``seconds`` after the request.

    Example:
        >>> progress("encoder", Stage.QUEUED, 0.25).progress.elapsed_ms
        250
    """
    message = build_pb2.BuildProgress(component=component, stage=_STAGES[stage], elapsed_ms=round(seconds * 1000))
    return build_pb2.BuildModelsResponse(progress=message)


def manifest(
    builds: Mapping[str, BuildResult], store: Store, backend: BackendIdentity
) -> build_pb2.BuildModelsResponse:
    """Return the manifest of builds, with small blobs inline.

    Raises:
        StoreError: a blob cannot be read.
    """
    small: dict[str, bytes] = {}
    for built in builds.values():
        for blob in (built.descriptor, built.programs):
            if blob.size <= INLINE_BYTES and blob.digest not in small:
                small[blob.digest] = store.read(blob) or b""
    message = build_pb2.Manifest(
        components=[_built_component(name, built) for name, built in builds.items()],
        inline_blobs=[
            build_pb2.InlineBlob(digest=wire.to_digest(Blob(digest, len(data))), data=data)
            for digest, data in small.items()
        ],
        identity=wire.to_identity(backend.public),
    )
    return build_pb2.BuildModelsResponse(manifest=message)


def described_component(name: str, described: DescribeResult) -> build_pb2.DescribedComponent:
    """Return the message of a described component."""
    return build_pb2.DescribedComponent(
        name=name,
        descriptor_json=described.descriptor,
        programs_json=described.programs,
        refused=described.refused,
    )


def block(item: Block) -> capabilities_pb2.Block:
    """Return the message of a block."""
    arguments = [capabilities_pb2.BlockArgument(**asdict(argument)) for argument in item.arguments]
    return capabilities_pb2.Block(
        name=item.name, summary=item.summary, origin=item.origin, tags=item.tags, arguments=arguments
    )


def _built_component(name: str, built: BuildResult) -> build_pb2.BuiltComponent:
    return build_pb2.BuiltComponent(
        name=name,
        build_key=built.key,
        descriptor=wire.to_digest(built.descriptor),
        programs=wire.to_digest(built.programs),
        weights=wire.to_digest(built.weights),
        built_now=built.built_now,
        architecture_key=built.architecture_key,
    )


def _limits(settings: Settings) -> capabilities_pb2.Limits:
    limits = settings.limits
    return capabilities_pb2.Limits(
        components=limits.max_components,
        config_bytes=limits.max_config_bytes,
        inline_bytes=INLINE_BYTES,
        weights_bytes=limits.effective_max_weights_bytes,
        build_timeout_ms=round(limits.build_timeout * 1000),
        request_bytes=limits.max_request_bytes,
        nesting=limits.max_nesting,
        values=limits.max_values,
        modules=limits.max_modules,
        blob_bytes=limits.max_blob_bytes,
        store_bytes=limits.max_store_bytes or 0,
        memory_bytes=limits.max_memory_bytes or 0,
        plan_timeout_ms=round(limits.plan_timeout * 1000),
        build_cpu_timeout_ms=round(limits.build_cpu_timeout * 1000),
        workers=settings.workers,
        queue=limits.max_queue,
        client_workers=min(limits.max_builds_per_client or settings.workers, settings.workers),
        client_queue=limits.max_queue_per_client,
        rpcs=limits.max_rpcs,
        client_rpcs=limits.max_rpcs_per_client,
        connections=limits.max_connections,
    )
