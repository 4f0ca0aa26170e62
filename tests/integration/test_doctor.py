"""``model-factory doctor`` and ``health`` against good and bad deployments."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from model_factory.cli.doctor import CHECKS
from model_factory.cli.main import main
from model_factory.v1 import capabilities_pb2, service_pb2_grpc
from support.server import ServerProcess

Examine = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examine:
    """Run the doctor; return its exit status and its findings by check."""
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path / "cache"))

    def run(address: str) -> tuple[int, dict[str, dict[str, Any]]]:
        capsys.readouterr()
        status = main(["doctor", "--server", address, "--timeout", "3", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert report["server"] == address
        assert report["ok"] == (status == 0)
        assert [item["check"] for item in report["checks"]] == [check.name for check in CHECKS]
        for item in report["checks"]:
            assert bool(item["remedy"]) == (item["outcome"] == "FAIL"), item
        return status, {item["check"]: item for item in report["checks"]}

    return run


def outcomes(found: dict[str, dict[str, Any]], outcome: str) -> list[str]:
    return [name for name, item in found.items() if item["outcome"] == outcome]


def test_a_good_deployment(server: ServerProcess, examine: Examine, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = examine(server.address)
    assert status == 0, found
    assert outcomes(found, "OK") == [check.name for check in CHECKS]
    assert "16 MiB" in found["throughput"]["said"]
    assert "forward and backward are right" in found["build"]["said"]
    assert main(["doctor", "--server", server.address]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["OK"] * len(CHECKS)
    assert main(["health", "--server", server.address]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_nobody_at_the_port(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    status, found = examine(address)
    assert status == 1
    assert outcomes(found, "FAIL") == ["port"]
    assert outcomes(found, "OK") == ["name", "cache"]
    assert "refused" in found["port"]["said"]
    assert "start the server" in found["port"]["remedy"]
    assert found["build"]["said"] == "needs capabilities"


@pytest.mark.parametrize(("address", "said"), [("no-such-host.invalid:1", "no address"), ("host", "not HOST:PORT")])
def test_a_name_that_is_none(address: str, said: str, examine: Examine) -> None:
    status, found = examine(address)
    assert status == 1
    assert outcomes(found, "FAIL") == ["name"]
    assert said in found["name"]["said"]


def test_something_else_at_the_port(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        status, found = examine(f"127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
    assert status == 1
    assert outcomes(found, "FAIL") == ["health"]
    assert outcomes(found, "OK") == ["name", "port", "cache"]


class _OfAnotherTime(service_pb2_grpc.ModelFactoryServiceServicer):
    def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return capabilities_pb2.GetCapabilitiesResponse(server_version="99.0", format_version=99)


@contextmanager
def other_server(status: int) -> Iterator[str]:
    """A gRPC server with the health service and capabilities of another version."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    health = HealthServicer()
    health.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    service_pb2_grpc.add_ModelFactoryServiceServicer_to_server(_OfAnotherTime(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_server_that_starts_or_stops(examine: Examine, capsys: pytest.CaptureFixture[str]) -> None:
    with other_server(health_pb2.HealthCheckResponse.NOT_SERVING) as address:
        status, found = examine(address)
        assert main(["health", "--server", address]) == 1
        assert capsys.readouterr().out == "NOT_SERVING\n"
    assert status == 1
    assert outcomes(found, "FAIL") == ["health"]
    assert found["health"]["said"] == "the server says NOT_SERVING"


def test_a_server_of_another_version(examine: Examine) -> None:
    with other_server(health_pb2.HealthCheckResponse.SERVING) as address:
        status, found = examine(address)
    assert status == 1
    assert outcomes(found, "FAIL") == ["capabilities"]
    assert "format 99" in found["capabilities"]["said"]
    assert "same version" in found["capabilities"]["remedy"]
    assert outcomes(found, "skipped") == ["build", "throughput"]


def test_a_cache_that_cannot_be_used(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path / "file"))
    status, found = examine("no-such-host.invalid:1")
    assert status == 1
    assert outcomes(found, "FAIL") == ["name", "cache"]
    assert "MODEL_FACTORY_CACHE" in found["cache"]["remedy"]
