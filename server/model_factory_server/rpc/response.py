"""Maps results to the messages of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata

from model_factory.blocks import Block
from model_factory.documents import FORMAT
from model_factory.errors import StoreError
from model_factory.limits import MIB
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, capabilities_pb2, program_pb2, wire
from model_factory_server.backends.identity import BackendIdentity
from model_factory_server.builds.build_records import ProgramRecord
from model_factory_server.builds.service import BuildResult, DescribeResult
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.stages import Stage

INLINE_BYTES = MIB
"""Size limit of a blob inside a manifest."""

MAX_INLINE_BYTES = 16 * MIB
"""Size limit of all blobs inside a manifest; clients read the other blobs like weights."""

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
        checkpoints=sorted(settings.backend.checkpoint_paths),
    )


def progress(component: str, stage: Stage, seconds: float) -> build_pb2.BuildModelsResponse:
    """Report the stage of a component, ``seconds`` after the request.

    Example:
        >>> progress("encoder", Stage.QUEUED, 0.25).progress.elapsed_ms
        250
    """
    message = build_pb2.BuildProgress(component=component, stage=_STAGES[stage], elapsed_ms=round(seconds * 1000))
    return build_pb2.BuildModelsResponse(progress=message)


def inline_blobs(builds: Mapping[str, BuildResult]) -> list[Blob]:
    """Return the small blobs of builds, for the manifest: each once, and not more than fit into a message."""
    blobs: list[Blob] = []
    left = MAX_INLINE_BYTES
    for built in builds.values():
        for blob in (built.descriptor, built.programs):
            if blob.size <= min(INLINE_BYTES, left) and blob not in blobs:
                blobs.append(blob)
                left -= blob.size
    return blobs


def manifest(
    builds: Mapping[str, BuildResult], inline: Sequence[Blob], store: Store, backend: BackendIdentity
) -> build_pb2.BuildModelsResponse:
    """Return the manifest of builds, with some blobs inline; a blob that was evicted meanwhile is left out.

    Raises:
        StoreError: a blob cannot be read.
    """
    found = {blob: data for blob in inline if (data := store.read(blob)) is not None}
    message = build_pb2.Manifest(
        components=[_built_component(name, built) for name, built in builds.items()],
        inline_blobs=[build_pb2.InlineBlob(digest=wire.to_digest(blob), data=data) for blob, data in found.items()],
        identity=wire.to_identity(backend.public),
        server_version=metadata.version("model-factory-server"),
    )
    return build_pb2.BuildModelsResponse(manifest=message)


class EvictedError(StoreError):
    """A document was evicted from the store after its job, before it was read."""


def read(store: Store, blob: Blob) -> bytes:
    """Return the content of a blob for a response.

    Raises:
        EvictedError: the blob is gone.
    """
    data = store.read(blob)
    if data is None:
        raise EvictedError(
            "the result was evicted from the store before it was read. Remedy: send the request again, or raise the "
            "bound"
        )
    return data


def described_size(described: Mapping[str, DescribeResult]) -> int:
    """Return the size of the documents of described components."""
    return sum(
        item.descriptor.size + (item.programs.size if item.programs else 0) + sum(map(len, item.refused.values()))
        for item in described.values()
    )


def described_component(name: str, described: DescribeResult, store: Store) -> build_pb2.DescribedComponent:
    """Return the message of a described component.

    Raises:
        EvictedError: a document is gone.
    """
    return build_pb2.DescribedComponent(
        name=name,
        descriptor_json=read(store, described.descriptor),
        programs_json=b"" if described.programs is None else read(store, described.programs),
        refused=described.refused,
    )


def recorded_size(recorded: ProgramRecord) -> int:
    """Return the size of the documents of a recorded module."""
    return recorded.programs.size + (recorded.descriptor.size if recorded.descriptor else 0)


def recorded_program(recorded: ProgramRecord, store: Store) -> program_pb2.RecordProgramResponse:
    """Return the message of a recorded module.

    Raises:
        EvictedError: a document is gone.
    """
    return program_pb2.RecordProgramResponse(
        programs_json=read(store, recorded.programs),
        source_descriptor_json=b"" if recorded.descriptor is None else read(store, recorded.descriptor),
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
        checkpoint_digest=built.checkpoint_digest,
        notice=built.notice,
        warnings=built.warnings,
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
