"""The policy networks of examples/plugins: built remotely, trained without their code, equal to the in-process ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from model_factory import RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same, assert_same_runs, assert_same_state, loss_of, observe, train
from support.coverage import assert_on_page
from support.server import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
CONFIGS = {name: EXAMPLES / f"{name}.yaml" for name in ("act", "diffusion_unet", "film_gru", "lstm", "resnet")}
SEED = 7

Inputs = dict[str, Any]
MakeRemote = Callable[..., RemoteModelFactory]


def act(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> Inputs:
    is_pad = torch.arange(6)[None] >= torch.arange(3, 3 + batch)[:, None]
    return {
        "proprio": random(batch, 9),
        "visual": random(batch, seq, 10),
        "actions": random(batch, 6, 4),
        "is_pad": is_pad,
    }


def diffusion_unet(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> Inputs:
    return {"noisy": random(batch, 4 * seq, 4), "timestep": torch.arange(batch), "condition": random(batch, 7)}


def film_gru(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> Inputs:
    return {"observations": random(batch, seq, 10), "goal": random(batch, 6), "hidden": None}


def lstm(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> Inputs:
    return {"observations": random(batch, seq, 10), "state": None}


def resnet(batch: int, seq: int, random: Callable[..., torch.Tensor]) -> Inputs:
    return {"images": random(batch, 3, 30 + seq, 41)}


MAKERS = {function.__name__: function for function in (act, diffusion_unet, film_gru, lstm, resnet)}


def inputs(name: str, batch: int, seq: int) -> Inputs:
    generator = torch.Generator().manual_seed(batch + seq)
    return MAKERS[name](batch, seq, lambda *shape: torch.randn(shape, generator=generator))


@pytest.fixture(scope="module")
def policy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies") / "cache"


@pytest.fixture
def remote(plugin_server: ServerProcess, make_remote: MakeRemote, policy_cache: Path) -> dict[str, nn.Module]:
    return make_remote(plugin_server.address, cache_dir=policy_cache).build(CONFIGS)


@pytest.fixture
def local(local_with_plugins: PolicyConstructorModelFactory) -> dict[str, nn.Module]:
    return local_with_plugins.build(CONFIGS)


def test_they_train_without_their_code(
    plugin_server: ServerProcess, make_remote: MakeRemote, policy_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "policies", None)  # importing it fails
    remote = make_remote(plugin_server.address, cache_dir=policy_cache).build(CONFIGS)
    for name, model in remote.items():
        losses = train(model, inputs(name, 4, 5), steps=15)
        assert losses[-1] < 0.9 * losses[0], name


@pytest.mark.parametrize("name", MAKERS)
def test_each_is_the_in_process_policy(
    name: str, remote: dict[str, nn.Module], local: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At sizes that were not recorded, and without asking the server for more."""
    ours, theirs = remote[name], local[name]
    assert_same_state(ours, theirs)
    assert_on_page(name, ours)
    for module in ours.modules():
        if hasattr(module, "_recorder"):
            monkeypatch.setattr(module, "_recorder", None)
    for training in (False, True):
        for batch, seq in ((2, 3), (3, 9)):
            assert_same_runs(ours.train(training), theirs.train(training), inputs(name, batch, seq))
    assert train(ours, inputs(name, 2, 4)) == train(theirs, inputs(name, 2, 4))


def test_the_cvae_with_and_without_actions(remote: dict[str, nn.Module], local: dict[str, nn.Module]) -> None:
    for training in (True, False):
        given = inputs("act", 3, 2)
        for change in ({}, {"is_pad": None}, {"actions": None, "is_pad": None}):
            runs = [observe(item["act"].train(training), given | change) for item in (remote, local)]
            assert_same(*runs, f"{training} {change}")
    predicted = remote["act"].eval()(**inputs("act", 3, 2) | {"actions": None, "is_pad": None})
    assert predicted["mean"] is None
    assert predicted["actions"].shape == (3, 6, 4)


@pytest.mark.parametrize(("name", "state"), [("film_gru", "hidden"), ("lstm", "state")])
def test_rollouts_carry_their_state(
    name: str, state: str, remote: dict[str, nn.Module], local: dict[str, nn.Module]
) -> None:
    episode = inputs(name, 2, 6)
    whole = remote[name].eval()(**episode)
    actions = []
    carried: dict[int, Any] = {0: None, 1: None}
    for step in range(6):
        now = episode | {"observations": episode["observations"][:, step : step + 1]}
        predicted = [item[name].eval()(**now | {state: carried[side]}) for side, item in enumerate((remote, local))]
        assert_same(*predicted, f"step {step}")
        carried = {side: outputs[state] for side, outputs in enumerate(predicted)}
        actions.append(next(iter(predicted[0].values())))
    torch.testing.assert_close(torch.cat(actions, dim=1), next(iter(whole.values())))


def test_batch_norm_becomes_sync_batch_norm(remote: dict[str, nn.Module], local: dict[str, nn.Module]) -> None:
    """Its training forward needs CUDA; the types, the state and the forward of eval do not."""
    train(remote["resnet"], inputs("resnet", 2, 4)), train(local["resnet"], inputs("resnet", 2, 4))
    ours, theirs = (nn.SyncBatchNorm.convert_sync_batchnorm(item["resnet"]).eval() for item in (remote, local))
    kinds = [type(module) for module in ours.modules()]
    assert kinds.count(nn.SyncBatchNorm) == 10
    assert nn.BatchNorm2d not in kinds
    assert_same_state(ours, theirs)
    assert_same_runs(ours, theirs, inputs("resnet", 3, 5))


def test_ddp_finds_every_output(remote: dict[str, nn.Module], local: dict[str, nn.Module], tmp_path: Path) -> None:
    """One rank: the reducer's hooks and its search for outputs are the real ones."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        for name in MAKERS:
            seen = []
            for model in (remote[name].train(), local[name].train()):
                wrapped = DistributedDataParallel(model)
                torch.manual_seed(2)
                for _ in range(2):
                    model.zero_grad()
                    loss_of(wrapped(**inputs(name, 2, 4))).backward()
                seen.append({key: item.grad for key, item in model.named_parameters()})
            assert_same(*seen, name)
    finally:
        distributed.destroy_process_group()
