"""Experiments at their real size: the ones in use, where they are here, and ours with the same components.

What is built once serves all tests of this file, for their models have the same architectures.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory
from model_factory.config import resolve_file
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings, HubSettings
from support.cases import CONFIGS
from support.compare import assert_same, assert_same_state, loss_of
from support.hub import write_hub
from support.server import ServerProcess, running_server

ROOT = Path(__file__).parents[2]
IN_USE = ROOT.parent / "shared" / "configs"
SHARED = IN_USE / "vfp_single_expert"
EXAMPLE = ROOT / "examples" / "flow_policy"
# The example's config of each component of exp1.
FLOW_POLICY = {
    "info_embedder": EXAMPLE / "configs" / "observation_encoder.yaml",
    "action_decoder": EXAMPLE / "configs" / "velocity_decoder.yaml",
    "vae_prior": EXAMPLE / "configs" / "prior.yaml",
    "vae_posterior": EXAMPLE / "configs" / "posterior.yaml",
}
MIB = 1024 * 1024

# Components, parameters and MiB of weights of each experiment, and the folder of ours.
EXPERIMENTS = {
    "exp1": (("info_embedder", "action_decoder", "vae_prior", "vae_posterior"), 175, 668, "three_cameras"),
    "exp2": (
        ("info_embedder", "action_decoder", "vae_prior", "vae_posterior", "multimodal_bridge"),
        None,
        None,
        "four_cameras",
    ),
}
in_use = pytest.mark.skipif(not IN_USE.exists(), reason=f"the experiments in use are not here ({IN_USE})")
FILES = sorted(IN_USE.rglob("*.yaml"))


def configs(experiment: str, folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.yaml" for name in EXPERIMENTS[experiment][0]}


def ours(experiment: str) -> dict[str, Path]:
    return configs(experiment, CONFIGS / EXPERIMENTS[experiment][3])


@pytest.fixture
def both(
    server: ServerProcess, tmp_path: Path
) -> Iterator[Callable[[dict[str, Path]], Iterator[tuple[str, Any, Any]]]]:
    """Build the same components remotely and here, one at a time to keep memory low."""
    remote = RemoteModelFactory(server.address, seed=11, cache_dir=tmp_path / "cache")
    local = PolicyConstructorModelFactory(seed=11)

    def build(asked: dict[str, Path]) -> Iterator[tuple[str, Any, Any]]:
        models = remote.build(asked)
        assert list(models) == list(asked)
        for name, path in asked.items():
            yield name, models[name], local.build({name: path})[name]

    yield build
    remote.close()


def sizes(models: list[nn.Module]) -> tuple[int, int]:
    """Parameters, and bytes of parameters and buffers."""
    tensors = [item for model in models for item in (*model.parameters(), *model.buffers())]
    return sum(item.numel() for model in models for item in model.parameters()), sum(item.nbytes for item in tensors)


def inputs(name: str, experiment: str) -> dict[str, Any]:
    """A batch of one, with few tokens."""
    cameras = {"exp1": 3, "exp2": 4}[experiment]
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if name == "action_decoder":
        return {
            "time": torch.tensor([0.3]),
            "noise": random(1, 40, 24),
            "memory_input": random(1, 7, 512),
            "discrete_semantic_input": None,
        }
    if name.startswith("vae"):
        return {
            "cond_proprio": random(1, 2, 48),
            "cond_visual": random(1, 1, 1024, 3, 2),
            "cond_semantic": random(1, 3072),
            "action": random(1, 40, 24) if name == "vae_posterior" else None,
        }
    return {
        "cond_proprio": random(1, 2, 48),
        "cond_visual": [random(1, 3, 1024) for _ in range(cameras)],
        "cond_semantic": [random(1, 1, 3072) for _ in range(3)],
        "action": None,
    }


def check_run(name: str, experiment: str, remote: nn.Module, local: nn.Module) -> None:
    """One training step's forward and backward, dropout included."""
    outputs = []
    for model in (remote, local):
        torch.manual_seed(3)
        outputs.append(model(*inputs(name, experiment).values()))
        loss_of(outputs[-1]).backward()
    assert_same(outputs[0], outputs[1], name)
    for (key, mine), theirs in zip(remote.named_parameters(), local.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), key
        assert mine.grad is None or mine.grad.equal(theirs.grad), key
        mine.grad = theirs.grad = None


