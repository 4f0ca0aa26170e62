"""Two versions of a plug-in behind one address: what is recorded later belongs to what was built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import CallSignatureError, OutdatedBuildError, RemoteModelFactory
from model_factory.store import Store
from support.compare import assert_same
from support.proxy import Proxy
from support.server import ServerProcess

pytestmark = pytest.mark.slow  # every test restarts servers of two versions

MakeRemote = Callable[..., RemoteModelFactory]
StartServer = Callable[..., ServerProcess]

# No example_inputs: every call signature is recorded at its first call. The factor is in no attribute, so both
# versions have one descriptor.
BLOCK = """
from torch import nn


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return self.layer(x) * {factor}


def register(registry):
    registry.register_module("scaled", Scaled)
"""
FACTORS = {"old": 2.0, "new": 3.0}
WIDTH = 4
SIZES = (2, 3, 5, 2, 3)
CONFIG: dict[str, Any] = {
    "config": {
        "schema_version": 1,
        "model": {"sequential": {"layers": [{"_type_": "scaled", "width": WIDTH}]}},
    }
}


class Fleet:
    """Servers of two versions, of which one at a time answers at the address."""

    def __init__(self, servers: dict[str, ServerProcess]) -> None:
        self.servers = servers
        self.proxy = Proxy(servers["old"].address)

    def roll(self, version: str) -> None:
        """Let another version answer, as a balancer does."""
        self.proxy.target = self.servers[version].address
        self.proxy.cut()


def write_plugin(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rolled.py").write_text(BLOCK.format(factor=FACTORS[version]), encoding="utf-8")
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return folder


@pytest.fixture(params=["one store", "a store each"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, start_server: StartServer) -> Iterator[Fleet]:
    servers = {}
    for version in FACTORS:
        store = tmp_path / ("store" if request.param == "one store" else f"store-{version}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(write_plugin(tmp_path / version, version)), prepend=os.pathsep)
            servers[version] = start_server(store, "--plugin", "rolled")
    made = Fleet(servers)
    yield made
    made.proxy.close()


def expected(model: nn.Module, x: torch.Tensor, version: str) -> torch.Tensor:
    layer = model.graph_modules["layer0"].layer
    return nn.functional.linear(x, layer.weight, layer.bias) * FACTORS[version]


def check(model: nn.Module, version: str, rank: int) -> None:
    """Call a model with an input of a rank, and compare with the version that built the model."""
    x = torch.randn([*SIZES[:rank], WIDTH])
    assert_same(model(x), expected(model, x, version))


def refuse(model: nn.Module, rank: int) -> None:
    with pytest.raises(OutdatedBuildError, match=r"(?s)code '.*' is '.*Remedy: build the model again"):
        model(torch.randn([*SIZES[:rank], WIDTH]))


def test_rolling_forward_and_back_under_running_trainers(fleet: Fleet, make_remote: MakeRemote) -> None:
    factory = make_remote(fleet.proxy.address)
    old = factory.build(CONFIG)
    check(old, "old", 1)
    fleet.roll("new")
    check(old, "old", 1)  # a form that is known needs no server
    refuse(old, 2)
    new = factory.build(CONFIG)  # of the same factory, which asked for the capabilities of the old server
    assert_same(dict(new.state_dict()), dict(old.state_dict()))
    check(new, "new", 1)
    check(new, "new", 2)
    refuse(old, 2)  # not the program of the new model, which the cache of the node has by now
    fleet.roll("old")
    check(old, "old", 2)
    refuse(new, 3)
    check(new, "new", 2)
    again = factory.build(CONFIG)
    check(again, "old", 1)
    check(again, "old", 2)
    check(again, "old", 3)
    fleet.roll("new")
    refuse(again, 4)
    check(factory.build(CONFIG), "new", 3)


def test_every_order_of_versions_gives_the_right_values(fleet: Fleet, make_remote: MakeRemote) -> None:
    """A matrix: the version that built a model, the version that answers at the call, and what the cache has."""
    factory = make_remote(fleet.proxy.address)
    models = {}
    for version in FACTORS:
        fleet.roll(version)
        models[version] = factory.build(CONFIG)
    for rank in (1, 2, 3):
        for answering in ("new", "old") if rank % 2 else ("old", "new"):
            fleet.roll(answering)
            for built, model in models.items():
                if built == answering:
                    check(model, built, rank)
                else:
                    known = rank in _ranks(model)
                    check(model, built, rank) if known else refuse(model, rank)


def _ranks(model: nn.Module) -> set[int]:
    signatures = [item.recorded.call_signature for item in model.graph_modules["layer0"]._programs]
    return {dict(signature)["x"][1] - 1 for signature in signatures}


def test_a_checkout_that_changes_under_a_running_server(
    tmp_path: Path, start_server: StartServer, make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a restart no program is recorded; after one the old model is refused; after a roll-back all is well."""
    folder = write_plugin(tmp_path / "plugin", "old")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    server = start_server(None, "--plugin", "rolled")
    proxy = Proxy(server.address)
    factory = make_remote(proxy.address)
    old = factory.build(CONFIG)
    check(old, "old", 1)
    write_plugin(folder, "new")
    with pytest.raises(Exception, match=r"has changed since it started\. Remedy: restart it"):
        old(torch.randn(2, 3, WIDTH))
    for version in ("new", "old"):
        write_plugin(folder, version)
        server.stop()
        server = start_server(None, "--plugin", "rolled")
        proxy.target = server.address
        proxy.cut()
        built = factory.build(CONFIG)
        check(built, version, 2)
        if version == "new":
            refuse(old, 2)
        else:
            check(old, "old", 2)
    proxy.close()


