"""The imports of the fork server, and a check of the process before forks.

Importing torch and its tracing takes seconds. Every worker is forked from a process with these imports done.

A fork copies one thread only, and a GPU driver does not work in a fork of a process with an initialised driver. So
this module runs no model, no backward pass and no fake tensor: on torch's CUDA build a fake tensor asks the driver for
GPUs, and a later backward pass starts a thread per device.
"""

from __future__ import annotations

import gc
import os
from multiprocessing.connection import Connection
from pathlib import Path

# Modules that torch imports late, at the first recording of a process.
import sympy.tensor.tensor  # noqa: F401
import torch
import torch.fx.experimental.validator
from torch import nn

from model_factory.environment import only_variables
from model_factory_server.constructor import default_registry
from model_factory_server.export.torch_private import FakeTensorMode
from model_factory_server.worker import main
from model_factory_server.worker.sandbox import NO_GPUS
from model_factory_server.worker.task import Job

_GPU_FILES = "/dev/nvidia"


def forking_faults() -> list[str]:
    """Return every reason why forks of this process would not work; empty without a reason.

    Checks the threads, CUDA, and a backward pass in a fork.
    """
    faults = []
    threads = [Path(task, "comm").read_text(encoding="utf-8").strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        faults.append(f"it has {len(threads)} threads ({', '.join(sorted(threads))})")
    initialised: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if initialised or any(file.startswith(_GPU_FILES) for file in _open_files()):
        faults.append("it has initialised CUDA")
    if not _fork_runs_backward():
        faults.append("a backward pass fails in a fork of it")
    return faults


def run_job(connection: Connection) -> None:
    """Receive a job from the server and do the job, in a fork of this process.

    See :func:`model_factory_server.worker.main.main`.
    """
    job: Job = connection.recv()
    main.main(job, connection, FAULTS)


def _open_files() -> list[str]:
    return [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]


def _fork_runs_backward() -> bool:
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            with only_variables(lambda _name: True, NO_GPUS):  # the driver would take a second for each GPU
                with FakeTensorMode():  # as a recording does
                    torch.ones(1)
                torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _initialise_torch() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.device("meta"):
        nn.TransformerEncoderLayer(4, 2, 4)
    default_registry()
    torch.set_num_threads(threads)


_initialise_torch()
FAULTS = forking_faults()
"""Reasons why this process must not be forked; with a reason, workers refuse their jobs."""

gc.collect()
gc.freeze()  # otherwise the first collection of every worker writes to all objects here, and so copies their memory
