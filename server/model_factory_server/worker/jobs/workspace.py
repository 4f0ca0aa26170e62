"""The common part of all jobs: the backend, the store, and progress reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from model_factory.config import ResolvedConfig, parse_config
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import encode_descriptor, encode_programs
from model_factory.descriptor.tree import Descriptor, SourceClass, SourceNode
from model_factory.errors import NotPortableError, ServerError
from model_factory.program.runtime.lookup import get_module
from model_factory.program.torch_names import torch_dtype
from model_factory.store import Store
from model_factory_server.backends.checkpoint_catalogue import checkpoint_path
from model_factory_server.backends.code_files import operator_files, operator_roots, stamp_of_files
from model_factory_server.backends.loading import load_backend
from model_factory_server.export.exporter import ExportedModel, export_model
from model_factory_server.export.source.bundling import Root
from model_factory_server.worker.construction import (
    ModelPlan,
    check_size,
    construct,
    load_checkpoint,
    plan_model,
    size_of,
)
from model_factory_server.worker.jobs.caught_warnings import caught_warnings
from model_factory_server.worker.messages import FileStored, ModelWarned, SendMessage, StageEntered, WarningRaised
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import ArchitectureBlobs, Job, RecordTask
from model_factory_server.worker.weights_placement import Placement

WORKER_FAILED = "the worker process failed with {}; the server's log has the details"
"""Message for an error in the operator's code or in this package; takes the error's class."""

_NO_SOURCE = (
    "A block whose forward cannot be recorded can be sent as source code, if the operator allows source with "
    "--share-source and the trainer trusts the source (docs/portability.md)"
)
_SOURCE_REFUSED = (
    "This server shares source: a block is sent as source code if its class is at the top level of a file of the "
    "operator, and if no decision of the call has been recorded before (docs/portability.md)"
)


class Workspace:
    """The backend, the store and the progress reports of a job."""

    def __init__(self, job: Job, send: SendMessage) -> None:
        """Load the backend and open the store.

        Raises:
            ServerError: the operator's code has changed since the server started, or cannot be loaded.
            StoreError: the store cannot be used.
        """
        if stamp_of_files(operator_files(job.backend)) != job.code_stamp:
            raise ServerError("the code that this server builds with has changed since it started. Remedy: restart it")
        self.job = job
        self.send = send
        with self._sending_warnings(WarningRaised):  # of imports: equal for all jobs
            self.backend = load_backend(job.backend)
        self.store = Store(job.store, job.limits.max_store_bytes, setting="--store")
        self.store.on_growth = lambda size: send(FileStored(size))  # the server counts the files of all workers
        self.notice = ""
        """Missing and unexpected tensors of the last loaded checkpoint, in words; empty without any."""

    @property
    def shared_roots(self) -> tuple[Root, ...]:
        """Folders of code for trainers; empty unless the operator shares source."""
        return operator_roots(self.job.backend) if self.job.backend.share_source else ()

    def enter(self, stage: Stage) -> None:
        """Report a stage."""
        self.send(StageEntered(stage))

    def read_config(self, data: bytes) -> ResolvedConfig:
        """Parse the config of a task.

        Raises:
            ConfigError: the config names an unknown checkpoint.
        """
        config = parse_config(data)
        checkpoint_path(self.job.backend, config.model)
        return config

    def plan(self, config: ResolvedConfig, seed: int, dtype: str, *, placed: bool = False) -> ModelPlan | None:
        """Return the plan of a model within the operator's bounds; see ``plan_model``.

        Raises:
            LimitError: the model is too large, or planning took too long.
        """

        def construct_on(device_kind: str) -> nn.Module:
            with caught_warnings([]):  # the real construction repeats the warnings
                return construct(self.backend, config, seed, device_kind)

        plan = plan_model(self.job.limits, self.job.device_kind, construct_on, dtype, placed=placed)
        if plan is not None:
            check_size(self.job.limits, plan.size)
        return plan

    def construct(self, config: ResolvedConfig, seed: int, dtype: str, device_kind: str) -> nn.Module:
        """Construct a model within the operator's bounds, and load the checkpoint of the config.

        The model is not cast, ``dtype`` only decides about its size.

        Raises:
            ConfigError: the config names or passes something wrong.
            BuildError: a constructor fails.
            LimitError: the model is too large.
        """
        with self._sending_warnings(ModelWarned):
            model = construct(self.backend, config, seed, device_kind)
        check_size(self.job.limits, size_of(model, dtype))
        self.notice = load_checkpoint(model, config.model, checkpoint_path(self.job.backend, config.model))
        return model

    @contextmanager
    def _sending_warnings(self, kind: type[WarningRaised | ModelWarned]) -> Iterator[None]:
        """Send what the operator's code warns of; a job that repeats a construction for a recording sends nothing."""
        texts: list[str] = []
        try:
            with caught_warnings(texts):
                yield
        finally:
            for text in texts if not isinstance(self.job.task, RecordTask) else ():
                self.send(kind(text))

    @contextmanager
    def hinting_at_source(self) -> Iterator[None]:
        """Add to refusals how a block could be sent as source."""
        try:
            yield
        except NotPortableError as error:
            hint = _SOURCE_REFUSED if self.job.backend.share_source else _NO_SOURCE
            raise NotPortableError(f"{error}. {hint}") from error

    def export(
        self, model: nn.Module, config: ResolvedConfig, dtype: str, refused: dict[str, str] | None = None
    ) -> ExportedModel:
        """Export a model, and cast the model to ``dtype`` afterwards; ``refused`` collects refusals by path.

        Raises:
            NotPortableError: a module is not portable, and ``refused`` is ``None``.
        """
        exported = export_model(model, config.model, self.shared_roots, refused)
        if not dtype:
            return exported
        cast(model, dtype)  # descriptors name dtypes, so the cast model needs another descriptor
        return replace(exported, descriptor=describe(model, exported.classes, exported.bundle, refused=refused))

    def put_documents(self, exported: ExportedModel, placement: Placement | None = None) -> ArchitectureBlobs:
        """Put the documents of an exported model into the store.

        Raises:
            StoreError: the store cannot be written.
        """
        put = self.store.put
        return ArchitectureBlobs(
            descriptor=put(encode_descriptor(exported.descriptor)),
            programs=put(encode_programs(exported.programs)),
            source=None if exported.sources is None else put(exported.sources.bundle, is_private=True),
            placement=None if placement is None else put(placement.encode()),
        )


def cast(model: nn.Module, dtype: str) -> None:
    """Cast the floating tensors of a model; an empty ``dtype`` leaves the model unchanged.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> cast(model, "float64")
        >>> model.weight.dtype
        torch.float64
    """
    if dtype:
        model.to(dtype=torch_dtype(dtype))


def source_classes_of(model: nn.Module, descriptor: Descriptor) -> Mapping[nn.Module, SourceClass]:
    """Return the source modules of a model, by its descriptor, with their classes."""
    nodes = {path: descriptor.modules[index] for index, path in descriptor.paths().items()}
    return {get_module(model, path): node.source for path, node in nodes.items() if isinstance(node, SourceNode)}
