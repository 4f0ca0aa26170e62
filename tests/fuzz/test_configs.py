"""Hostile configs, seeded: a few in CI, more by ``make fuzz``."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import grpc
import pytest

from fuzz.configs import document
from fuzz.harness import SEED_STEP, assert_safe, child_environment
from model_factory.v1 import build_pb2, service_pb2_grpc
from property.amount import CASES, SECONDS, SEED
from support.server import ServerProcess, descendants

FEW = 20
BUILD_SECONDS = 30.0
OPTIONS = {
    "--build-timeout": str(BUILD_SECONDS),
    "--plan-timeout": "15",
    "--build-cpu-timeout": "15",
    "--max-memory-bytes": "2GiB",
    "--max-weights-bytes": "64MiB",
    "--max-store-bytes": "1GiB",
}
GUARDS = ("LD_PRELOAD", "MALLOC_CHECK_", "MALLOC_PERTURB_")
ANSWERS = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
MOST_GROWTH = 64 << 20
"""Bytes of the server and of the fork server that caches may take."""


def test_configs() -> None:
    assert_safe("fuzz.configs:case", 150, case_seconds=120)


def test_configs_on_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server, whose workers have guard pages: no crash, no hang, no process and no memory that stays."""
    for name, value in child_environment().items():
        monkeypatch.setenv(name, value)
    flags = [item for pair in OPTIONS.items() for item in pair]
    server = ServerProcess(
        tmp_path / "store", *flags, *(word for name in GUARDS for word in ("--worker-variable", name))
    )
    first, deadline = SEED * SEED_STEP, time.monotonic() + SECONDS if SECONDS else None
    faults = []
    try:
        before = memory_of(server)
        with grpc.insecure_channel(server.address) as channel:
            stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
            for number in itertools.count():
                if time.monotonic() > deadline if deadline else number >= (CASES or FEW):
                    break
                faults += [
                    f"seed {first + number}: {fault}" for fault in attempt(stub, server, document(first + number))
                ]
        after = memory_of(server)
    finally:
        status = server.stop()
    print(f"a server: {number} configs from seed {first}")  # noqa: T201
    assert not faults, "\n".join(faults)
    assert status == 0
    assert all(later < earlier + MOST_GROWTH for earlier, later in zip(before, after, strict=True)), (before, after)


def attempt(stub: service_pb2_grpc.ModelFactoryServiceStub, server: ServerProcess, wire: bytes) -> list[str]:
    """Build a config and return what is wrong."""
    component = build_pb2.Component(name="model", config_json=wire)
    started = time.monotonic()
    try:
        for _ in stub.BuildModels(build_pb2.BuildModelsRequest(components=[component]), timeout=3 * BUILD_SECONDS):
            pass
        code, details = "OK", ""
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
    faults = [] if code in ANSWERS and "was ended by" not in details else [f"{code}: {details}"]
    if time.monotonic() - started > BUILD_SECONDS + 15:
        faults.append(f"took {time.monotonic() - started:.0f} seconds")
    if server.workers():
        faults.append("a worker outlives the build")
    return [f"{fault} for {wire.decode(errors='backslashreplace')}" for fault in faults]


def memory_of(server: ServerProcess) -> list[int]:
    """Resident private memory of the server and of the fork server, in bytes."""
    processes = [server.pid, *(child for child, _ in descendants(server.pid))]
    found = [Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").split() for process in processes]
    return [1024 * int(words[words.index("Private_Dirty:") + 1]) for words in found]
