"""Blocks on a ResNet-34 through a server: weights of the operator's hub folder, goldens, and a training step.

``dsrl_img_encoder`` writes to its caller's dict and ``resfit_q_function`` draws from Python's generator, so the server
sends the source code of these two.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory
from model_factory.errors import BuildError, SourceError
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings, HubSettings
from support.compare import assert_same, assert_same_state, leaves, map_tensors
from support.experiments import RESFIT
from support.large_goldens import LARGE_NAMES, LargeGolden, check_gradients, check_outputs, load_formula
from support.resnet34 import NAME, write_weights
from support.server import ServerProcess, running_server

SEED = 7
AS_SOURCE = ("dsrl_img_encoder", "resfit_q_function")
slow = pytest.mark.slow  # each records two or three networks
NAMES = [pytest.param(name, marks=() if name == "resnet34" else slow) for name in LARGE_NAMES]
MakeRemote = Callable[..., RemoteModelFactory]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_weights(folder, 0.5)
    return folder


@pytest.fixture(scope="module")
def hub_server(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("resnet") / "store"
    with running_server(store, "--hub-dir", str(hub), "--share-source") as process:
        yield process


@pytest.fixture(scope="module")
def build(hub_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Build the model of a golden, once for all tests; each test gets a copy."""
    cache = tmp_path_factory.mktemp("cache")
    with RemoteModelFactory(hub_server.address, seed=SEED, cache_dir=cache, trust_source=True) as factory:
        make = functools.cache(lambda name: factory.build({"config_path": LargeGolden(name).path}))
        yield lambda name: copy.deepcopy(make(name))


def run(model: nn.Module, golden: LargeGolden, inputs: Any) -> Any:
    load_formula(model)
    random.seed(golden.python_seed)
    return model(**inputs)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_operators(name: str, build: Callable[[str], Any], hub: Path) -> None:
    """The weights of the file, and all other values as drawn in process."""
    settings = BackendSettings(hub=HubSettings(directory=hub))
    local = PolicyConstructorModelFactory(seed=SEED, backend=settings).build({"config_path": LargeGolden(name).path})
    assert_same_state(build(name), local)
    networks = [module for module in build(name).modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    assert networks
    assert all(convolution.weight.eq(0.5).all() for convolution in networks)


@pytest.mark.parametrize("name", NAMES)
def test_goldens_agree_over_the_remote_path(name: str, build: Callable[[str], Any]) -> None:
    golden, model = LargeGolden(name), build(name).eval()
    assert isinstance(model.graph_modules["block"], ProgramModule) == (name not in AS_SOURCE)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(shapes.items()) == list(golden.state_shapes.items())
    found = {path: type(module).__name__ for path, module in model.named_modules() if path in golden.modules}
    assert list(found.items()) == list(golden.modules.items())
    check_outputs(run(model, golden, copy.deepcopy(golden.inputs)), golden)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_over_the_remote_path(name: str, build: Callable[[str], Any]) -> None:
    """In float64, as in process."""
    golden, model = LargeGolden(name), build(name).eval().double()
    outputs = run(model, golden, map_tensors(golden.inputs, torch.Tensor.double))
    sum(leaf.square().sum() for leaf in leaves(outputs)).backward()
    check_gradients(model, golden)


@slow
def test_training_is_the_in_process_training(hub: Path, hub_server: ServerProcess, make_remote: MakeRemote) -> None:
    configs = dict(RESFIT.components)
    settings = BackendSettings(hub=HubSettings(directory=hub))
    results = []
    for factory in (
        make_remote(hub_server.address, seed=SEED),
        PolicyConstructorModelFactory(seed=SEED, backend=settings),
    ):
        built = factory.build(configs)
        load_formula(built["residual_actor"])
        generator = torch.Generator().manual_seed(4)
        optimizer = torch.optim.SGD(built["residual_actor"].parameters(), lr=1e-3)
        loss = RESFIT.loss(built, lambda *shape, generator=generator: torch.randn(shape, generator=generator))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        results.append((loss.item(), dict(built["residual_actor"].state_dict())))
    assert_same(*results)


@slow
def test_source_needs_trust(hub_server: ServerProcess, make_remote: MakeRemote) -> None:
    with pytest.raises(SourceError, match=r"block \(ResfitQFunction\): the forward draws random numbers from Python"):
        make_remote(hub_server.address).build({"critic": LargeGolden("resfit_q_function").path})


def test_without_weights_the_error_names_the_file_and_the_flags(server: ServerProcess, make_remote: MakeRemote) -> None:
    with pytest.raises(BuildError, match=rf"--hub-dir as checkpoints/{NAME}, or start the server with") as caught:
        make_remote(server.address).build({"encoder": LargeGolden("resnet34").path})
    assert "resnet34.yaml:" in str(caught.value)
