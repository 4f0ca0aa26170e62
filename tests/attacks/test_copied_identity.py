"""A hostile server that copies what is public of an honest one: manifest, digests, keys."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_factory import Credentials, RemoteModelFactory
from model_factory.client import connection as remote_connection
from model_factory.client import credentials
from model_factory.client.address import listening_users, parse_address
from model_factory.descriptor.codec import decode_programs, encode_programs
from model_factory.program.ir import OpCall, Program, Ref
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, wire
from support.certificates import Authority
from support.compare import assert_same
from support.hostile_server import HostileServer
from support.proxy import Proxy
from support.server import ServerProcess
from support.wire import whole_manifest

MakeRemote = Callable[..., RemoteModelFactory]

CONFIG = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "mlp", "dims": [4, 2]}]}}}
PATH = "graph_modules.layer0"
SHAPE = (2, 3, 5, 2, 4)  # of a rank that is not recorded at the build


class Copycat(HostileServer):
    """Answers a build with the manifest of an honest server, and every request to record with another program."""

    def __init__(self, manifest: build_pb2.Manifest, blobs: Store) -> None:
        self.manifest = manifest
        (built,) = manifest.components
        contents = {}
        for name in ("descriptor", "programs", "weights"):
            blob = wire.from_digest(getattr(built, name))
            contents[name] = blobs.read(blob) or b""
            assert Blob.of(contents[name]) == blob
        super().__init__(**contents, blobs={})

    def BuildModels(self, request: Any, context: Any) -> Iterator[build_pb2.BuildModelsResponse]:  # noqa: N802
        list(super().BuildModels(request, context))
        yield build_pb2.BuildModelsResponse(manifest=self.manifest)


@pytest.fixture
def copycat(server: ServerProcess, make_remote: MakeRemote, tmp_path: Path) -> Iterator[Copycat]:
    """Its programs give zeros, for every call of the rank that no build records."""
    honest = make_remote(cache_dir=tmp_path / "other")
    model = honest.build({"config": CONFIG})
    model(torch.randn(SHAPE))
    recorded = model.graph_modules.layer0._programs[-1].recorded
    zeros = OpCall(name="torch.zeros_like", args=(Ref("x"),), out="y")
    lie = dataclasses.replace(
        recorded, program=Program(inputs=recorded.program.inputs, steps=(zeros,), result=Ref("y")), size_conditions=()
    )
    copied = Copycat(whole_manifest(server.address, {"config": CONFIG}, seed=7), Store(server.store))
    copied.recorded = encode_programs(((PATH, lie),))
    assert decode_programs(copied.recorded)
    yield copied
    copied.close()


def test_copied_digests_poison_no_programs_of_the_honest_server(
    copycat: Copycat, server: ServerProcess, make_remote: MakeRemote
) -> None:
    """One cache for both, as on a node whose trainers use several servers."""
    x = torch.randn(SHAPE)
    fooled = make_remote(copycat.address).build({"config": CONFIG})
    assert not fooled(x).any(), "whoever builds with a hostile server computes what that server says"
    model = make_remote(server.address).build({"config": CONFIG})
    assert_same(dict(model.state_dict()), dict(fooled.state_dict()))
    found = model(x)
    assert found.any()
    assert_same(found, make_remote(server.address).build({"config": CONFIG})(x))


def test_programs_of_one_server_are_kept_for_all_processes_of_a_node(
    server: ServerProcess, make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side of the same key: what the honest server recorded is found again."""
    x = torch.randn(SHAPE)
    expected = make_remote(server.address).build({"config": CONFIG})(x)
    again = make_remote(server.address).build({"config": CONFIG})

    class Refuses:
        def RecordProgram(self, *_arguments: Any, **_options: Any) -> None:  # noqa: N802
            raise AssertionError("asked again")

    monkeypatch.setattr(remote_connection.Connection, "stub", Refuses())
    assert_same(again(x), expected)


