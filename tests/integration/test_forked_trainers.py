"""Processes that a trainer forks: where gRPC works they build and record, where gRPC would hang they raise at once.

Each case runs in a process of its own, since gRPC reads its variables once, and a fork depends on what came before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.server import ServerProcess

SETUP = """
import os, signal, sys, threading, time
import torch
from model_factory import RemoteModelFactory, ServerError

torch.set_num_threads(1)
address, cache = sys.argv[1:]
layers = [{"_type_": "mlp", "dims": [3, 4, 2]}]
CONFIG = {"config": {"schema_version": 1, "model": {"sequential": {"layers": layers}}}}

def make():
    return RemoteModelFactory(address, seed=1, cache_dir=cache, timeout=60)

def build(factory):
    return factory.build(CONFIG)(torch.ones(2, 3)).shape

def in_child(act):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(40)
        started = time.monotonic()
        try:
            act()
            said = "worked"
        except ServerError as error:
            assert "would hang" in str(error) and "Remedy: " in str(error), error
            said = "raised"
        print(said, flush=True)
        os._exit(time.monotonic() - started > 10)
    print("status", os.waitpid(pid, 0)[1])

factory = make()
"""

CASES = {
    "a factory made before the fork and never used": "in_child(lambda: build(factory)); build(factory)",
    "a fork before any use": "in_child(lambda: build(make())); in_child(lambda: build(make()))",
    "the parent's factory": "build(factory); in_child(lambda: build(factory)); build(factory)",
    "a factory of the child's": "build(factory); in_child(lambda: build(make())); build(factory)",
    "a closed connection": "build(factory); factory.close(); time.sleep(5); in_child(lambda: build(factory))",
    "the end of a factory in the child": "build(factory); in_child(factory.close); build(factory)",
    "a module that needs a program": (
        "model = factory.build(CONFIG); model(torch.ones(2, 3))\n"
        "in_child(lambda: model(torch.ones(2, 1, 1, 3))); model(torch.ones(1, 1, 2, 1, 3))"
    ),
    "a module that needs none": (
        "model = factory.build(CONFIG); model(torch.ones(2, 3)); in_child(lambda: model(torch.ones(2, 3)))"
    ),
    "a grandchild": "in_child(lambda: (build(factory), in_child(lambda: build(factory))))",
    "another user of gRPC": (
        "import grpc; channel = grpc.insecure_channel(address)\n"
        "channel.unary_unary('/grpc.health.v1.Health/Check', bytes, bytes)(b'', timeout=30)\n"
        "in_child(lambda: build(make()))"
    ),
    "a lock that another thread holds": (
        "build(factory); factory._connection._lock.acquire(); in_child(lambda: build(factory))"
    ),
}
NEEDS_NO_RPC = {"the end of a factory in the child", "a module that needs none"}
FORKS_BEFORE_USE = {"a factory made before the fork and never used", "a fork before any use", "a closed connection"}


def run(code: str, server: ServerProcess, cache: Path, fork_support: str | None) -> list[str]:
    environment = dict(os.environ) | ({} if fork_support is None else {"GRPC_ENABLE_FORK_SUPPORT": fork_support})
    command = [sys.executable, "-c", SETUP + code, server.address, str(cache)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fork_support", [None, "0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_forked_process_works_or_raises_at_once(
    case: str, fork_support: str | None, server: ServerProcess, tmp_path: Path
) -> None:
    said = run(CASES[case], server, tmp_path, fork_support)
    works = fork_support != "0" or case in NEEDS_NO_RPC | FORKS_BEFORE_USE
    if case == "a grandchild":
        assert said == ["worked" if works else "raised", "status 0", "worked", "status 0"]
    else:
        assert said[0] == ("worked" if works else "raised"), said
        assert set(said[1::2]) == {"status 0"}, said
        assert set(said[::2]) == {said[0]}, said


LOADER = """
from torch.utils.data import DataLoader, Dataset

class Encoded(Dataset):
    def __init__(self, model):
        self.model = model
    def __len__(self):
        return 4
    def __getitem__(self, index):
        with torch.no_grad():
            return self.model(torch.ones(*[1] * (index + 3), 3)).flatten()

if __name__ == "__main__":
    data = Encoded(factory.build(CONFIG))
    started = time.monotonic()
    try:
        print(sum(len(batch) for batch in DataLoader(data, 1, num_workers=2, multiprocessing_context="fork")))
    except ServerError as error:
        print("raised", "multiprocessing_context='forkserver'" in str(error), time.monotonic() - started < 30)
"""


@pytest.mark.parametrize(("fork_support", "expected"), [(None, "4"), ("0", "raised True True"), ("1", "4")])
def test_a_forward_in_a_forked_data_loader_worker(
    fork_support: str | None, expected: str, server: ServerProcess, tmp_path: Path
) -> None:
    """Each item is a call of another form, whose program the worker asks for."""
    assert run(LOADER, server, tmp_path, fork_support) == [expected]
