"""A disk that changes bytes under a good mark: the first client tells the server, and the server builds again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from model_factory import IntegrityError, RemoteModelFactory
from model_factory.client import assembly
from model_factory.client.connection import Connection
from model_factory.client.fetch import fetch_blob
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2, wire
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state
from support.server import ServerProcess, running_server

WIDTH = 500
CONFIG = {
    "config": {
        "schema_version": 1,
        "model": {
            "sequential": {
                "layers": [
                    {"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH},
                    {"_type_": "mlp", "dims": [WIDTH, 7]},
                ]
            }
        },
    }
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    arguments = ("--metrics-listen", "127.0.0.1:0", "--log-level", "info")
    with running_server(tmp_path_factory.mktemp("damaged") / "store", *arguments) as process:
        yield process


@pytest.fixture
def build(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    """Build with a new cache each time."""
    monkeypatch.setattr(assembly, "MAX_BLUEPRINTS", 0)  # so that every blob is read at every build
    count = iter(range(100))

    def build() -> nn.Module:
        cache = tmp_path / f"cache{next(count)}"
        return RemoteModelFactory(server.address, seed=7, cache_dir=cache).build(CONFIG)  # type: ignore[return-value]

    return build


def decay(path: Path) -> None:
    """Change one byte as a disk does: size and times stay."""
    found = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def damaged(server: ServerProcess) -> float:
    (line,) = (
        x for x in server.metrics_page().splitlines() if x.startswith("model_factory_store_damaged_blobs_total ")
    )
    return float(line.split()[1])


def blobs(server: ServerProcess) -> list[Path]:
    return sorted((server.store / "blobs").rglob("*/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("what", ["weights", "documents", "everything"])
def test_one_build_call_survives_a_damaged_store(
    what: str, server: ServerProcess, build: Callable[[], nn.Module]
) -> None:
    expected = PolicyConstructorModelFactory(seed=7).build(CONFIG)
    assert_same_state(build(), expected)
    before = damaged(server)
    files = blobs(server)
    for path in {"weights": files[-1:], "documents": files[:-1], "everything": files}[what]:
        decay(path)
    assert_same_state(build(), expected)
    assert_same_state(build(), expected)
    assert damaged(server) == before + (what == "weights")
    if what == "weights":
        assert f"blob {files[-1].name} is damaged on this server's disk" in server.log


def test_a_damaged_file_in_a_store_that_the_node_sees(
    server: ServerProcess, build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    monkeypatch.setenv("MODEL_FACTORY_SHARED_STORE", str(server.store.resolve()))
    decay(blobs(server)[-1])
    assert_same_state(build(), PolicyConstructorModelFactory(seed=7).build(CONFIG))


def test_a_damaged_file_in_the_cache_of_the_node_is_found_by_verify(server: ServerProcess, tmp_path: Path) -> None:
    factory = RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache")
    factory.build(CONFIG)
    store = Store(tmp_path / "cache")
    weights = max(store.entries(), key=lambda entry: entry.size)
    decay(weights.path)
    assert not store.verify(weights.digest)
    assert_same_state(factory.build(CONFIG), PolicyConstructorModelFactory(seed=7).build(CONFIG))


def test_a_client_that_lies_costs_one_hash(server: ServerProcess, build: Callable[[], nn.Module]) -> None:
    build()
    before = damaged(server)
    path = blobs(server)[-1]
    blob = Blob(path.name, path.stat().st_size)
    connection = Connection(server.address)
    for _ in range(20):
        request = blob_pb2.ReadBlobRequest(digest=wire.to_digest(blob), verify=True)
        assert sum(len(data) for data in connection.read_blob(request)) == blob.size
    connection.close()
    assert path.exists()
    assert damaged(server) == before


def test_a_server_that_always_sends_other_bytes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a server of an earlier version, which ignores the request to verify."""
    asked: list[bool] = []

    def read_blob(_connection: Connection, request: blob_pb2.ReadBlobRequest) -> Iterator[memoryview]:
        asked.append(request.verify)
        yield memoryview(b"wrong")

    monkeypatch.setattr(Connection, "read_blob", read_blob)
    cache = Store(tmp_path)
    with pytest.raises(IntegrityError, match="other bytes"):
        fetch_blob(Connection("127.0.0.1:1"), cache, Blob("ab" * 32, 5))
    assert asked == [False, True]
    assert cache.entries() == []
    assert not list((tmp_path / "staging").iterdir())
