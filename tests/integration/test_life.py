"""Servers that are told to stop, and clients and servers of different versions."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attacks.test_builds_out_of_bounds import gone, in_progress, wait_for
from model_factory import RemoteModelFactory, ServerError
from model_factory.documents import FORMAT
from support.configs import layers
from support.guarded import PLUGINS
from support.server import COMMAND, ServerProcess, descendants, wait_gone

OTHER = FORMAT + 1


def test_draining_and_the_second_signal(
    start_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not serving from the first signal on; a build may go on until the second, which nothing outlives."""
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
    server = start_server(None, "--plugin", "hostile_blocks", "--drain-delay", "1.5", "--drain-timeout", "60")
    notes = tmp_path / "begun"
    call = in_progress(server.address, layers({"_type_": "hostile.Sleeps", "notes": str(notes)}))
    (worker,) = wait_for(notes)
    below = descendants(server.pid)
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        ask = health_pb2.HealthCheckRequest()
        assert health.Check(ask, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.5)
        assert health.Check(ask, timeout=10).status == health_pb2.HealthCheckResponse.NOT_SERVING
    time.sleep(1.5)
    assert not gone([worker], 0.0), "a build in progress was not let to its end"
    assert server.alive
    started = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    assert server._process.wait(20) == 0
    assert time.monotonic() - started < 10
    assert gone([worker], 1.0)
    assert wait_gone(below)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert "second signal to stop" in server.log
    assert "model_factory_server/" not in server.log, "a traceback of ours; gRPC writes one of its own"


@pytest.fixture
def other_version(tmp_path: Path) -> dict[str, str]:
    """Variables that make every process of this package one of a version whose documents have another format."""
    (tmp_path / "other").mkdir()
    text = f"import model_factory.documents\nmodel_factory.documents.FORMAT = {OTHER}\n"
    (tmp_path / "other" / "sitecustomize.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "other"), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "MODEL_FACTORY_CACHE": str(tmp_path / "other cache")}


@pytest.mark.slow
def test_a_newer_server_and_an_older_one_on_the_same_store(
    tmp_path: Path, start_server: Callable[..., ServerProcess], other_version: dict[str, str]
) -> None:
    """The client refuses before it asks for a build; no server takes the other's records for its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in other_version.items():
            patch.setenv(name, value)
        newer = start_server(tmp_path / "store")
    factory = RemoteModelFactory(newer.address, seed=1, cache_dir=tmp_path / "cache")
    with pytest.raises(ServerError, match=rf"uses format {OTHER}, this client format {FORMAT}\. Remedy: "):
        factory.build({"config": layers({"_type_": "nn.PReLU"})})
    done = build(newer.address, other_version)
    assert done.returncode == 0, done.stderr
    assert newer.stop() == 0
    older = start_server(tmp_path / "store")
    done = build(older.address, other_version)
    assert done.returncode == 1
    assert f"uses format {FORMAT}, this client format {OTHER}. Remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    done = build(older.address, {"MODEL_FACTORY_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert older.stop() == 0


def build(address: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    config = Path(__file__).parents[1] / "configs" / "small" / "mlp.yaml"
    command = [COMMAND, "build", config, "--server", address, "--seed", "3"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | variables)
