"""Untrusted peers: with a missing or wrong certificate, or a missing, guessed, expired or revoked token."""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import pickle
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_factory import AccessError, Credentials, ModelFactoryError, RemoteModelFactory, ServerError, UnavailableError
from model_factory.cli.main import main
from model_factory.v1 import capabilities_pb2, service_pb2_grpc
from model_factory_server.access.exposure import check_exposure, is_loopback
from model_factory_server.access.tls import load_tls
from model_factory_server.access.tokens import Tokens, token_line
from model_factory_server.settings.server_settings import AccessSettings, Settings
from support.configs import layers
from support.server import running_server
from support.strict import TOKEN, Strict

MakeRemote = Callable[..., RemoteModelFactory]
OTHER = "canary-token-s8Wb0ZtR"
PRELU = {"config": layers({"_type_": "nn.PReLU"})}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    made = Strict(tmp_path_factory.mktemp("strict"))
    with running_server(tmp_path_factory.mktemp("strict store") / "store", *made.arguments) as made.process:
        yield made
    assert "canary" not in made.process.log, "a token is in the log"


def assert_refused(factory: RemoteModelFactory, error: type[Exception], match: str) -> None:
    factory._connection.timeout = 8.0
    with pytest.raises(error, match=match) as caught:
        factory.blocks()
    assert "canary" not in str(caught.value)


def test_a_client_with_everything_is_served(strict: Strict, make_remote: MakeRemote) -> None:
    factory = make_remote(strict.process.address, credentials=strict.credentials())
    assert factory.build(PRELU) is not None
    assert '"token:trainer"' in strict.process.log or "token:trainer" in strict.process.log
    for twin in (pickle.loads(pickle.dumps(factory)), copy.deepcopy(factory)):  # noqa: S301  our own
        assert twin.blocks()


def test_certificates(strict: Strict, make_remote: MakeRemote) -> None:
    address = strict.process.address
    forged = strict.unknown_authority.issue("trainer", file="forged")
    old = strict.authority.issue("trainer", file="old", end=dt.timedelta(hours=-1))
    for changes in (
        {"cert_file": None, "key_file": None},
        {"cert_file": forged.cert, "key_file": forged.key},
        {"cert_file": old.cert, "key_file": old.key},
        {"ca_file": strict.unknown_authority.file},  # the server is another than expected
        {"server_name": "elsewhere"},
    ):
        assert_refused(make_remote(address, credentials=strict.credentials(**changes)), UnavailableError, address)
    assert_refused(make_remote(address), UnavailableError, address)  # no TLS at all
    with pytest.raises(AccessError, match="cert_file and key_file go together"):
        strict.credentials(key_file=None)
    with pytest.raises(AccessError, match=r"cannot read .*nowhere"):
        make_remote(address, credentials=strict.credentials(ca_file="nowhere")).blocks()


def test_tokens(strict: Strict, make_remote: MakeRemote, tmp_path: Path) -> None:
    address = strict.process.address
    other = tmp_path / "other"
    other.write_text(OTHER, encoding="utf-8")
    with_other = make_remote(address, credentials=strict.credentials(token_file=other))
    assert_refused(
        make_remote(address, credentials=strict.credentials(token_file=None)), AccessError, "requires a token"
    )
    assert_refused(with_other, AccessError, "does not know the token")
    # The hash is not the token.
    stolen = tmp_path / "stolen"
    stolen.write_text(hashlib.sha256(TOKEN.encode()).hexdigest(), encoding="utf-8")
    assert_refused(
        make_remote(address, credentials=strict.credentials(token_file=stolen)), AccessError, "does not know the token"
    )
    for text in ("", "two words", "line\nline", "\x00"):
        other.write_text(text, encoding="utf-8")
        assert_refused(with_other, AccessError, "does not hold a token")
    other.write_text(OTHER, encoding="utf-8")

    def let_in(*lines: str) -> None:
        strict.let_in(*lines)
        time.sleep(1.1)  # a new file is read while the server runs

    # A token is added, one expires, one is revoked.
    trainer = make_remote(address, credentials=strict.credentials())
    assert trainer.blocks()
    let_in(token_line("trainer", TOKEN, -1), token_line("other", OTHER, 1))
    assert with_other.blocks()
    assert_refused(trainer, AccessError, "token of 'trainer' has expired")
    let_in(token_line("trainer", TOKEN, None))
    assert trainer.blocks()
    assert_refused(with_other, AccessError, "does not know the token")
    # An invalid line is skipped; a token without a line is refused.
    let_in(token_line("other", OTHER, 1), "garbage")
    assert with_other.blocks()
    assert_refused(trainer, AccessError, "does not know the token")
    let_in(token_line("trainer", TOKEN, None))
    assert trainer.blocks()
    # A file without a valid line changes nothing.
    let_in(f"other {OTHER}")
    assert trainer.blocks()
    assert_refused(with_other, AccessError, "does not know the token")
    strict.let_in(token_line("trainer", TOKEN, None))
    assert "the accepted tokens stay unchanged" in strict.process.log


