"""Equality to the last bit, of values, models and whole trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from model_factory.program.runtime.named_results import RecordObject

STEPS = 10
LEARNING_RATE = 1e-3


def assert_same(actual: Any, expected: Any, where: str = "value") -> None:
    """Check nesting, types, dtypes, shapes and every bit."""
    assert type(actual) is type(expected), f"{where}: {type(actual).__name__} is not {type(expected).__name__}"
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype, f"{where}: {actual.dtype} is not {expected.dtype}"
        assert actual.shape == expected.shape, f"{where}: {tuple(actual.shape)} is not {tuple(expected.shape)}"
        different = actual.ne(expected) & ~(actual.isnan() & expected.isnan())
        assert not different.any(), f"{where}: {int(different.sum())} of {expected.numel()} numbers differ"
    elif isinstance(expected, Mapping):
        assert list(actual) == list(expected), f"{where}: keys {list(actual)} are not {list(expected)}"
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, RecordObject):
        assert_same(vars(actual), vars(expected), where)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), f"{where}: {len(actual)} items are not {len(expected)}"
        for index, value in enumerate(expected):
            assert_same(actual[index], value, f"{where}[{index}]")
    else:
        assert actual == expected, f"{where}: {actual!r} is not {expected!r}"


def assert_same_state(actual: nn.Module, expected: nn.Module) -> None:
    """Check parameters and buffers: names, order, values, and what is trained."""
    assert_same(dict(actual.state_dict()), dict(expected.state_dict()), "state")
    assert [name for name, _ in actual.named_parameters()] == [name for name, _ in expected.named_parameters()]
    trained = [[item.requires_grad for item in model.parameters()] for model in (actual, expected)]
    assert trained[0] == trained[1]
    assert_same(dict(actual.named_buffers()), dict(expected.named_buffers()), "buffers")
    assert {name: module.training for name, module in actual.named_modules()} == {
        name: module.training for name, module in expected.named_modules()
    }


def assert_same_runs(actual: nn.Module, expected: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Check one call: outputs, gradients of parameters and inputs, buffers and the random state afterwards."""
    assert_same(observe(actual, inputs), observe(expected, inputs), "run")


def observe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    method: str = "forward",
    *,
    input_gradients: bool = True,
    convert: Callable[[Any], Any] = lambda outputs: outputs,
) -> dict[str, Any]:
    """Everything that can be seen of one call and its backward; ``convert`` makes plain data of the outputs."""
    model.zero_grad()
    fresh = map_tensors(inputs, lambda leaf: leaf.clone().requires_grad_(input_gradients and leaf.is_floating_point()))
    given = map_tensors(fresh, torch.Tensor.clone)  # no leaves of autograd, since a forward may write to its inputs
    torch.manual_seed(3)
    outputs = convert((model if method == "forward" else getattr(model, method))(**given))
    loss = loss_of(outputs)
    if loss.requires_grad:
        loss.backward()
    return {
        "outputs": map_tensors(outputs, torch.Tensor.detach),
        "inputs after the call": [leaf.detach() for leaf in leaves(given)],
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "input gradients": [leaf.grad for leaf in leaves(fresh)],
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "random state": torch.get_rng_state(),
    }


def train(model: nn.Module, inputs: Mapping[str, Any], steps: int = STEPS) -> list[float]:
    """Train with AdamW on one batch from a fixed seed; the loss of each step."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(**map_tensors(inputs, torch.Tensor.clone)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def loss_of(outputs: Any) -> torch.Tensor:
    """A loss that every output takes part in."""
    return torch.stack([leaf.float().square().mean() for leaf in leaves(outputs)]).sum()


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors inside a nested value, in order."""
    found: list[torch.Tensor] = []
    map_tensors(value, found.append)
    return found


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """The same nesting with every tensor replaced; a tuple with names becomes a dict."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if names := getattr(value, "_fields", ()):
        value = dict(zip(names, value, strict=True))
    if isinstance(value, RecordObject):
        return RecordObject(map_tensors(vars(value), function))
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, function) for item in value)
    return value
