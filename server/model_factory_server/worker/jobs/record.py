"""Record the program of a module for a trainer's call, or send the module's source code instead."""

from __future__ import annotations

from torch import nn

from model_factory.describe.describe import describe
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor, encode_programs
from model_factory.errors import NotPortableError, OutdatedBuildError
from model_factory.program.example_call import ExampleCall, decode_call
from model_factory.program.runtime.lookup import get_module, join_path
from model_factory.store import Blob
from model_factory_server.export.trainer_call import record_programs
from model_factory_server.worker.jobs.source_at_call import SourceOfBlock, source_of_block
from model_factory_server.worker.jobs.workspace import Workspace, cast, source_classes_of
from model_factory_server.worker.outputs import RecordOutput
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import RecordTask


def record_module(task: RecordTask, workspace: Workspace) -> RecordOutput:
    """Record a module for a call, and put the program, or the source code of the module, into the store.

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
    put = workspace.store.put
    try:
        with workspace.hinting_at_source():
            programs = record_programs(model, task.path, call, dict(task.training))
    except NotPortableError as error:
        found = _as_source(task, workspace, model, call, error)
        if found is None:
            raise
        programs = tuple((join_path(task.path, path), program) for path, program in found.programs)
        return RecordOutput(
            programs=put(encode_programs(programs)),
            descriptor=put(encode_descriptor(found.descriptor)),
            source=put(found.sources.bundle, is_private=True),
        )
    return RecordOutput(programs=put(encode_programs(programs)))


def _as_source(
    task: RecordTask, workspace: Workspace, model: nn.Module, call: ExampleCall, error: NotPortableError
) -> SourceOfBlock | None:
    """Return the module of the task as source code; ``None`` if the operator or the call does not allow source.

    Raises:
        NotPortableError: the module cannot be sent as source code either.
    """
    if not workspace.shared_roots:
        return None
    refusal = error.__cause__ if isinstance(error.__cause__, NotPortableError) else error  # without the hint
    return source_of_block(get_module(model, task.path), call, refusal, workspace.shared_roots)


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
