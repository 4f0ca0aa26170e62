"""Containers that a forward makes of its own layers and blocks: slices, sums, and new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import NotPortableError
from support.compare import assert_same, observe

WIDTH = 4


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.linear(x)) * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.own = nn.Sequential(Scaled(), nn.BatchNorm1d(6), Scaled())
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), Scaled(), nn.ReLU()])
        self.stages = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)])

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2)}]


def tensor(size: int) -> Tensor:
    return torch.rand(size, 6, WIDTH, generator=torch.Generator().manual_seed(size))


def slice_of_layers(self: Any, x: Tensor) -> Any:
    features = self.net[:-1](x)
    return self.net[-1](features), features


def slice_of_blocks(self: Any, x: Tensor) -> Any:
    return self.own[1:](self.own[:1](x))


def list_slice(self: Any, x: Tensor) -> Any:
    for layer in self.layers[1:]:
        x = layer(x)
    return x


def new_container(self: Any, x: Tensor) -> Any:
    return nn.Sequential(self.net[0], *self.layers, nn.Tanh())(x)


def of_containers(self: Any, x: Tensor) -> Any:
    return nn.Sequential(*self.stages[:2], self.own)(x)


def of_children(self: Any, x: Tensor) -> Any:
    return nn.Sequential(*list(self.net.children())[:-1])(x) + nn.ModuleDict({"a": self.net[0]})["a"](x)


def added(self: Any, x: Tensor) -> Any:
    return (self.net + self.own)(x)


FORWARDS = [slice_of_layers, slice_of_blocks, list_slice, new_container, of_containers, of_children, added]


def block(forward: Callable[..., Any]) -> nn.Module:
    return type(forward.__name__, (Block,), {"forward": forward})()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("forward", FORWARDS)
def test_a_container_of_own_modules_equals_the_original(forward: Callable[..., Any], training: bool) -> None:
    original = block(forward)
    rebuilt = rebuilt_with_programs(original)
    for size in (2, 5, 3):
        for module in (original, rebuilt):
            module.train(training)
        assert_same(observe(rebuilt, {"x": tensor(size)}), observe(original, {"x": tensor(size)}), str(size))


def test_a_replaced_layer_of_a_slice_takes_effect() -> None:
    original = block(slice_of_layers)
    rebuilt = rebuilt_with_programs(original)
    layer = nn.Linear(WIDTH, WIDTH)
    for module in (original, rebuilt):
        module.net[0] = layer  # type: ignore[index,operator]
    assert_same(rebuilt(tensor(2)), original(tensor(2)))


def test_a_new_layer_with_weights_is_refused() -> None:
    outside = nn.Linear(WIDTH, WIDTH)

    def forward(self: Any, x: Tensor) -> Any:
        return nn.Sequential(self.net[0], outside)(x)

    with pytest.raises(NotPortableError, match="not one of the module's children"):
        rebuilt_with_programs(block(forward))
