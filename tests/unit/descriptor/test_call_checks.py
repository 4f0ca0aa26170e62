"""Hooks that check calls: in effect wherever the module is nested, and invisible to a trainer otherwise."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations

from matrix.portability import rebuilt_elsewhere
from model_factory.describe.describe import describe
from model_factory.errors import GraphExecutionError

INDICES, WRONG = torch.tensor([[0, 6]]), torch.tensor([[0, 7]])


def bag() -> Any:
    return rebuilt_elsewhere(nn.Sequential(nn.Sequential(nn.EmbeddingBag(7, 4, mode="sum"))))


def test_nested_module_checks_its_calls() -> None:
    with pytest.raises(GraphExecutionError, match="rows of the weight"):
        bag()(WRONG)


def test_copies_and_pickles_check_their_calls() -> None:
    module = bag()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert torch.equal(twin(INDICES), module(INDICES))
        with pytest.raises(GraphExecutionError, match="rows of the weight"):
            twin(WRONG)


@pytest.mark.parametrize(
    "original",
    [
        nn.EmbeddingBag(7, 4),
        nn.CTCLoss(),
        nn.FractionalMaxPool2d(2, output_size=2),
        nn.MaxPool1d(2, padding=1, dilation=2),
        parametrizations.weight_norm(nn.Linear(2, 3)),
        nn.Sequential(parametrizations.weight_norm(nn.LSTM(2, 3), "weight_hh_l0")),
    ],
    ids=lambda item: type(item).__name__,
)
def test_second_description_equals_the_first(original: nn.Module) -> None:
    rebuilt = rebuilt_elsewhere(original)
    assert describe(rebuilt) == describe(original)
    assert repr(rebuilt) == repr(original)
    assert list(rebuilt.state_dict()) == list(original.state_dict())


@pytest.mark.parametrize("original", [nn.MaxPool2d(3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3)], ids=repr)
def test_common_modules_have_no_hook(original: nn.Module) -> None:
    assert not rebuilt_elsewhere(original)._forward_pre_hooks


def test_meta_and_fake_tensors_have_no_values_to_check() -> None:
    module = bag()
    assert copy.deepcopy(module).to("meta")(WRONG.to("meta")).shape == (1, 4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert module(mode.from_tensor(WRONG)).shape == (1, 4)


def test_compiled_module_checks_its_calls() -> None:
    compiled = torch.compile(bag(), backend="eager", fullgraph=True)
    assert compiled(INDICES).shape == (1, 4)
    with pytest.raises(RuntimeError, match="embedding bag"):
        compiled(WRONG)


def test_exported_module() -> None:
    module = bag()
    exported = torch.export.export(module, (INDICES,))
    assert torch.equal(exported.module()(INDICES), module(INDICES))
