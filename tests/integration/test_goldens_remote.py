"""The reference's numbers, through the whole remote path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory
from support.compare import leaves
from support.goldens import DATA, NAMES, TOLERANCE, Golden
from support.server import ServerProcess


@pytest.fixture(scope="module")
def models(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, nn.Module]]:
    factory = RemoteModelFactory(server.address, seed=0, cache_dir=tmp_path_factory.mktemp("goldens"))
    yield factory.build({name: Golden(name).path for name in NAMES})
    factory.close()


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_goldens_are_the_references() -> None:
    shared = Path(__file__).parents[3] / "shared" / "goldens"
    if not shared.exists():
        pytest.skip(f"{shared} is not here")
    for name in NAMES:
        for suffix in (".yaml", ".safetensors"):
            assert (shared / name).with_suffix(suffix).read_bytes() == (DATA / name).with_suffix(suffix).read_bytes()


def test_keys_order_and_types(golden: Golden, models: dict[str, nn.Module]) -> None:
    model = models[golden.name]
    assert [name for name, _ in model.named_parameters()] == golden.param_order
    assert model.state_dict().keys() == golden.tensors("state/").keys()
    found = {path: type(module) for path, module in model.named_modules() if path in golden.modules}
    assert list(found) == list(golden.modules)
    for path, cls in found.items():
        assert cls.__module__.startswith("torch.nn.modules."), path
        assert cls.__name__ == golden.modules[path], path


def test_state_outputs_and_gradients(golden: Golden, models: dict[str, nn.Module]) -> None:
    model = models[golden.name]
    model.load_state_dict(golden.tensors("state/"), strict=True)
    model.eval()
    outputs = model(**golden.inputs)
    torch.testing.assert_close(outputs, golden.outputs, **TOLERANCE)
    sum(leaf.square().sum() for leaf in leaves(outputs)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(gradients, golden.tensors("grad/"), **TOLERANCE)


def test_no_golden_needs_the_server_to_be_asked_again(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    """Every call above is one that the blocks' own examples cover: a trainer need not wait for a recording."""
    recorded = [module for model in models.values() for module in model.modules() if hasattr(module, "_recorder")]
    assert recorded
    for module in recorded:
        assert list(module._recorder.known(module._path)) == [], module