@pytest.mark.slow
@in_use
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_in_use_is_built_bit_for_bit(
    experiment: str, both: Callable[[dict[str, Path]], Iterator[tuple[str, Any, Any]]]
) -> None:
    models = []
    for name, remote, local in both(configs(experiment, SHARED / experiment)):
        assert_same_state(remote, local)
        check_run(name, experiment, remote, local)
        models.append(remote)
    check_size(experiment, models)


@pytest.mark.slow
def test_the_example_at_full_size_is_built_bit_for_bit(
    both: Callable[[dict[str, Path]], Iterator[tuple[str, Any, Any]]],
) -> None:
    models = []
    for name, remote, local in both(FLOW_POLICY):
        assert_same_state(remote, local)
        check_run(name, "exp1", remote, local)
        models.append(remote)
    check_size("exp1", models)


@pytest.mark.slow
def test_the_example_trains(server: ServerProcess) -> None:
    command = [sys.executable, EXAMPLE / "train.py", "--server", server.address, "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "built        4 models" in done.stdout
    counts = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) parameters", done.stdout)]
    assert sum(counts) == 175_200_808
    assert len(re.findall(r"^step ", done.stdout, re.MULTILINE)) == 2


def check_size(experiment: str, models: list[nn.Module]) -> None:
    _, millions, mebibytes, _ = EXPERIMENTS[experiment]
    parameters, weight_bytes = sizes(models)
    if millions is not None:
        assert round(parameters / 1e6) == millions
        assert round(weight_bytes / MIB) == mebibytes


@in_use
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_ours_have_the_components_and_sizes_of_those_in_use(experiment: str) -> None:
    factory = PolicyConstructorModelFactory()
    for name, path in configs(experiment, SHARED / experiment).items():
        theirs, mine = (factory.describe({"config_path": at}) for at in (path, ours(experiment)[name]))
        assert mine.parameters == theirs.parameters
        assert mine.bytes == theirs.bytes
        rows = [[(row.type, row.shapes) for row in item.modules] for item in (theirs, mine)]
        assert rows[0] == rows[1]


@in_use
@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.with_suffix("").parts[-3:]))
def test_every_config_in_use_is_well_formed(path: Path) -> None:
    assert resolve_file(path, {}).model.modules


# The other experiments in use, a component at a time to keep memory low


def block_inputs(path: Path) -> dict[str, Any] | None:
    """A small batch for the block of a config; None for blocks that the tests above have."""
    (spec,) = resolve_file(path, {}).model.modules.values()
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    match spec["_type_"]:
        case "a_encoder":
            return {"action": random(2, spec["action_chunk"], spec["action_dim"])}
        case "a_decoder":
            return {"embedding": random(2, spec["embedding_dim"])}
        case "dsrl_noise_latent_actor" | "dsrl_q_function":
            return {"flat_features": random(2, spec["input_dim"])}
        case "vfp_moe":
            return {
                "time": torch.tensor([0.3]),
                "noise": random(1, spec["transformer_action_chunk_size"], spec["action_dim"]),
                "memory_input": random(1, 7, spec["transformer_d_model"]),
                "discrete_semantic_input": None,
            }
        case "radiov3":
            return {"image": random(1, 3, 9, 14).sigmoid()}
    return None


OTHERS = [path for path in FILES if block_inputs(path) is not None]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder with a small model in the place of the external one."""
    return write_hub(tmp_path_factory.mktemp("radio") / "hub")


@pytest.fixture(scope="module")
def hub_server(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("radio_server") / "store"
    with running_server(store, "--hub-dir", str(hub), "--radio-version", "tiny") as process:
        yield process


@pytest.mark.slow
@in_use
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: "/".join(path.with_suffix("").parts[-3:]))
def test_a_component_in_use_trains_as_in_process(
    path: Path, hub: Path, hub_server: ServerProcess, tmp_path: Path
) -> None:
    """A training step, dropout included: the loss and every parameter and buffer afterwards."""
    settings = BackendSettings(hub=HubSettings(directory=hub, version="tiny"))
    results = []
    for factory in (
        RemoteModelFactory(hub_server.address, seed=11, cache_dir=tmp_path / "cache"),
        PolicyConstructorModelFactory(seed=11, backend=settings),
    ):
        model = factory.build({"config_path": path})
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        loss = loss_of(model(**block_inputs(path)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        results.append((loss.item(), dict(model.state_dict())))
        optimizer.zero_grad()
    assert_same(*results)
