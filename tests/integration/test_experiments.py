"""Whole experiments: components are built over a server, and training equals the training of an in-process build."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from model_factory import RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES
from support.compare import assert_same, assert_same_state, loss_of
from support.experiments import EXPERIMENTS, LATENT, SENSE_INPUTS, Models, component
from support.server import ServerProcess

SEED = 11
MakeRemote = Callable[..., RemoteModelFactory]

SINGLE_EXPERT = {
    "single expert, bridge": ("multimodal_bridge", "info_embedder", "action_decoder", "vae_prior", "vae_posterior"),
    "single expert": ("info_embedder", "action_decoder", "vae_prior", "vae_posterior"),
}
"""Experiments whose components are files of ``tests/configs/small``."""


def train_steps(models: Models, loss: Callable[[Models, Callable[..., Tensor]], Tensor], steps: int = 2) -> list[float]:
    """Train all models together for a few steps, with batches and dropout from one seed."""
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.AdamW([item for model in models.values() for item in model.parameters()], lr=1e-3)
    losses = []
    for _ in range(steps):
        value = loss(models, lambda *shape: torch.randn(shape, generator=generator))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.item())
    return losses


def check(remote: Models, local: Models, loss: Callable[[Models, Callable[..., Tensor]], Tensor]) -> None:
    """Compare the state before and after training, the losses, and the random state after it."""
    assert list(remote) == list(local)
    for name in local:
        assert_same_state(remote[name], local[name])
    results = []
    for models in (remote, local):
        losses = train_steps(models, loss)
        results.append((losses, torch.get_rng_state()))
    assert results[0][0] == results[1][0]
    assert results[0][1].equal(results[1][1])
    assert results[0][0][0] != results[0][0][1], "a step has changed the models"
    for name in local:
        assert_same(dict(remote[name].state_dict()), dict(local[name].state_dict()), name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains_as_in_process(name: str, server: ServerProcess, make_remote: MakeRemote) -> None:
    experiment = EXPERIMENTS[name]
    configs = {component: dict(config) for component, config in experiment.components.items()}
    remote = make_remote(server.address, seed=SEED).build(configs)
    check(remote, PolicyConstructorModelFactory(seed=SEED).build(configs), experiment.loss)


@pytest.mark.parametrize("name", SINGLE_EXPERT)
def test_an_experiment_with_one_expert_trains_as_in_process(
    name: str, server: ServerProcess, make_remote: MakeRemote
) -> None:
    configs = {component: CASES[component].config for component in SINGLE_EXPERT[name]}

    def loss(models: Models, random: Callable[..., Tensor]) -> Tensor:
        given: Mapping[str, Any] = {name: CASES[name].make_inputs(2, 3, random) for name in models}
        return loss_of([model(**given[name]) for name, model in models.items()])

    remote = make_remote(server.address, seed=SEED).build(configs)
    check(remote, PolicyConstructorModelFactory(seed=SEED).build(configs), loss)


def test_an_argument_without_a_meaning_is_a_line_in_both_logs(
    server: ServerProcess, make_remote: MakeRemote, caplog: pytest.LogCaptureFixture
) -> None:
    """The blocks with a transformer ignore unknown arguments, as the originals do."""
    config = component("vfp_prior", SENSE_INPUTS, LATENT | {"dropout_of_inputs": 0.1})
    with caplog.at_level(logging.WARNING, "model_factory"):
        make_remote(server.address, seed=SEED).build({"prior": config})
    (line,) = (record.getMessage() for record in caplog.records if "dropout_of_inputs" in record.getMessage())
    assert line.startswith("prior: a constructor warns: model_factory_server.constructor.blocks")
    (line,) = (text for text in server.log.splitlines() if "dropout_of_inputs" in text)
    assert " WARNING model_factory_server." in line