def test_another_config_is_not_that_of_the_build(fleet: Fleet, make_remote: MakeRemote) -> None:
    """The key in a request is compared with the config in the request, not believed."""
    factory = make_remote(fleet.proxy.address)
    other = factory.build(CONFIG)
    recorder = other.graph_modules["layer0"]._recorder
    object.__setattr__(recorder._build, "architecture_key", "ab" * 32)
    with pytest.raises(CallSignatureError, match="was built from another config"):
        other(torch.randn(2, WIDTH))


def test_a_record_under_another_key_is_not_believed(fleet: Fleet, make_remote: MakeRemote, tmp_path: Path) -> None:
    """The node's record of the new version, copied over that of the old one."""
    factory = make_remote(fleet.proxy.address)
    models, keys = {}, {}
    for version in FACTORS:
        fleet.roll(version)
        models[version] = factory.build(CONFIG)
        keys[version] = models[version].graph_modules["layer0"]._recorder._key
    check(models["new"], "new", 2)
    cache = Store(tmp_path / "cache")
    place = {version: cache.root / "records" / key[:2] / key for version, key in keys.items()}
    place["old"].parent.mkdir(exist_ok=True)
    shutil.copyfile(place["new"], place["old"])
    fleet.roll("old")
    check(models["old"], "old", 2)


def test_what_a_constructor_draws_besides_weights(
    tmp_path: Path, start_server: StartServer, make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program for a later call is recorded from the model of the build's seed; what no seed decides is refused."""
    block = (
        "import time, torch\nfrom torch import nn\n"
        "class Drawn(nn.Module):\n"
        "    def __init__(self, source):\n"
        "        super().__init__()\n"
        "        drawn = torch.rand((), device='cpu').item() if source == 'torch' else time.time() % 1\n"
        "        self.drop = nn.Dropout(drawn)\n"
        "        self.factor = drawn\n"
        "    def forward(self, x):\n"
        "        return self.drop(x) * self.factor\n"
        "def register(registry): registry.register_module('drawn', Drawn)\n"
    )
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "drawn_plugin.py").write_text(block, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugin"), prepend=os.pathsep)
    server = start_server(None, "--plugin", "drawn_plugin")
    layer = {"_type_": "drawn", "source": "torch"}
    asked = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}}
    for seed in (7, 8, 7):
        model = make_remote(server.address, seed=seed).build(asked).eval()
        factor = model.graph_modules.layer0.drop.p
        for rank in (1, 2):
            assert_same(model(torch.ones(SIZES[:rank])), torch.ones(SIZES[:rank]) * factor)
    layer["source"] = "clock"
    with pytest.raises(OutdatedBuildError, match="this server constructs another model than the trainer's"):
        make_remote(server.address).build(asked)(torch.ones(2))
