"""The server of metrics: connections that hold it instead of using it."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from model_factory_server.observe import metrics_server
from model_factory_server.observe.metrics_server import MetricsServer


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("seen", "Things seen.", registry=registry).inc(3)
    return registry


@pytest.fixture
def server(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsServer]:
    monkeypatch.setattr(metrics_server, "CONNECTION_SECONDS", 0.4)
    server = MetricsServer.start("127.0.0.1", 0, registry)
    yield server
    server.stop()


def connect(server: MetricsServer, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=20, source_address=(source, 0))


def page(server: MetricsServer, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def test_the_page(server: MetricsServer) -> None:
    assert "seen_total 3.0" in page(server)
    assert "seen_total 3.0" in page(server, "/metrics?name[]=other")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page(server, "/other")


@pytest.mark.parametrize("what", [b"", b"GET /metrics HTTP/1.1\r\n", b"GET /metr"], ids=["silent", "head", "line"])
def test_connections_that_say_nothing_end(server: MetricsServer, what: bytes) -> None:
    started = time.monotonic()
    with connect(server) as client:
        client.sendall(what)
        assert client.recv(100) == b""
    assert time.monotonic() - started < 10


def test_endless_headers_end(server: MetricsServer) -> None:
    """A byte now and then keeps no connection open."""
    with connect(server) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011, PT012  reset, broken pipe: whichever end is first
            while time.monotonic() - started < 20:
                client.sendall(b"X: y\r\n")
                time.sleep(0.05)
        assert time.monotonic() - started < 10


def test_connections_have_a_bound(server: MetricsServer) -> None:
    """Two hundred of one address: another address is served."""
    before = threading.active_count()
    strangers = [connect(server, "127.0.0.2") for _ in range(200)]
    try:
        assert "seen_total" in page(server)
        assert threading.active_count() - before <= 2 * metrics_server.MAX_CONNECTIONS
    finally:
        for client in strangers:
            client.close()
    deadline = time.monotonic() + 10
    while server._connections.total and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server._connections._counts == {}


def test_a_flood_of_scrapes_renders_few_pages(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    render = metrics_server.generate_latest

    def counted(registry: CollectorRegistry) -> bytes:
        rendered.append(time.monotonic())
        return render(registry)

    monkeypatch.setattr(metrics_server, "generate_latest", counted)
    started = time.monotonic()
    threads = [threading.Thread(target=page, args=(server,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 0 < len(rendered) <= (time.monotonic() - started) / 0.1 + 2
