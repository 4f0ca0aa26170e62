"""A server whose store has a bound: what nobody reads makes room, and what was evicted is built again, the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from model_factory import LimitError, RemoteModelFactory
from model_factory.client.connection import Connection
from model_factory.store import Store
from model_factory.store.contents import FILE_BYTES
from model_factory.v1 import blob_pb2, service_pb2_grpc, wire
from support.compare import assert_same
from support.configs import layers
from support.server import ServerProcess, running_server
from support.wire import build_manifest

MIB = 1 << 20
BOUND = 5 * MIB
WIDTH = 512  # a layer of 1 MiB


def of_layers(count: int) -> dict[str, Any]:
    layer = {"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH, "bias": False}
    return layers(*[layer] * count)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--max-store-bytes", str(BOUND), "--metrics-listen", "127.0.0.1:0")
    with running_server(tmp_path_factory.mktemp("bounded") / "store", *flags) as process:
        yield process


def stored(server: ServerProcess) -> int:
    return sum(entry.size for entry in Store(server.store).entries())


def evicted(server: ServerProcess) -> float:
    found = re.search(r"^model_factory_store_evicted_bytes_total (\S+)$", server.metrics_page(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_builds_stay_within_the_bound_and_come_again_the_same(server: ServerProcess, tmp_path: Path) -> None:
    def build(seed: int, cache: str) -> torch.nn.Module:
        factory = RemoteModelFactory(server.address, seed=seed, cache_dir=tmp_path / cache)
        model = factory.build({"config": of_layers(2)})
        assert isinstance(model, torch.nn.Module)
        return model

    before = evicted(server)
    first = [build(seed, "first") for seed in range(4)]
    assert stored(server) <= BOUND
    assert evicted(server) - before >= 2 * 2 * MIB
    for seed, model in enumerate(first):
        assert_same(build(seed, f"again{seed}").state_dict(), model.state_dict())
        assert stored(server) <= BOUND


def test_components_that_together_are_over_the_bound_all_arrive(server: ServerProcess, tmp_path: Path) -> None:
    names = [f"part{number}" for number in range(3)]
    factory = RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache")
    models = factory.build(dict.fromkeys(names, of_layers(3)))
    assert isinstance(models, dict)
    assert list(models) == names
    assert all(module(torch.ones(2, WIDTH)).shape == (2, WIDTH) for module in models.values())
    weights = [module.state_dict()["graph_modules.layer0.weight"] for module in models.values()]
    assert not torch.equal(weights[0], weights[1])


def test_what_is_being_read_stays(server: ServerProcess) -> None:
    wanted = build_manifest(server.address, {"held": of_layers(4)}, seed=1)["held"].weights
    few = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]  # bytes on their way unasked
    with grpc.insecure_channel(server.address, options=few) as channel:
        stream = service_pb2_grpc.ModelFactoryServiceStub(channel).ReadBlob(blob_pb2.ReadBlobRequest(digest=wanted))
        data = next(stream).data  # the server has the file open for the rest
        build_manifest(server.address, {"other": of_layers(4)}, seed=2)
        assert Store(server.store).find(wire.from_digest(wanted)) is not None
        data += b"".join(chunk.data for chunk in stream)
    assert len(data) == wanted.size_bytes


def test_a_model_larger_than_the_bound_is_refused_before_it_is_made(server: ServerProcess, tmp_path: Path) -> None:
    before = stored(server)
    with pytest.raises(LimitError, match=rf"{6 * MIB} bytes of weights; this server builds at most {BOUND}"):
        RemoteModelFactory(server.address, cache_dir=tmp_path / "cache").build({"config": of_layers(6)})
    assert stored(server) == before
    assert Connection(server.address).capabilities().limits.store_bytes == BOUND


SMALL_BOUND = MIB


def on_disk(store: Path) -> tuple[int, int]:
    """Disk space and number of the files in a store."""
    found = [path.lstat() for path in store.rglob("*") if path.is_file()]
    return sum(item.st_blocks * 512 for item in found), len(found)


@pytest.mark.slow
def test_descriptions_and_records_obey_the_bound(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Each description is a blob and a record; a repeated request finds the result, or has the result made again."""
    server = start_server(None, "--max-store-bytes", str(SMALL_BOUND))
    factory = RemoteModelFactory(server.address, seed=1, cache_dir=tmp_path / "cache")
    honest = {"config": layers({"_type_": "mlp", "dims": [4, 2]})}
    expected = factory.build(honest)
    x = torch.randn(2, 3, 5, 2, 4)
    y = expected(x)  # recorded by request
    most = 0
    for size in range(1, SMALL_BOUND // FILE_BYTES):  # two files each: twice the bound
        factory.describe({"config": layers({"_type_": "nn.Linear", "in_features": size, "out_features": 3})})
        most = max(most, on_disk(server.store)[0])
    assert most <= SMALL_BOUND
    assert on_disk(server.store)[1] <= SMALL_BOUND // FILE_BYTES + 16
    again = RemoteModelFactory(server.address, seed=1, cache_dir=tmp_path / "another").build(honest)
    assert_same(again.state_dict(), expected.state_dict())
    assert_same(again(x), y)
    described = factory.describe(honest)
    assert described.parameters == 10
    assert on_disk(server.store)[0] <= SMALL_BOUND
