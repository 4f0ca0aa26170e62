"""On a GPU: models that land there, and models that are made there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_factory import RemoteModelFactory
from model_factory.config.request import component_seed, read_request
from model_factory_server.backends.loading import load_backend
from model_factory_server.settings.server_settings import BackendSettings
from model_factory_server.worker.construction import construct
from support.cases import CASES
from support.compare import assert_same
from support.server import ServerProcess

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Start = Callable[..., ServerProcess]
MODEL = {"config_path": CASES["info_embedder"].config}


def on_the_host(model: Any) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    assert all(tensor.device.type == "cuda" for tensor in state.values())
    return {name: tensor.cpu() for name, tensor in state.items()}


def test_a_model_lands_on_the_gpu(make_remote: Callable[..., RemoteModelFactory]) -> None:
    landed = make_remote(device="cuda").build(MODEL)
    assert_same(on_the_host(landed), dict(make_remote().build(MODEL).state_dict()))


def test_a_model_is_made_on_the_gpu(start_server: Start, tmp_path: Path) -> None:
    server = start_server(None, "--device", "cuda")
    made = RemoteModelFactory(server.address, seed=3, cache_dir=tmp_path / "cache", device="cuda").build(MODEL)
    (component,) = read_request(MODEL, Path.cwd(), {}).components
    seed = component_seed(3, component.name)
    expected = construct(load_backend(BackendSettings()), component.config, seed, "cuda")
    assert_same(on_the_host(made), on_the_host(expected))
    assert server.stop() == 0