def test_a_new_certificate_is_used_without_a_restart(strict: Strict, make_remote: MakeRemote) -> None:
    def serial() -> bytes:
        host, _, port = strict.process.address.partition(":")
        context = ssl.create_default_context(cafile=str(strict.authority.file))
        context.load_cert_chain(strict.client_pair.cert, strict.client_pair.key)
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, int(port))) as raw, context.wrap_socket(raw, server_hostname=host) as tls:
            found = tls.getpeercert(binary_form=True)
            assert found is not None
            return found

    before = serial()
    right = strict.server_pair.key.read_bytes()
    strict.server_pair.key.write_bytes(strict.client_pair.key.read_bytes())
    assert serial() == before  # unchanged until certificate and key match
    assert f"the key in {strict.server_pair.key} does not belong to the certificate" in strict.process.log
    strict.server_pair.key.write_bytes(right)
    strict.authority.issue("server")
    assert serial() != before
    assert make_remote(strict.process.address, credentials=strict.credentials()).blocks()


def called(method: Any) -> list[Any]:
    answer = method(capabilities_pb2.GetCapabilitiesRequest(), timeout=10)
    return list(answer if hasattr(answer, "__iter__") else [answer])


def test_only_health_needs_no_token(strict: Strict) -> None:
    pair = strict.client_pair
    tls = grpc.ssl_channel_credentials(
        strict.authority.file.read_bytes(), pair.key.read_bytes(), pair.cert.read_bytes()
    )
    with grpc.secure_channel(strict.process.address, tls) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
        methods = [item for item in vars(stub) if item[0].isupper()]
        assert len(methods) >= 6
        for name in methods:
            with pytest.raises(grpc.RpcError) as caught:
                called(getattr(stub, name))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, name


def test_no_secret_is_shown_or_pickled(strict: Strict, tmp_path: Path) -> None:
    credentials = strict.credentials()
    factory = RemoteModelFactory("127.0.0.1:1", cache_dir=tmp_path, credentials=credentials)
    for text in (repr(credentials), repr(factory), repr(vars(factory)), repr(pickle.dumps(factory))):
        assert "canary-token" not in text
        assert "PRIVATE KEY" not in text


def test_a_token_is_not_sent_without_tls(strict: Strict, tmp_path: Path) -> None:
    plain = Credentials(token_file=strict.token_file)
    with pytest.raises(AccessError, match="the token is not sent to gpu-node:50051 without TLS"):
        RemoteModelFactory("gpu-node:50051", cache_dir=tmp_path, credentials=plain).blocks()


