"""The process that workers are forked from: one thread, no device, and a server that serves only if builds run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.server import COMMAND, ServerProcess

Start = Callable[..., ServerProcess]

ASKS_FOR_GPUS = """
import json, os, torch
own, asked = os.getpid(), []
def is_available():
    asked.append(os.getpid())
    return False
torch.cuda.is_available = is_available
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    assert asked, "this torch does not ask for GPUs here: find out where it does now"
asked.clear()
from model_factory_server.worker import preload
print(json.dumps([asked, len(os.listdir("/proc/self/task")), torch.cuda.is_initialized(), preload.FAULTS]))
"""

STARTS_A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    variables = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout


def test_imports_start_no_thread_and_touch_no_device() -> None:
    asked, threads, initialised, faults = json.loads(python(ASKS_FOR_GPUS))
    assert asked == [], "asking for GPUs initialises the driver, which then works in no fork"
    assert (threads, initialised, faults) == (1, False, [])


def test_a_thread_is_a_fault() -> None:
    said = python(STARTS_A_THREAD + "from model_factory_server.worker import preload; print(preload.FAULTS)")
    assert said.startswith("['it has 2 threads (")


def test_a_backward_pass_that_fails_in_forks_is_a_fault() -> None:
    """Autograd as it is after a backward pass with devices: on a CPU build, a stand-in that refuses in every fork."""
    code = """
import os, torch
from model_factory_server.worker import preload
def refuse(*_args, **_kwargs):
    raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing")
torch.Tensor.backward = refuse
print(preload.forking_faults())
"""
    assert python(code).strip() == "['a backward pass fails in a fork of it']"


@pytest.mark.skipif(torch.version.cuda is None, reason="needs torch's CUDA build")
def test_a_backward_pass_after_fake_tensors_is_a_fault_with_the_cuda_build() -> None:
    code = """
import torch
from model_factory_server.worker import preload
with preload.FakeTensorMode():
    torch.ones(1)
torch.ones(1, requires_grad=True).sum().backward()
print(preload.forking_faults())
"""
    said = python(code)
    assert "threads" in said
    assert "a backward pass fails in a fork of it" in said


def test_a_server_that_cannot_fork_does_not_serve(
    start_server: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STARTS_A_THREAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [COMMAND, "serve", "--listen", "127.0.0.1:0", "--store", tmp_path / "store"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "listening" not in ended.stdout
    assert "the fork server cannot be forked safely: it has 2 threads" in ended.stderr
    assert "sitecustomize" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_start_records_and_verifies_a_block(start_server: Start, tmp_path: Path) -> None:
    """Also on a store that has the block: SERVING says that builds work now."""
    for _ in range(2):
        server = start_server(None, "--metrics-listen", "127.0.0.1:0", "--log-level", "info")
        recorded = 'model_factory_stage_seconds_count{kind="warm_up",stage="recording"} 1.0'
        assert recorded in server.metrics_page()
        assert server.stop() == 0
