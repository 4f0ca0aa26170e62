"""HTTP proxies: off by default, used where the trainer turns them on, and named in errors without credentials."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from model_factory import ModelFactoryError, RemoteModelFactory, UnavailableError
from model_factory.cli.main import main
from support.server import ServerProcess

TINY = {
    "schema_version": 1,
    "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 3, "out_features": 2}]}},
}
NAMES = ["grpc_proxy", "https_proxy", "http_proxy"]
NOBODY = "127.0.0.1:9"

Make = Callable[..., RemoteModelFactory]


@pytest.mark.parametrize("name", [*NAMES, "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"])
def test_a_proxy_that_is_not_there_stops_no_build(
    name: str, make_remote: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"http://{NOBODY}")
    assert make_remote().build({"config": TINY})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_a_proxy_that_is_turned_on_is_named(
    name: str, word: str, make_remote: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_FACTORY_USE_PROXY", word)
    monkeypatch.setenv(name, f"http://somebody:s3cret@{NOBODY}/path?s3cret")
    factory = make_remote()
    with pytest.raises(UnavailableError) as caught:
        factory.build({"config": TINY})
    assert f"(through {NOBODY}, the proxy of {name})" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "somebody" not in str(caught.value)


def test_exceptions_are_named(make_remote: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_FACTORY_USE_PROXY", "1")
    monkeypatch.setenv("http_proxy", f"http://{NOBODY}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert make_remote().build({"config": TINY}), "gRPC honours no_proxy"
    with pytest.raises(UnavailableError, match=r"unless no_proxy lists the server\)"):
        make_remote(address="127.0.0.1:1").blocks()


def test_a_proxy_that_is_not_used_is_named_where_nobody_answers(
    make_remote: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://somebody:s3cret@gateway:3128")
    with pytest.raises(UnavailableError) as caught:
        make_remote(address="127.0.0.1:1").blocks()
    note = "(not through gateway:3128, the proxy of https_proxy; MODEL_FACTORY_USE_PROXY=1 connects through the proxy)"
    assert note in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["somebody:s3cret@gateway:3128", "s3cret", "http://s3cret:[x", "http://h:s3cret"])
def test_what_is_no_url_is_not_shown(url: str, make_remote: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", url)
    with pytest.raises(UnavailableError, match=r"not through a text that is not http://HOST:PORT") as caught:
        make_remote(address="127.0.0.1:1").blocks()
    assert "s3cret" not in str(caught.value)


def test_without_proxies_no_error_names_one(make_remote: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("grpc_proxy", "")  # the first variable that is set counts, even if empty
    monkeypatch.setenv("http_proxy", f"http://{NOBODY}")
    monkeypatch.setenv("MODEL_FACTORY_USE_PROXY", "1")
    assert make_remote().build({"config": TINY})
    with pytest.raises(UnavailableError) as caught:
        make_remote(address="127.0.0.1:1").blocks()
    assert "proxy" not in str(caught.value)


def test_the_variable_is_true_or_false(make_remote: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_FACTORY_USE_PROXY", "gateway:3128")
    with pytest.raises(ModelFactoryError, match="MODEL_FACTORY_USE_PROXY is true/false"):
        make_remote()


class _Tunnel:
    """An HTTP proxy that knows CONNECT and notes the targets."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._connect, args=(self._listener.accept()[0],), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        target = head.split()[1].decode()
        self.targets.append(target)
        host, _, port = target.rpartition(":")
        with client, socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            sender = threading.Thread(target=_pump, args=(client, server), daemon=True)
            sender.start()
            _pump(server, client)
            sender.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Send what one side sends to the other, until one of both has gone."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tunnel() -> Iterator[_Tunnel]:
    proxy = _Tunnel()
    yield proxy
    proxy.close()


def test_a_build_goes_through_a_proxy_that_is_turned_on(
    server: ServerProcess, tunnel: _Tunnel, make_remote: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{tunnel.address}")
    assert make_remote().build({"config": TINY})
    assert tunnel.targets == []
    monkeypatch.setenv("MODEL_FACTORY_USE_PROXY", "1")
    assert make_remote().build({"config": TINY})
    assert server.address in tunnel.targets


def test_the_doctor_leaves_name_and_port_to_a_proxy(
    server: ServerProcess,
    tunnel: _Tunnel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A node behind a proxy may neither resolve the server's name nor reach its port."""
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path))
    monkeypatch.setenv("MODEL_FACTORY_USE_PROXY", "1")
    monkeypatch.setenv("https_proxy", f"http://{tunnel.address}")
    assert main(["doctor", "--server", server.address, "--json"]) == 0
    found = {check["check"]: check["message"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert f"(through {tunnel.address}, the proxy of https_proxy)" in found["name"]
    assert f"(through {tunnel.address}, the proxy of https_proxy)" in found["port"]


def test_the_doctor_knows_addresses_without_a_host(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--server", f"unix:{tmp_path / 'nobody'}", "--timeout", "3", "--json"]) == 1
    found = {check["check"]: check["outcome"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert (found["name"], found["port"], found["health"]) == ("OK", "OK", "FAIL")