def test_credentials_from_the_environment(strict: Strict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in (("CA_FILE", strict.authority.file), ("CERT_FILE", strict.client_pair.cert),
                       ("KEY_FILE", strict.client_pair.key), ("TOKEN_FILE", strict.token_file)):  # fmt: skip
        monkeypatch.setenv(f"MODEL_FACTORY_{name}", str(path))
    monkeypatch.setenv("MODEL_FACTORY_CACHE", str(tmp_path))
    assert main(["blocks", "nn.PReLU", "--server", strict.process.address]) == 0


@pytest.mark.parametrize("variable", ["MODEL_FACTORY_TLS", "MODEL_FACTORY_ALLOW_PLAINTEXT"])
def test_an_invalid_boolean_is_an_error(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "ture")
    with pytest.raises(ModelFactoryError, match=rf"{variable} is true/false, 1/0, yes/no or on/off, got 'ture'"):
        Credentials.from_environment()
    monkeypatch.setenv(variable, "Off")
    assert not Credentials.from_environment().tls


def test_a_key_of_another_certificate_is_named(strict: Strict, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    for content, message in (
        (strict.client_pair.key.read_bytes(), f"the key in {other} does not belong to the certificate in"),
        (b"junk", f"{other} does not hold a private key in PEM"),
    ):
        other.write_bytes(content)
        with pytest.raises(ServerError, match=re.escape(message)):
            load_tls(AccessSettings(tls_cert=strict.server_pair.cert, tls_key=other))


@pytest.mark.parametrize("listen", ["unix:/run/x", "127.0.0.1", "50051", "127.0.0.1:http", "127.0.0.1:65536", ""])
def test_an_address_without_host_and_port(listen: str) -> None:
    with pytest.raises(ServerError, match=r"--listen must be HOST:PORT"):
        Settings(listen=listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0", "8.8.8.8:0", "no-such-host.invalid:0"])
def test_beyond_loopback_a_server_needs_tls(listen: str, tmp_path: Path) -> None:
    assert not is_loopback(listen)
    with pytest.raises(ServerError, match=r"can be reached from other machines.*Remedy: --tls-cert and --tls-key"):
        check_exposure(listen, AccessSettings(tokens=tmp_path))
    check_exposure(listen, AccessSettings(allow_plaintext=True))
    check_exposure(listen, AccessSettings(tls_cert=tmp_path, tls_key=tmp_path))


def test_loopback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for listen in ("127.0.0.1:0", "127.9.9.9:1", "[::1]:0", "localhost:0"):
        assert is_loopback(listen), listen
    assert main(["serve", "--listen", "0.0.0.0:0", "--store", str(tmp_path / "store")]) == 1
    assert "Remedy: --tls-cert and --tls-key" in capsys.readouterr().err
    assert main(["serve", "--tls-cert", "x", "--listen", "127.0.0.1:0", "--store", str(tmp_path / "store")]) == 1
    assert "TLS needs --tls-cert and --tls-key" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["1e9", "nan", "inf"])
def test_no_token_is_made_for_days_beyond_the_calendar(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "lab-7", "--days", days]) == 1
    assert "is not a number of days within the calendar" in capsys.readouterr().err


def test_the_command_makes_a_token_for_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["token", "lab-7", "--days", "2"]) == 0
    first, second = (line.partition(": ")[2] for line in capsys.readouterr().out.splitlines())
    assert len(first) >= 43
    (tmp_path / "tokens").write_text(second, encoding="utf-8")
    clock = [time.time()]
    tokens = Tokens(tmp_path / "tokens", lambda: clock[0])
    assert tokens.holder(first) == "lab-7"
    clock[0] += 3 * 86400  # two days later, or a clock that jumps: expired
    with pytest.raises(AccessError, match="has expired"):
        tokens.holder(first)
    clock[0] -= 3 * 86400
    assert tokens.holder(first) == "lab-7"
    assert main(["token", "two words"]) == 1


@pytest.mark.parametrize("line", ["name", "name xyz", f"name {'0' * 64} tomorrow", f"a b {'0' * 64}", TOKEN])
def test_an_invalid_token_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# fine\n{line}\n", encoding="utf-8")
    with pytest.raises(ServerError, match=rf"{tmp_path}/tokens:2") as caught:
        Tokens(tmp_path / "tokens")
    assert "canary" not in str(caught.value)
