"""The worker process: does a job, and ends.

Each job has a process of its own, because seeding is process-wide, because a process can be limited and killed, and
because the effects of a config end with the process. Workers are forked from a process that has imported this module
and torch.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch

from model_factory.cli.output import PrintableStream
from model_factory.environment import keep_variables, use_temporary_folder
from model_factory.errors import BuildError, LimitError, LocatedError, ModelFactoryError, ServerError, plain_text
from model_factory.wording import printable_lines
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.worker import sandbox
from model_factory_server.worker.files.file_guard import GUARD
from model_factory_server.worker.jobs.build import build_component
from model_factory_server.worker.jobs.describe import describe_component
from model_factory_server.worker.jobs.list_blocks import list_blocks
from model_factory_server.worker.jobs.record import record_module
from model_factory_server.worker.jobs.workspace import WORKER_FAILED, Workspace
from model_factory_server.worker.messages import (
    ErrorLogged,
    JobDone,
    JobFailed,
    Message,
    SendMessage,
    StageEntered,
    WarningRaised,
    encode_message,
)
from model_factory_server.worker.outputs import Output
from model_factory_server.worker.stages import Stage
from model_factory_server.worker.task import BuildTask, DescribeTask, Job, ListTask, RecordTask

_LOG_CHARACTERS = 64 * 1024  # of one traceback
_NOT_FORKABLE = (
    "builds cannot run: the fork server cannot be forked safely: {}. Remedy: remove the code that starts threads or "
    "CUDA at the start of this Python or at the import of torch (a sitecustomize module, a .pth file, a profiler)"
)
_NETWORK_REACHABLE = (
    "this system gives builds no network namespace of their own: a build can reach the network. Remedy: allow "
    "unshare in the container's seccomp profile, or keep the server from the network (docs/operations.md#security)"
)


def main(job: Job, connection: Connection, forking_faults: Sequence[str]) -> None:
    """Do a job, and send messages about it; see :mod:`model_factory_server.worker.messages`.

    The last message is ``JobDone`` or ``JobFailed``. With ``forking_faults`` of the parent process, the job fails.
    """

    def send(message: Message) -> None:
        connection.send_bytes(encode_message(message))

    sys.stdout = sys.stderr = PrintableStream(2)  # a block, or a warning of torch, may quote a config
    if not _enter_sandbox(job):
        send(WarningRaised(_NETWORK_REACHABLE))
    if forking_faults:
        send(JobFailed(ServerError.__name__, _NOT_FORKABLE.format("; ".join(forking_faults))))
        return
    torch.set_num_threads(job.threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    try:
        GUARD.watch(job.backend, job.store)
        if job.temporary is not None:
            use_temporary_folder(job.temporary)
        output = _run(job, send)
        done = encode_message(JobDone(output.to_document(), GUARD.finish()))
    except Exception as raised:  # noqa: BLE001  whatever the operator's code raises is an error of the job
        error = _explained(raised)
        if _is_internal(error):
            send(ErrorLogged(printable_lines("".join(traceback.format_exception(error))[-_LOG_CHARACTERS:])))
        send(_failure(error))
    else:
        connection.send_bytes(done)
    finally:
        connection.close()


def _run(job: Job, send: SendMessage) -> Output:
    if not isinstance(job.task, ListTask):
        send(StageEntered(Stage.CONSTRUCTING))
    workspace = Workspace(job, send)
    match job.task:
        case BuildTask() as task:
            return build_component(task, workspace)
        case DescribeTask() as task:
            return describe_component(task, workspace)
        case RecordTask() as task:
            return record_module(task, workspace)
        case ListTask():
            return list_blocks(workspace)


def _enter_sandbox(job: Job) -> bool:
    """Limit this process and its children; return False if the network stays reachable against the settings.

    The kernel, or the seccomp profile of a container, may refuse a network namespace.
    """
    sandbox.adopt_orphans()
    sandbox.lead_own_group()
    keep_variables(job.isolation.allows_variable)
    sandbox.limit_resources(
        cpu_seconds=round(job.limits.build_cpu_timeout),
        file_bytes=job.limits.max_blob_bytes,
        open_files=job.isolation.max_open_files,
    )
    # CUDA reserves address space by the hundred GiB, so with CUDA only the operator's own limit applies.
    if job.limits.max_memory_bytes or job.device_kind == "cpu":
        sandbox.limit_memory(job.limits.max_memory_bytes or sandbox.node_memory())
    network = job.isolation.worker_network or job.backend.hub.allow_download
    restricted = sandbox.enter_namespaces(network=network)
    sandbox.drop_privileges()
    return network or restricted


def _explained(error: Exception) -> Exception:
    """Return the error of a job; a refused file is the cause where the operator's code raised another error instead."""
    refusal = GUARD.refusal()
    if refusal is None or refusal.reason in str(error):
        return error
    located = BuildError(refusal.reason, path=error.path if isinstance(error, LocatedError) else ())
    located.__cause__ = refusal.__cause__
    return located


def _is_internal(error: Exception) -> bool:
    """Whether the operator's code or this package failed: the traceback is then for the server's log alone."""
    if isinstance(error, ModelFactoryError):
        return type(error) in {BuildError, ServerError} and error.__cause__ is not None
    return not is_out_of_memory(error)


def _failure(error: Exception) -> JobFailed:
    """Return the message about an error: class, text, and place in the config."""
    if is_out_of_memory(error):
        return JobFailed(LimitError.__name__, f"the build needs more {_exceeded_memory(error)}")
    if isinstance(error, LocatedError):
        return JobFailed(type(error).__name__, plain_text(error.reason), tuple(error.path))
    if isinstance(error, ModelFactoryError):
        return JobFailed(type(error).__name__, plain_text(error))
    return JobFailed(ServerError.__name__, WORKER_FAILED.format(type(error).__name__))


def _exceeded_memory(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "memory than the GPU has free"
    return (
        f"than the {sandbox.allowed_memory()} bytes of memory that this server allows, including the memory that every "
        "worker starts with"
    )
