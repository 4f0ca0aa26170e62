"""Record the program of a module for a trainer's call."""

from __future__ import annotations

from torch import nn

from model_factory.describe.describe import describe
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor, encode_programs
from model_factory.errors import OutdatedBuildError
from model_factory.program.example_call import decode_call
from model_factory.store import Blob
from model_factory_server.export.trainer_call import record_programs
from model_factory_server.worker.jobs.workspace import Workspace, cast, source_classes_of
from model_factory_server.worker.outputs import RecordOutput
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import RecordTask


def record_module(task: RecordTask, workspace: Workspace) -> RecordOutput:
    """Record a module for a call, and put the program into the store.

    Raises:
        OutdatedBuildError: the server constructs another model than the trainer's.
        ModelFactoryError: the call cannot be recorded.
    """
    call, config = decode_call(task.call), workspace.read_config(task.config)
    workspace.plan(config, task.seed, task.dtype)
    model = workspace.construct(config, task.seed, task.dtype, "cpu")
    cast(model, task.built.dtype)
    _check_descriptor(task, workspace, model)
    cast(model, task.dtype)  # the trainer can have cast the module since the build
    workspace.enter(Stage.RECORDING)
    programs = record_programs(model, task.path, call, dict(task.training))
    return RecordOutput(programs=workspace.store.put(encode_programs(programs)))


def _check_descriptor(task: RecordTask, workspace: Workspace, model: nn.Module) -> None:
    """Refuse a model with another descriptor than the trainer's.

    The server has compared code and files already, and the seed is the build's. The remaining cause is a constructor
    with another model each time: from random numbers of its own, from the time, from the environment.
    """
    data = workspace.store.read(task.descriptor)
    if data is None:  # evicted: a model with source classes is then refused
        descriptor = describe(model)
    else:
        known = decode_descriptor(data)
        descriptor = describe(model, source_classes_of(model, known), known.bundle)
    if Blob.of(encode_descriptor(descriptor)) != task.built.descriptor:
        raise OutdatedBuildError(
            "this server constructs another model than the trainer's: the same config, code and files give another "
            "descriptor. Remedy: build the model again; if the error comes back, a constructor of the model depends on "
            "the time, on the environment or on random numbers outside of torch"
        )
