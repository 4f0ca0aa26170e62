"""The claim that the project stands on: a remote module is the in-process one, bit for bit on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from support.cases import CASES, Case
from support.compare import STEPS, assert_same, assert_same_runs, assert_same_state, observe, train

MakePair = Callable[[Case | str], tuple[nn.Module, nn.Module]]

# Batch and sequence sizes, none of them those of the blocks' own examples (batch 2, sequences from 3 on).
SIZES = [(1, 1), (1, 9), (5, 2), (3, 12)]
DRAWS_RANDOM_NUMBERS = {"info_embedder", "action_decoder", "vae_prior", "vae_posterior", "conv_graph", "mlp"}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_state_is_equal(case: Case, make_pair: MakePair) -> None:
    remote, local = make_pair(case)
    assert_same_state(remote, local)
    assert len(remote.state_dict()) > 0 or case.name == "multimodal_bridge"


def test_module_tree_is_equal_and_its_leaves_are_torch_types(case: Case, make_pair: MakePair) -> None:
    remote, local = make_pair(case)
    assert [name for name, _ in remote.named_modules()] == [name for name, _ in local.named_modules()]
    for (name, ours), (_, theirs) in zip(remote.named_modules(), local.named_modules(), strict=True):
        if type(theirs).__module__.startswith("torch."):
            assert type(ours) is type(theirs), name
        assert "model_factory_server" not in type(ours).__module__, name


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("batch", "seq"), SIZES)
def test_outputs_and_gradients_are_equal(case: Case, make_pair: MakePair, training: bool, batch: int, seq: int) -> None:
    remote, local = (model.train(training) for model in make_pair(case))
    assert_same_runs(remote, local, case.inputs(batch, seq))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_ten_adamw_steps_are_equal(case: Case, make_pair: MakePair, training: bool) -> None:
    remote, local = (model.train(training) for model in make_pair(case))
    inputs = case.inputs(4, 5)
    losses = train(remote, inputs)
    assert losses == train(local, inputs)
    assert len(set(losses)) == STEPS, "the training did nothing"
    assert_same_state(remote, local)


@pytest.mark.parametrize("name", sorted(DRAWS_RANDOM_NUMBERS))
def test_train_mode_draws_random_numbers(name: str, make_pair: MakePair) -> None:
    """Otherwise the train-mode comparisons above would show nothing about dropout."""
    remote, _ = make_pair(name)
    before = torch.random.manual_seed(3).get_state()
    assert not observe(remote.train(), CASES[name].inputs(3, 4))["random state"].equal(before)
    assert_same(observe(remote.eval(), CASES[name].inputs(3, 4))["random state"], before)


@pytest.mark.parametrize("case_name", sorted(CASES))
def test_input_dtypes_other_than_the_recorded_ones(case_name: str, make_pair: MakePair) -> None:
    remote, local = (model.to(torch.float64).eval() for model in make_pair(case_name))
    inputs = {key: _double(value) for key, value in CASES[case_name].inputs(2, 6).items()}
    assert_same_runs(remote, local, inputs)


def _double(value: object) -> object:
    if isinstance(value, list):
        return [_double(item) for item in value]
    return value.double() if isinstance(value, torch.Tensor) else value
