"""Describe a component without writing weights, on request with every refusal of a build."""

from __future__ import annotations

from torch import nn

from model_factory.config import ResolvedConfig
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import encode_descriptor
from model_factory.errors import LimitError
from model_factory.limits import MAX_DOCUMENT_BYTES
from model_factory_server.worker.construction import construct, plan_in_fork
from model_factory_server.worker.jobs.caught_warnings import caught_warnings
from model_factory_server.worker.jobs.workspace import Workspace, cast
from model_factory_server.worker.outputs import DescribeOutput
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import DescribeTask

_SEED = 0  # a description does not depend on the seed


def describe_component(task: DescribeTask, workspace: Workspace) -> DescribeOutput:
    """Describe a component; a model over a limit is described as refused where the task is about portability.

    Raises:
        ModelFactoryError: the component cannot be described.
    """
    config = workspace.read_config(task.config)
    refused: dict[str, str] = {}
    if task.portability:
        try:
            workspace.plan(config, _SEED, task.dtype)
            return _survey(task, workspace, config)
        except LimitError as error:
            refused[""] = str(error)
    data = _outline(task, workspace, config)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise LimitError(f"the descriptor takes {len(data)} bytes; at most {MAX_DOCUMENT_BYTES} are allowed")
    return DescribeOutput(descriptor=workspace.store.put(data), programs=None, source=None, refused=refused)


def _survey(task: DescribeTask, workspace: Workspace, config: ResolvedConfig) -> DescribeOutput:
    """Do the work of a build except for writing weights; note refusals instead of raising errors."""
    model = workspace.construct(config, _SEED, task.dtype, workspace.job.device_kind)
    workspace.enter(Stage.RECORDING)
    refused: dict[str, str] = {}
    documents = workspace.put_documents(workspace.export(model, config, task.dtype, refused))
    return DescribeOutput(
        descriptor=documents.descriptor, programs=documents.programs, source=documents.source, refused=refused
    )


def _outline(task: DescribeTask, workspace: Workspace, config: ResolvedConfig) -> bytes:
    """Return the descriptor of a model on the meta device, or of real tensors where a constructor needs them."""
    job = workspace.job

    def outline(device_kind: str) -> bytes:
        with caught_warnings([]):  # a build repeats the warnings
            model: nn.Module = construct(workspace.backend, config, _SEED, device_kind)
        cast(model, task.dtype)
        return encode_descriptor(describe(model, refused={} if job.backend.share_source else None))

    data = plan_in_fork(job.limits, job.device_kind, lambda: outline("meta"))
    return outline(job.device_kind) if data is None else data  # an error of the config is raised here, outside the fork