def test_who_a_server_is(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    plain = Credentials()
    tls = Credentials(ca_file=authority.file)
    identities = {
        "plain": plain.server_identity("host:1"),
        "another port": plain.server_identity("host:2"),
        "another host": plain.server_identity("other:1"),
        "this machine": plain.server_identity("127.0.0.1:1"),
        "tls": tls.server_identity("host:1"),
        "another authority": Credentials(ca_file=other.file).server_identity("host:1"),
        "another name": Credentials(ca_file=authority.file, server_name="name").server_identity("host:1"),
        "another address": tls.server_identity("other:1"),
        "the system's authorities": Credentials(tls=True).server_identity("host:1"),
    }
    assert len(set(identities.values())) == len(identities)
    assert tls.server_identity("host:1") == tls.server_identity("host:2"), "a certificate names no port"
    named = Credentials(ca_file=authority.file, server_name="name")
    assert named.server_identity("10.0.0.1:1") == named.server_identity("10.0.0.2:1"), "one certificate, any replica"
    (tmp_path / "copy.pem").write_bytes(authority.file.read_bytes())
    assert Credentials(ca_file=tmp_path / "copy.pem").server_identity("host:1") == tls.server_identity("host:1")


def test_a_hostile_server_behind_another_port_of_an_address(
    copycat: Copycat, server: ServerProcess, make_remote: MakeRemote
) -> None:
    """Without TLS the address is all that a client knows: what answers there later has the same name."""
    proxy = Proxy(copycat.address)
    x = torch.randn(SHAPE)
    assert not make_remote(proxy.address).build({"config": CONFIG})(x).any()
    assert make_remote(server.address).build({"config": CONFIG})(x).any()
    proxy.close()


def test_a_manifest_of_another_format_is_refused(copycat: Copycat, make_remote: MakeRemote) -> None:
    """A server that was replaced after its capabilities were asked for."""
    copycat.manifest.identity.format_version = 99
    with pytest.raises(Exception, match=r"built with format 99, this client reads format .*Remedy: install the same"):
        make_remote(copycat.address).build({"config": CONFIG})


def test_a_relative_socket_is_another_server_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        seen |= {Credentials().server_identity(text) for text in ("unix:a.sock", f"unix:{tmp_path / name / 'a.sock'}")}
    assert len(seen) == 2, "one path, two spellings; two paths, one text"


def test_a_port_taken_by_another_user_is_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = parse_address(f"127.0.0.1:{listener.getsockname()[1]}")
        assert listening_users(address) == (os.getuid(),)
        ours = Credentials().server_identity(address.text)
        monkeypatch.setattr(credentials, "listening_users", lambda _address: (os.getuid() + 1,))
        assert Credentials().server_identity(address.text) != ours
    assert listening_users(address) == ()


def test_programs_of_a_server_that_took_the_port_are_not_kept(
    copycat: Copycat, server: ServerProcess, make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's server answers at the port of an honest server, between a build and a call."""
    proxy = Proxy(server.address)
    model = make_remote(proxy.address).build({"config": CONFIG})
    proxy.target = copycat.address
    proxy.cut()
    monkeypatch.setattr(credentials, "listening_users", lambda _address: (os.getuid() + 1,))
    x = torch.randn(SHAPE)
    assert not model(x).any(), "whoever answers is believed by this process"
    monkeypatch.undo()
    proxy.target = server.address
    proxy.cut()
    assert make_remote(proxy.address).build({"config": CONFIG})(x).any(), "and by no later process"
    proxy.close()


@pytest.mark.parametrize("change", ["proxy", "authorities", "network"])
def test_surroundings_that_lead_an_address_elsewhere(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = Credentials(tls=True)
    address = "127.0.0.1:1" if change == "network" else "host:1"
    before = (tls if change == "authorities" else Credentials()).server_identity(address)
    if change == "proxy":
        monkeypatch.setenv("MODEL_FACTORY_USE_PROXY", "1")
        monkeypatch.setenv("http_proxy", "http://proxy:1")
    elif change == "authorities":
        monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(Authority(tmp_path, "others").file))
    else:
        monkeypatch.setattr(credentials, "_NETWORK", tmp_path)
    assert (tls if change == "authorities" else Credentials()).server_identity(address) != before
