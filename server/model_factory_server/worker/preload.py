"""What the fork server imports, once for all workers, and a check that it can be forked.

Importing torch and its tracing takes seconds; every worker is forked from a process that has the imports behind it.

A fork copies one thread only, and the driver of a GPU works in no copy of a process that has initialised it. So nothing
here runs a model, a backward pass or a fake tensor: on torch's CUDA build a fake tensor asks the driver for GPUs, and a
backward pass after it starts a thread per device.
"""

from __future__ import annotations

import gc
import os
from multiprocessing.connection import Connection
from pathlib import Path

# What the first recording of a process imports late.
import sympy.tensor.tensor  # noqa: F401
import torch
import torch.fx.experimental.validator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

# multiprocessing imports what the server's main script does in each worker.
import model_factory.cli.main  # noqa: F401
from model_factory.environment import only_variables
from model_factory_server.constructor import default_registry
from model_factory_server.worker import main
from model_factory_server.worker.sandbox import NO_GPUS
from model_factory_server.worker.task import Job

_GPU_FILES = "/dev/nvidia"


def forking_faults() -> list[str]:
    """Name everything that makes copies of this process unusable; an empty list if nothing does.

    Checked are threads, CUDA, and whether a backward pass works in a fork.
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


def work(job: Job, sender: Connection) -> None:
    """Do a job in a fork of this process; see :func:`model_factory_server.worker.main.main`."""
    main.main(job, sender, FAULTS)


def _open_files() -> list[str]:
    return [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]


def _fork_runs_backward() -> bool:
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            with only_variables(lambda _name: True, NO_GPUS):  # the driver would need a second for each GPU
                with FakeTensorMode():  # what a recording runs under
                    torch.ones(1)
                torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _prepare() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.device("meta"):
        nn.TransformerEncoderLayer(4, 2, 4)
    default_registry()
    torch.set_num_threads(threads)


_prepare()
FAULTS = forking_faults()
"""Why this process must not be forked; workers refuse to start where the list is not empty."""

gc.collect()
gc.freeze()  # or the first collection of every worker would write to, and so copy, all that is here
