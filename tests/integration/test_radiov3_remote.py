"""``radiov3`` through a real server: loaded there from the operator's hub folder, trained here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory
from model_factory.errors import BuildError
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings, HubSettings
from support.compare import assert_same_runs, assert_same_state, train
from support.hub import write_hub
from support.server import ServerProcess, running_server

SEED = 7
MakeRemote = Callable[..., RemoteModelFactory]
MakePair = Callable[[], tuple[nn.Module, nn.Module]]
CONFIG = {
    "config": {
        "schema_version": 1,
        "model": {
            "graph": {
                "inputs": ["image"],
                "modules": {"radio": {"_type_": "radiov3", "channels": [8, 5]}},
                "steps": [{"call": "module:radio", "args": ["$image"], "out": ["features", "summary"]}],
                "outputs": ["features", "summary"],
            }
        },
    }
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("radio") / "hub")


@pytest.fixture(scope="module")
def hub_server(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("radio_server") / "store"
    with running_server(store, "--hub-dir", str(hub), "--radio-version", "tiny") as process:
        yield process


@pytest.fixture
def make_pair(hub: Path, hub_server: ServerProcess, make_remote: MakeRemote) -> MakePair:
    settings = BackendSettings(hub=HubSettings(directory=hub, version="tiny"))

    def make() -> tuple[nn.Module, nn.Module]:
        remote = make_remote(hub_server.address, seed=SEED).build(CONFIG)
        return remote, PolicyConstructorModelFactory(seed=SEED, backend=settings).build(CONFIG)

    return make


@pytest.mark.parametrize("scale", [1.0, 255.0], ids=["0..1", "0..255"])
@pytest.mark.parametrize("shape", [(3, 9, 14), (2, 3, 9, 14), (1, 3, 16, 16)])
def test_remote_is_the_in_process_block(make_pair: MakePair, scale: float, shape: tuple[int, ...]) -> None:
    """One program serves both ranges of values; sizes that the model rounds have a program each."""
    remote, local = make_pair()
    assert_same_state(remote, local)
    assert_same_runs(remote, local, {"image": torch.rand(shape) * scale})


def test_training(make_pair: MakePair) -> None:
    remote, local = make_pair()
    images = {"image": torch.rand(2, 3, 9, 14)}
    losses = train(remote, images)
    assert losses == train(local, images)
    assert losses[-1] < losses[0]


def test_without_hub_the_error_names_the_flags(server: ServerProcess, make_remote: MakeRemote) -> None:
    with pytest.raises(BuildError, match=r"--hub-dir.*--allow-hub-download"):
        make_remote(server.address).build(CONFIG)
