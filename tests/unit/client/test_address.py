"""Addresses of servers: valid addresses pass, any other text is refused with a remedy."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from hypothesis import given
from hypothesis import strategies as st

from model_factory import ModelFactoryError, RemoteModelFactory
from model_factory.cli.main import main
from model_factory.client.address import parse_address
from model_factory.client.connection import Connection
from model_factory.errors import ServerError

ALLOWED = {
    "gpu-node:50051": [("gpu-node", 50051)],
    "model_server.svc.cluster.local:1": [("model_server.svc.cluster.local", 1)],
    "10.0.0.1:65535": [("10.0.0.1", 65535)],
    "bücher.example:50051": [("bücher.example", 50051)],
    "[::1]:50051": [("::1", 50051)],
    "[fe80::1%eth0]:50051": [("fe80::1%eth0", 50051)],
    "dns:gpu-node:50051": [("gpu-node", 50051)],
    "dns:///gpu-node:50051": [("gpu-node", 50051)],
    "dns:///[::1]:50051": [("::1", 50051)],
    "dns://8.8.8.8/gpu-node:50051": [("gpu-node", 50051)],
    "dns://8.8.8.8:53/gpu-node:50051": [("gpu-node", 50051)],
    "ipv4:10.0.0.1:50051,10.0.0.2:50052": [("10.0.0.1", 50051), ("10.0.0.2", 50052)],
    "ipv6:[::1]:50051": [("::1", 50051)],
    "unix:relative/socket": [],
    "unix:///run/socket": [],
    "unix-abstract:name": [],
    "vsock:2:50051": [],
    "xds:///service": [],
}

# The fault of an address, and the remedy.
REFUSED = {
    "": ("the address is empty", "HOST:PORT"),
    " ": ("the address is empty", "HOST:PORT"),
    "gpu-node": ("the port is missing", "gpu-node:50051"),
    "[::1]": ("the port is missing", "[::1]:50051"),
    "dns:///gpu-node": ("the port is missing", "gpu-node:50051"),
    "dns:50051": ("the port is missing", "50051:50051"),
    "gpu-node:": ("the port '' is not a number", "HOST:PORT"),
    "gpu-node:http": ("the port 'http' is not a number", "HOST:PORT"),
    "gpu-node:+1": ("the port '+1' is not a number", "HOST:PORT"),
    "gpu-node:\N{FULLWIDTH DIGIT FIVE}": ("the port '\N{FULLWIDTH DIGIT FIVE}' is not a number", "HOST:PORT"),
    "gpu-node:1/": ("the port '1/' is not a number", "HOST:PORT"),
    "gpu-node:99999": ("the port is '99999'; ports are 1 to 65535", "--listen"),
    "gpu-node:65536": ("the port is '65536'", "--listen"),
    "gpu-node:0": ("the port is '0'", "--listen"),
    "gpu-node:" + "9" * 5000: ("the port is '999", "--listen"),
    ":50051": ("the host is missing", "127.0.0.1:50051"),
    " gpu-node:1": ("the text begins or ends with white space", "Remedy: gpu-node:1"),
    "gpu-node:1\n": ("the text begins or ends with white space", "Remedy: gpu-node:1"),
    "gpu node:1": ("a host cannot contain ' '", "HOST:PORT"),
    "user@gpu-node:1": ("a host cannot contain '@'", "HOST:PORT"),
    "a:1,b:1": ("an IPv6 address needs brackets before the port", "[IPV6]:PORT"),
    "::1:50051": ("an IPv6 address needs brackets before the port", "Remedy: [::1]:50051"),
    "::1": ("an IPv6 address needs brackets before the port", "Remedy: [::1]:50051"),
    "2001:db8::7:50051": ("an IPv6 address needs brackets before the port", "Remedy: [2001:db8::7]:50051"),
    "[gpu-node]:50051": ("'gpu-node' in brackets is not an IPv6 address", "HOST:PORT"),
    "http://gpu-node:1": ("the text is a URL with the scheme 'http'", "Remedy: gpu-node:1"),
    "http://gpu-node": ("the text is a URL with the scheme 'http'", "Remedy: gpu-node:50051"),
    "https://gpu-node:1/path": (
        "the text is a URL with the scheme 'https'",
        "Remedy: gpu-node:1, with MODEL_FACTORY_TLS=1",
    ),
    "https://user:secret@gpu-node:1": ("the text is a URL with the scheme 'https'", "Remedy: gpu-node:1"),
    "grpc://": ("the text is a URL with the scheme 'grpc'", "Remedy: HOST:50051"),
    "grpc://gpu-node:1": ("the text is a URL with the scheme 'grpc'", "Remedy: gpu-node:1"),
    "http://": ("the text is a URL with the scheme 'http'", "Remedy: HOST:50051"),
    "unix:": ("the port '' is not a number", "unix:PATH"),
}


@pytest.mark.parametrize("address", ALLOWED)
def test_what_grpc_takes_is_an_address(address: str, tmp_path: Path) -> None:
    assert list(parse_address(address).hosts) == ALLOWED[address]
    RemoteModelFactory(address, cache_dir=tmp_path).close()


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(ServerError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize("address", REFUSED, ids=lambda text: repr(text)[:30])
def test_anything_else_is_named_with_its_remedy(address: str, tmp_path: Path) -> None:
    cause, remedy = REFUSED[address]
    message = refused(lambda: RemoteModelFactory(address, cache_dir=tmp_path / "cache"))
    assert repr(address)[:40] in message
    assert cause in message
    assert remedy in message
    assert "Remedy: " in message
    assert not (tmp_path / "cache").exists(), "an address is refused before a folder is made"
    assert refused(lambda: Connection(address)) == message


@pytest.mark.parametrize("address", [None, 50051, b"gpu-node:50051", ("gpu-node", 50051)])
def test_an_address_is_text(address: object) -> None:
    assert "the address of a server is a string" in refused(lambda: parse_address(address))  # type: ignore[arg-type]


@given(st.text(max_size=20) | st.text("a:0159[]/.@, ", max_size=12))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except ServerError:
        return
    assert all(host and 0 < port < 1 << 16 for host, port in address.hosts)
    if address.hosts and not text.startswith(("dns:", "ipv")):
        ((host, port),) = address.hosts
        assert text.rpartition(":")[0].strip("[]") == host
        assert int(text.rpartition(":")[2]) == port


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,10}[a-z0-9])?", fullmatch=True), st.integers(1, 65535))
def test_every_host_and_port_is_an_address(host: str, port: int) -> None:
    for prefix in ("", "dns:", "dns:///"):
        assert parse_address(f"{prefix}{host}:{port}").hosts == ((host, port),)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/run/s", True),
        ("dns:///localhost:1", True),
        ("gpu-node:1", False),
        ("10.0.0.1:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("xds:///s", False),
    ],
)
def test_what_leaves_the_machine(address: str, loopback: bool) -> None:
    assert parse_address(address).is_loopback is loopback


@pytest.mark.parametrize("command", ["build", "describe", "trust", "blocks", "health"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_commands_refuse_alike(
    command: str, by_variable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path))
    if by_variable:
        monkeypatch.setenv("MODEL_FACTORY_SERVER", "http://gpu-node:1")
    arguments = [command, *(["a.yaml"] if command in {"build", "describe", "trust"} else [])]
    assert main(arguments if by_variable else [*arguments, "--server", "http://gpu-node:1"]) == 1
    expected = refused(lambda: parse_address("http://gpu-node:1"))
    assert capsys.readouterr().err == f"error: {expected}\n"


@contextmanager
def health_server(*addresses: str) -> Iterator[list[int]]:
    """Run a health service at some addresses; yield the ports."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    health = HealthServicer()
    health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    ports = [server.add_insecure_port(address) for address in addresses]
    server.start()
    try:
        yield ports
    finally:
        server.stop(None).wait()


def test_every_form_of_an_address_reaches_a_server(tmp_path: Path) -> None:
    with health_server("127.0.0.1:0", f"unix:{tmp_path / 's'}") as (port, _):
        for address in (
            f"127.0.0.1:{port}",
            f"localhost:{port}",
            f"dns:localhost:{port}",
            f"dns:///localhost:{port}",
            f"ipv4:127.0.0.1:{port}",
            f"unix:{tmp_path / 's'}",
            f"unix://{tmp_path / 's'}",
        ):
            connection = Connection(address)
            assert connection.health(10.0) == "SERVING", address
            connection.close()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_ipv6_reaches_a_server() -> None:
    with health_server("[::1]:0") as (port,):
        for address in (f"[::1]:{port}", f"ipv6:[::1]:{port}", f"dns:///[::1]:{port}"):
            connection = Connection(address)
            assert connection.health(10.0) == "SERVING", address
            connection.close()


def test_a_wrong_address_is_an_error_of_this_package() -> None:
    with pytest.raises(ModelFactoryError):
        RemoteModelFactory("gpu-node")
