"""A token without TLS reaches this machine only: no proxy, no other host; and an empty variable turns nothing off."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_factory import AccessError, Credentials, ModelFactoryError, RemoteModelFactory, UnavailableError
from model_factory.cli.main import main
from model_factory_server.access.tokens import token_line
from support.configs import layers
from support.listening_peer import ListeningPeer
from support.mounts import NAMESPACE, may_mount
from support.server import ServerProcess, running_server

MakeRemote = Callable[..., RemoteModelFactory]
TOKEN = "canary-token-Q7rW1xYv"
PRELU = {"config": layers({"_type_": "nn.PReLU"})}
EVERYTHING = "0.0.0.0/0,::/0,localhost"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN, encoding="utf-8")
    return path


@pytest.fixture
def peer() -> Iterator[ListeningPeer]:
    made = ListeningPeer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on loopback that requires tokens, without TLS."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "tokens").write_text(token_line("trainer", TOKEN, None), encoding="utf-8")
    with running_server(folder / "store", "--tokens", str(folder / "tokens")) as process:
        yield process


PROXIES: dict[str, Callable[[str], dict[str, str]]] = {
    "http_proxy": lambda address: {"MODEL_FACTORY_USE_PROXY": "1", "http_proxy": f"http://{address}"},
    "https_proxy": lambda address: {"MODEL_FACTORY_USE_PROXY": "1", "https_proxy": f"http://{address}"},
    "grpc_proxy": lambda address: {"MODEL_FACTORY_USE_PROXY": "1", "grpc_proxy": f"http://{address}"},
    "GRPC_ADDRESS_HTTP_PROXY": lambda address: {
        "GRPC_ADDRESS_HTTP_PROXY": address,
        "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": EVERYTHING,
    },
}


@pytest.mark.parametrize("variable", PROXIES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1", "dns:///localhost"])
def test_no_proxy_sees_a_token_without_tls(
    variable: str,
    host: str,
    guarded_server: ServerProcess,
    peer: ListeningPeer,
    token_file: Path,
    make_remote: MakeRemote,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The proxy of ``GRPC_ADDRESS_HTTP_PROXY`` was used even with proxies turned off."""
    for name, value in PROXIES[variable](peer.address).items():
        monkeypatch.setenv(name, value)
    address = guarded_server.address.replace("127.0.0.1", host)
    factory = make_remote(address, credentials=Credentials(token_file=token_file), timeout=30)
    assert factory.build(PRELU)
    assert peer.received == b""


