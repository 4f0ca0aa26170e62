"""Everything a module can be, through a real server: the remote factory's model is the in-process one's."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from matrix.blocks import BLOCKS, WIDTH
from matrix.same import assert_same_module, assert_same_runs, assert_same_state
from model_factory import GraphModel, RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.server import ServerProcess, running_server

TESTS = Path(__file__).parents[1]
PLUGIN = "matrix.blocks"
SEED = 7

# Torch's own hints on single arguments, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")

# Classes of torch whose call is more than one tensor to one tensor, or which are lazy or random.
CLASSES: dict[str, dict[str, Any]] = {
    "conv": {"_type_": "nn.LazyConv1d", "out_channels": 4, "kernel_size": 1},
    "embedding": {"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH},
    "layers": {
        "_type_": "nn.TransformerEncoder",
        "encoder_layer": {"_type_": "nn.TransformerEncoderLayer", "d_model": 4, "nhead": 2, "dim_feedforward": 8},
        "num_layers": 2,
        "enable_nested_tensor": False,
    },
    "lstm": {"_type_": "nn.LSTM", "input_size": WIDTH, "hidden_size": 3, "num_layers": 2, "bidirectional": True},
    "act": {"_type_": "nn.RReLU"},
}


@pytest.fixture(scope="module")
def plugin_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
        with running_server(tmp_path_factory.mktemp("kinds") / "store", "--plugin", PLUGIN) as process:
            yield process


def config(modules: dict[str, dict[str, Any]], steps: list[dict[str, Any]], outputs: Any) -> dict[str, Any]:
    graph = {"inputs": ["x"], "modules": modules, "steps": steps, "outputs": outputs, "return": "dict"}
    return {"config": {"schema_version": 1, "model": {"graph": graph}}}


def kinds() -> dict[str, Any]:
    """Every block side by side."""
    modules = {name: {"_type_": f"kind_{name}"} for name in BLOCKS}
    steps = [{"call": f"module:{name}", "args": ["$x"], "out": f"out_{name}"} for name in BLOCKS]
    return config(modules, steps, {name: f"$out_{name}" for name in BLOCKS})


def both(server: ServerProcess, cache: Path, model_cfg: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    local = PolicyConstructorModelFactory(seed=SEED, plugins=[PLUGIN]).build(copy.deepcopy(model_cfg))
    factory = RemoteModelFactory(server.address, seed=SEED, cache_dir=cache, share_values=True)  # a block counts values
    remote = factory.build(copy.deepcopy(model_cfg))
    assert isinstance(local, GraphModel)
    assert isinstance(remote, GraphModel)
    return local, remote


def inputs() -> list[torch.Tensor]:
    return [torch.randn(3, WIDTH, requires_grad=True)]


def test_every_kind_of_block(plugin_server: ServerProcess, tmp_path: Path) -> None:
    local, remote = both(plugin_server, tmp_path / "cache", kinds())
    assert_same_module(local, remote)
    assert_same_runs(local, remote, inputs)
    assert_same_state(local, remote)


def test_classes_of_torch(plugin_server: ServerProcess, tmp_path: Path) -> None:
    steps = [
        {"call": "op:unsqueeze", "args": ["$x", 2], "out": "image"},
        {"call": "module:conv", "args": ["$image"], "out": "channels"},
        {"call": "op:transpose", "args": ["$channels", 1, 2], "out": "tokens"},
        {"call": "module:layers", "args": ["$tokens"], "out": "encoded"},
        {"call": "module:lstm", "args": ["$encoded"], "out": ["sequence", "state"]},
        {"call": "module:act", "args": ["$sequence"], "out": "out"},
    ]
    model_cfg = config(CLASSES, steps, {"out": "$out", "state": "$state"})
    local, remote = both(plugin_server, tmp_path / "cache", model_cfg)
    assert_same_module(local, remote)
    assert_same_runs(local, remote, inputs)
    assert_same_module(local, remote)
