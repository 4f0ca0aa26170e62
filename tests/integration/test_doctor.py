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
from support.server import ServerProcess, running_server
from support.strict import Strict

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


@pytest.mark.parametrize("command", ["doctor", "health"])
@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "soon"])
def test_a_timeout_is_a_number_of_seconds(command: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, f"--timeout={seconds}"])
    assert caught.value.code == 2
    assert f"'{seconds}' is not a number of seconds" in capsys.readouterr().err


def test_a_good_deployment(server: ServerProcess, examine: Examine, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = examine(server.address)
    assert status == 0, found
    assert outcomes(found, "OK") == [check.name for check in CHECKS]
    assert "16 MiB" in found["throughput"]["message"]
    assert "forward and backward of a recorded block are right" in found["build"]["message"]
    assert main(["doctor", "--server", server.address]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["OK"] * len(CHECKS)
    assert main(["health", "--server", server.address]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_a_closed_port(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    status, found = examine(address)
    assert status == 1
    assert outcomes(found, "FAIL") == ["port"]
    assert outcomes(found, "OK") == ["name", "cache"]
    assert "refused" in found["port"]["message"]
    assert "start the server" in found["port"]["remedy"]
    assert found["build"]["message"] == "needs capabilities"


@pytest.mark.parametrize(
    ("address", "said"), [("no-such-host.invalid:1", "no address"), ("host", "the port is missing")]
)
def test_an_invalid_address(address: str, said: str, examine: Examine) -> None:
    status, found = examine(address)
    assert status == 1
    assert outcomes(found, "FAIL") == ["name"]
    assert said in found["name"]["message"]


def test_another_program_at_the_port(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_connections() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=close_connections, daemon=True).start()
        status, found = examine(f"127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
    assert status == 1
    assert outcomes(found, "FAIL") == ["health"]
    assert outcomes(found, "OK") == ["name", "port", "cache"]


class _OtherVersion(service_pb2_grpc.ModelFactoryServiceServicer):
    def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return capabilities_pb2.GetCapabilitiesResponse(server_version="99.0", format_version=99)


@contextmanager
def other_server(status: int) -> Iterator[str]:
    """A gRPC server with the health service and capabilities of another version."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    health = HealthServicer()
    health.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    service_pb2_grpc.add_ModelFactoryServiceServicer_to_server(_OtherVersion(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_starting_or_stopping_server(examine: Examine, capsys: pytest.CaptureFixture[str]) -> None:
    with other_server(health_pb2.HealthCheckResponse.NOT_SERVING) as address:
        status, found = examine(address)
        assert main(["health", "--server", address]) == 1
        assert capsys.readouterr().out == "NOT_SERVING\n"
    assert status == 1
    assert outcomes(found, "FAIL") == ["health"]
    assert found["health"]["message"] == "the health status is NOT_SERVING"


def test_a_server_of_another_version(examine: Examine) -> None:
    with other_server(health_pb2.HealthCheckResponse.SERVING) as address:
        status, found = examine(address)
    assert status == 1
    assert outcomes(found, "FAIL") == ["capabilities"]
    assert "format 99" in found["capabilities"]["message"]
    assert "same version" in found["capabilities"]["remedy"]
    assert outcomes(found, "skipped") == ["build", "throughput"]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    made = Strict(tmp_path_factory.mktemp("strict"))
    with running_server(tmp_path_factory.mktemp("strict store") / "store", *made.arguments) as made.process:
        yield made


STRICT = ("CA_FILE", "CERT_FILE", "KEY_FILE", "TOKEN_FILE")


@pytest.mark.parametrize(
    ("changes", "failed", "said", "remedy"),
    [
        ({}, "", "", ""),
        ({"TOKEN_FILE": ""}, "capabilities", "requires a token", "MODEL_FACTORY_TOKEN_FILE"),
        ({"TOKEN_FILE": "unknown"}, "capabilities", "does not know the token", "ask the server's operator"),
        ({"TOKEN_FILE": "nowhere"}, "health", "cannot read nowhere", "that this user may read"),
        ({"CA_FILE": "nowhere"}, "health", "cannot read nowhere", "that this user may read"),
        ({"CA_FILE": "unknown authority"}, "health", "cannot be reached", "MODEL_FACTORY_CA_FILE"),
        ({"CERT_FILE": "", "KEY_FILE": ""}, "health", "cannot be reached", "MODEL_FACTORY_CERT_FILE"),
        (dict.fromkeys(STRICT, ""), "health", "cannot be reached", "agree on TLS"),
        ({"SERVER_NAME": "elsewhere"}, "health", "cannot be reached", "MODEL_FACTORY_SERVER_NAME"),
    ],
    ids=str,
)
def test_access(
    changes: dict[str, str],
    failed: str,
    said: str,
    remedy: str,
    strict: Strict,
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "unknown").write_text("another-token", encoding="utf-8")
    named = {"unknown": str(tmp_path / "unknown"), "unknown authority": str(strict.unknown_authority.file)}
    right = strict.credentials()
    for name in STRICT:
        monkeypatch.setenv(f"MODEL_FACTORY_{name}", str(getattr(right, name.lower())))
    for name, value in changes.items():
        if value:
            monkeypatch.setenv(f"MODEL_FACTORY_{name}", named.get(value, value))
        else:
            monkeypatch.delenv(f"MODEL_FACTORY_{name}")
    status, found = examine(strict.process.address)
    assert status == (1 if failed else 0), found
    assert outcomes(found, "FAIL") == ([failed] if failed else [])
    if failed:
        assert said in found[failed]["message"]
        assert remedy in found[failed]["remedy"]


def test_an_invalid_bound_of_the_cache(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_FACTORY_CACHE_GIB", "lots")
    _, found = examine("no-such-host.invalid:1")
    assert "a size in GiB" in found["cache"]["message"]
    assert "or unset the variable" in found["cache"]["remedy"]


def test_an_unusable_cache(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path / "file"))
    status, found = examine("no-such-host.invalid:1")
    assert status == 1
    assert outcomes(found, "FAIL") == ["name", "cache"]
    assert "MODEL_FACTORY_CACHE" in found["cache"]["remedy"]
