"""Blocks on a ResNet-34 against the numbers of the reference."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

from model_factory_server.constructor import Permissions, build_model, default_registry
from support.compare import leaves, map_tensors
from support.large_goldens import LARGE_NAMES, LargeGolden, check_gradients, check_outputs, load_formula
from support.resnet34 import weights


@pytest.fixture(params=LARGE_NAMES)
def golden(request: pytest.FixtureRequest) -> LargeGolden:
    return LargeGolden(request.param)


@pytest.fixture
def model(golden: LargeGolden) -> nn.Module:
    return build_model(golden.config, default_registry(load_resnet34=weights), Permissions()).eval()


def run(model: nn.Module, golden: LargeGolden, inputs: Any) -> Any:
    load_formula(model)
    random.seed(golden.python_seed)
    return model(**inputs)


def test_goldens_are_here() -> None:
    assert LARGE_NAMES == ["dsrl_img_encoder", "resfit_q_function", "resfit_residual_actor", "resnet34"]


def test_state_types_and_outputs(golden: LargeGolden, model: nn.Module) -> None:
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(shapes.items()) == list(golden.state_shapes.items())
    types = {path: type(module).__name__ for path, module in model.named_modules() if path in golden.modules}
    assert list(types.items()) == list(golden.modules.items())
    check_outputs(run(model, golden, copy.deepcopy(golden.inputs)), golden)


def test_gradients(golden: LargeGolden, model: nn.Module) -> None:
    """In float64: in float32, a value near zero in front of a ReLU may have another sign on another machine."""
    outputs = run(model.double(), golden, map_tensors(golden.inputs, torch.Tensor.double))
    sum(leaf.square().sum() for leaf in leaves(outputs)).backward()
    check_gradients(model, golden)
