"""Blocks against the numbers of the reference: state, types, outputs and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from model_factory_server.constructor import Permissions, build_model, default_registry, instantiate
from support.goldens import NAMES, TOLERANCE, Golden


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


def check_numbers(module: nn.Module, golden: Golden, prefix: str) -> None:
    """Load the golden state, whose keys start with ``prefix``, and compare outputs and gradients."""
    state = {key.removeprefix(prefix): value for key, value in golden.tensors("state/").items()}
    module.load_state_dict(state, strict=True)
    module.eval()
    outputs = module(**golden.inputs)
    torch.testing.assert_close(outputs, golden.outputs, **TOLERANCE)
    sum((leaf**2).sum() for leaf in leaves(outputs)).backward()
    gradients = {prefix + name: parameter.grad for name, parameter in module.named_parameters()}
    torch.testing.assert_close(gradients, golden.tensors("grad/"), **TOLERANCE)


def test_every_block_has_a_golden() -> None:
    types = {spec["_type_"] for name in NAMES for spec in Golden(name).config.modules.values()}
    assert {entry.name for entry in default_registry().blocks() if "block" in entry.tags} <= types


def test_model_is_the_reference_model(golden: Golden) -> None:
    model = build_model(golden.config, default_registry(), Permissions())
    check_numbers(model, golden, "")


def test_state_order_and_types_are_the_reference_ones(golden: Golden) -> None:
    model = build_model(golden.config, default_registry(), Permissions())
    assert [name for name, _ in model.named_parameters()] == golden.param_order
    assert model.state_dict().keys() == golden.tensors("state/").keys()
    types = {path: type(module) for path, module in model.named_modules() if path in golden.modules}
    assert list(types) == list(golden.modules)
    for path, module_type in types.items():
        assert module_type.__module__.startswith("torch.nn.modules."), path
        assert module_type.__name__ == golden.modules[path], path


@pytest.mark.parametrize("name", [name for name in NAMES if list(Golden(name).config.modules) == ["block"]])
def test_block_alone_is_the_reference_block(name: str) -> None:
    golden = Golden(name)
    block = instantiate(golden.config.modules["block"], default_registry(), Permissions())
    check_numbers(block, golden, "graph_modules.block.")