def test_no_proxy_sees_a_token_where_plaintext_is_allowed(
    guarded_server: ServerProcess,
    peer: ListeningPeer,
    token_file: Path,
    make_remote: MakeRemote,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (PROXIES["http_proxy"](peer.address) | PROXIES["GRPC_ADDRESS_HTTP_PROXY"](peer.address)).items():
        monkeypatch.setenv(name, value)
    credentials = Credentials(token_file=token_file, allow_plaintext=True)
    assert make_remote(guarded_server.address, credentials=credentials, timeout=30).build(PRELU)
    with pytest.raises(UnavailableError, match="a token without TLS takes no proxy"):
        make_remote("127.0.0.1:1", credentials=credentials, timeout=5).blocks()
    assert peer.received == b""


def test_no_proxy_is_used_unless_turned_on(peer: ListeningPeer, server: ServerProcess, make_remote: MakeRemote,
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name, value in PROXIES["GRPC_ADDRESS_HTTP_PROXY"](peer.address).items():
        monkeypatch.setenv(name, value)
    assert make_remote(server.address, timeout=30).build(PRELU)
    assert peer.received == b""


def test_the_doctor_of_a_token_looks_for_no_proxy(
    guarded_server: ServerProcess,
    peer: ListeningPeer,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in PROXIES["http_proxy"](peer.address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODEL_FACTORY_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(token_file.parent / "cache"))
    assert main(["doctor", "--server", guarded_server.address, "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["ok"]
    assert TOKEN not in text
    assert peer.received == b""


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",  # noqa: S104  an address to connect to
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "LOCALHOST",
        "localhost.",
        "loca\u2113host",
        "dns:///127.0.0.1.evil.example",
        "dns://127.0.0.1/gpu-node",
        "ipv4:127.0.0.1:1,10.9.9.9",
        "xds:///127.0.0.1",
        "vsock:2",
    ],
)
def test_what_only_looks_like_this_machine_gets_no_token(
    host: str, peer: ListeningPeer, token_file: Path, make_remote: MakeRemote
) -> None:
    with pytest.raises(ModelFactoryError, match=r"not sent to|is not the address|cannot contain"):
        make_remote(f"{host}:{peer.port}", credentials=Credentials(token_file=token_file), timeout=5).blocks()
    assert peer.received == b""


LOCALHOST_ELSEWHERE = """
import sys
from model_factory import Credentials, ModelFactoryError, RemoteModelFactory
from support.listening_peer import ListeningPeer
peer = ListeningPeer("10.9.9.9")
for address in (f"localhost:{peer.port}", f"dns:///localhost:{peer.port}"):
    factory = RemoteModelFactory(
        address, cache_dir=sys.argv[1], timeout=4, credentials=Credentials(token_file=sys.argv[2])
    )
    try:
        factory.blocks()
    except ModelFactoryError as error:
        print(type(error).__name__)
print("token" if peer.has_token else "no token")
"""


@pytest.mark.skipif(not may_mount() or shutil.which("ip") is None, reason="needs a namespace with mounts, and ip")
def test_localhost_that_leads_elsewhere_gets_no_token(token_file: Path, tmp_path: Path) -> None:
    """In a namespace where the file of hosts gives the name to another address."""
    (tmp_path / "hosts").write_text("10.9.9.9 localhost\n", encoding="utf-8")
    (tmp_path / "attack.py").write_text(LOCALHOST_ELSEWHERE, encoding="utf-8")
    attack = f"{sys.executable} {tmp_path}/attack.py {tmp_path}/cache {token_file}"
    steps = (
        f"ip link set lo up && ip addr add 10.9.9.9/32 dev lo && mount --bind {tmp_path}/hosts /etc/hosts && {attack}"
    )
    tests = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(
        [*NAMESPACE, "--net", "sh", "-c", steps],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["UnavailableError", "UnavailableError", "no token"]


CLIENT_VARIABLES = ["CA_FILE", "CERT_FILE", "KEY_FILE", "TOKEN_FILE", "TLS", "SERVER_NAME", "ALLOW_PLAINTEXT"]
SERVER_VARIABLES = ["TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "TOKENS", "ALLOW_PLAINTEXT", "CONFIG"]


@pytest.mark.parametrize("value", ["", " ", "\t"])
@pytest.mark.parametrize("name", CLIENT_VARIABLES)
def test_an_empty_variable_of_a_client_is_an_error(
    name: str, value: str, peer: ListeningPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable counted as unset: a trainer went on without TLS or without a token."""
    variable = f"MODEL_FACTORY_{name}"
    monkeypatch.setenv(variable, value)
    remedy = rf"{variable} is empty.* Remedy: give {variable} a value, or remove {variable}"
    with pytest.raises(AccessError, match=remedy):
        Credentials.from_environment()
    with pytest.raises(AccessError, match=remedy):
        RemoteModelFactory(peer.address, cache_dir=tmp_path)
    assert main(["blocks", "--server", peer.address]) == 1
    assert main(["doctor", "--server", peer.address, "--timeout", "1"]) == 1
    assert peer.received == b""


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", SERVER_VARIABLES)
def test_an_empty_variable_of_a_server_is_an_error(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"MODEL_FACTORY_{name}", value)
    assert main(["serve", "--print-config"]) == 1
    assert re.search(rf"MODEL_FACTORY_{name}.* is empty.* Remedy: give ", capsys.readouterr().err)


@pytest.mark.parametrize(
    "text", ["tokens:", "tokens: ''", "tls_cert: # later", "tls_client_ca: ' '", "allow_plaintext:"]
)
def test_an_empty_key_of_a_settings_file_is_an_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(f"workers: 1\n{text}\n", encoding="utf-8")
    assert main(["serve", "--config", str(tmp_path / "s.yaml"), "--print-config"]) == 1
    assert re.search(r"s\.yaml:2:\d+: .* is empty", capsys.readouterr().err)
    (tmp_path / "s.yaml").write_text("tokens: null\ntls_cert: ~\n", encoding="utf-8")
    assert main(["serve", "--config", str(tmp_path / "s.yaml"), "--print-config"]) == 0


@pytest.mark.parametrize("flag", ["--tokens", "--tls-cert", "--tls-key", "--tls-client-ca"])
def test_an_empty_flag_is_an_error(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", f"{flag}=", "--print-config"])
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"ca_file": ""}, {"cert_file": "", "key_file": ""}, {"token_file": ""}])
def test_an_empty_name_of_a_file_is_an_error(
    fields: dict[str, Any], server: ServerProcess, make_remote: MakeRemote
) -> None:
    with pytest.raises(AccessError, match="cannot read"):
        make_remote(server.address, credentials=Credentials(**fields), timeout=5).blocks()
