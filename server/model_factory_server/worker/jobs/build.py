"""Build a component: construct, record unless the architecture is known, write the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from model_factory.config import ResolvedConfig
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor
from model_factory.descriptor.tree import Descriptor
from model_factory.errors import ServerError
from model_factory_server.worker.construction import ModelSize, check_size, size_of
from model_factory_server.worker.jobs.workspace import WORKER_FAILED, Workspace, cast, source_classes_of
from model_factory_server.worker.messages import BlobsEvicted
from model_factory_server.worker.outputs import BuildOutput
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import ArchitectureBlobs, BuildTask
from model_factory_server.worker.weights_placement import Placement, WeightsFile


@dataclass(frozen=True, slots=True, kw_only=True)
class _KnownArchitecture:
    """The documents of an earlier build."""

    blobs: ArchitectureBlobs
    descriptor: Descriptor
    placement: Placement | None


def build_component(task: BuildTask, workspace: Workspace) -> BuildOutput:
    """Build a component, and put its documents and weights into the store.

    Raises:
        ModelFactoryError: the component cannot be built.
    """
    store, config = workspace.store, workspace.read_config(task.config)
    known = _read_known(task, workspace)
    placement = _plan_placement(task, workspace, config) if known is None else known.placement
    with store.stage() as (file, publish):
        weights_file = WeightsFile(file, placement)
        with _separating_errors():
            model = weights_file.construct(
                lambda: workspace.construct(config, task.seed, task.dtype, workspace.job.device_kind)
            )
            if known is None:
                descriptor, architecture = _record(task, workspace, config, model, placement)
            else:
                descriptor, architecture = _describe_known(task, workspace, model, known)
        evicted = store.make_room(size_of(model, task.dtype).weights_bytes, weights_file.reserved)
        workspace.send(BlobsEvicted(sum(entry.size for entry in evicted)))
        weights = weights_file.write(named_tensors(model, descriptor))
        publish(weights)
    return BuildOutput(architecture=architecture, weights=weights, notice=workspace.notice)


def _read_known(task: BuildTask, workspace: Workspace) -> _KnownArchitecture | None:
    """Read the documents of an earlier build; ``None`` without an earlier build, or if its descriptor was evicted.

    Raises:
        LimitError: the model is too large.
    """
    if task.known is None or (data := workspace.store.read(task.known.descriptor)) is None:
        return None
    descriptor = decode_descriptor(data)
    check_size(workspace.job.limits, ModelSize(Architecture(descriptor).bytes, len(descriptor.modules)))
    placement = None if task.known.placement is None else workspace.store.read(task.known.placement)
    return _KnownArchitecture(
        blobs=task.known,
        descriptor=descriptor,
        placement=None if placement is None else Placement.decode(placement),
    )


def _plan_placement(task: BuildTask, workspace: Workspace, config: ResolvedConfig) -> Placement | None:
    # A cast and a move to a device make new tensors, outside of the file.
    placed = workspace.job.device_kind == "cpu" and not task.dtype
    plan = workspace.plan(config, task.seed, task.dtype, placed=placed)
    return None if plan is None else plan.placement


def _record(
    task: BuildTask, workspace: Workspace, config: ResolvedConfig, model: nn.Module, placement: Placement | None
) -> tuple[Descriptor, ArchitectureBlobs]:
    """Record a model, and cast the model afterwards."""
    workspace.enter(Stage.RECORDING)
    with workspace.hinting_at_source():
        exported = workspace.export(model, config, task.dtype)
    workspace.enter(Stage.WRITING)
    return exported.descriptor, workspace.put_documents(exported, placement)


def _describe_known(
    task: BuildTask, workspace: Workspace, model: nn.Module, known: _KnownArchitecture
) -> tuple[Descriptor, ArchitectureBlobs]:
    """Describe a model whose programs are known; attributes may depend on the seed, hence a new descriptor."""
    classes = source_classes_of(model, known.descriptor)
    cast(model, task.dtype)
    workspace.enter(Stage.WRITING)
    descriptor = describe(model, classes, known.descriptor.bundle)
    blob = workspace.store.put(encode_descriptor(descriptor))
    return descriptor, replace(known.blobs, descriptor=blob)


@contextmanager
def _separating_errors() -> Iterator[None]:
    """Turn an ``OSError`` of the operator's code into a ``ServerError``: the store's own errors look the same."""
    try:
        yield
    except OSError as error:
        raise ServerError(WORKER_FAILED.format(type(error).__name__)) from error
