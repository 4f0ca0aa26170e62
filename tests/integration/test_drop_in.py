"""Factories without arguments: one changed import line in a trainer, and everything else from the environment."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from model_factory import RemoteModelFactory, ServerError, SourceError, UnavailableError
from model_factory.cli.main import main
from model_factory.factories import ModelFactory, PolicyConstructorModelFactory
from support.base_install import make_site
from support.compare import assert_same_state
from support.configs import layers
from support.server import ServerProcess

TINY = layers({"_type_": "nn.Linear", "in_features": 3, "out_features": 2})


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODEL_FACTORY_SERVER", raising=False)
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("nothing_set")
def test_the_variable_decides_where_models_are_built(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("model_factory_server")  # the environment of the oldest client has no server package
    local = PolicyConstructorModelFactory(seed=7)
    monkeypatch.setenv("MODEL_FACTORY_SERVER", server.address)
    remote = PolicyConstructorModelFactory(seed=7)
    assert isinstance(local, ModelFactory)
    assert isinstance(remote, ModelFactory)
    models = [factory.build({"policy": TINY})["policy"] for factory in (local, remote)]
    assert_same_state(*models)
    assert models[0].build_info.programs is None
    assert models[0].build_info.weights == models[1].build_info.weights
    assert (tmp_path / "cache" / "blobs" / models[1].build_info.weights[:2]).is_dir()
    assert repr(remote).startswith(f"PolicyConstructorModelFactory(RemoteModelFactory('{server.address}', seed=7")
    assert repr(local).startswith("PolicyConstructorModelFactory(PolicyConstructorModelFactory(backend='builtin'")
    remote.wait(timeout=10)
    local.wait(timeout=0.1)


@pytest.mark.usefixtures("nothing_set")
def test_an_environment_without_anything_says_what_to_set(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from model_factory.factories import PolicyConstructorModelFactory\n"
        "try: PolicyConstructorModelFactory()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-S", "-c", code, str(site)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ServerError MODEL_FACTORY_SERVER is not set, and this environment cannot build")
    assert "Remedy: set MODEL_FACTORY_SERVER to the HOST:PORT of a model-factory server, or pip install" in done.stdout


@pytest.mark.usefixtures("nothing_set")
def test_a_remote_factory_without_an_address(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for empty in (None, " "):
        if empty is not None:
            monkeypatch.setenv("MODEL_FACTORY_SERVER", empty)
        with pytest.raises(ServerError, match=r"no server is given\. Remedy: set MODEL_FACTORY_SERVER to HOST:PORT"):
            RemoteModelFactory()
    monkeypatch.setenv("MODEL_FACTORY_SERVER", server.address)
    assert repr(RemoteModelFactory()) == f"RemoteModelFactory('{server.address}', seed=None, device='cpu')"


@pytest.mark.usefixtures("nothing_set")
def test_the_trusted_lock_file_may_come_from_the_environment(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_FACTORY_TRUST_SOURCE", "nowhere.lock")
    with pytest.raises(SourceError, match=r"the lock file nowhere\.lock cannot be read"):
        RemoteModelFactory(server.address)
    RemoteModelFactory(server.address, trust_source=False)  # an argument counts, not the variable


@contextmanager
def starting_server(health: HealthServicer | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    if health is not None:
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_waiting_ends_when_the_server_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    health = HealthServicer()
    health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with starting_server(health) as address:
        factory = RemoteModelFactory(address)
        with pytest.raises(UnavailableError, match=rf"waited 0.2 s: the health status of .*{address} is NOT_SERVING"):
            factory.wait(timeout=0.2)
        started = time.monotonic()
        timer = threading.Timer(1.0, health.set, ["", health_pb2.HealthCheckResponse.SERVING])
        timer.start()
        factory.wait(timeout=60)
        assert 1.0 <= time.monotonic() - started < 10
        timer.join()
        assert main(["health", "--wait", "5", "--server", address]) == 0
        assert capsys.readouterr().out == "SERVING\n"


def test_waiting_for_nobody_ends_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert main(["health", "--wait", "1", "--server", "127.0.0.1:1"]) == 1
    assert time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert said.startswith("error: waited 1 s: the model-factory server at 127.0.0.1:1 cannot be reached")
    assert "Remedy: check with `model-factory doctor --server 127.0.0.1:1`, or wait longer" in said


def test_waiting_does_not_hide_another_program_at_the_address() -> None:
    started = time.monotonic()
    with starting_server(None) as address:
        with pytest.raises(ServerError, match="is not a model-factory server of this version") as caught:
            RemoteModelFactory(address).wait(timeout=60)
        assert not isinstance(caught.value, UnavailableError)
    assert time.monotonic() - started < 10


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a process in the background
    timer = threading.Timer(1.0, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    try:
        assert main(["health", "--wait", "60", "--server", "127.0.0.1:1"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    timer.join()
    assert capsys.readouterr() == ("", "interrupted\n")
