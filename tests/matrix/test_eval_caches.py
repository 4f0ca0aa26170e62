"""Caches that a forward keeps in eval mode, and that ``train()`` drops."""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import NotPortableError
from support.compare import assert_same, observe

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.rand(WIDTH, 3))
        self.register_buffer("indices", torch.tensor([2, 0, 1, 1]), persistent=False)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.cache: dict[str, Tensor] = {}

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2)}]

    def bias(self, x: Tensor) -> Tensor:
        if self.training:
            return self.biases[:, self.indices]
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.biases[:, self.indices]
        return self.cache[key]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ self.bias(x)


class Cached(Block):
    """As attention with biases by position."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and self.cache:
            self.cache = {}
        return self


class ReturnsNothing(Cached):
    """Libraries forget the result of ``train()``."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


class Inside(nn.Module):
    attention_class: type[Block] = Cached

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = self.attention_class(), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.attention(x))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2)}]


def tensor(size: int) -> Tensor:
    return torch.rand(size, 6, WIDTH, generator=torch.Generator().manual_seed(size))


class InsideOfReturnsNothing(Inside):
    attention_class = ReturnsNothing


@pytest.mark.parametrize("block", [Cached, ReturnsNothing, Inside, InsideOfReturnsNothing])
def test_a_cache_until_train_is_left_out(block: type[nn.Module]) -> None:
    original = block()
    rebuilt = rebuilt_with_programs(original)
    for step in range(3):
        for module in (original, rebuilt):
            module.train()
            if step:
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter.mul_(0.5)
        inputs = {"x": tensor(2 + step)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs))
        for module in (original, rebuilt):
            module.eval()
        with torch.no_grad():
            for size in (2, 5, 2):
                assert_same(rebuilt(tensor(size)), original(tensor(size)))


class OfTheFirstCall(Cached):
    def bias(self, x: Tensor) -> Tensor:
        if self.training:
            return self.biases[:, self.indices]
        if "first" not in self.cache:
            self.cache["first"] = self.biases[:, self.indices] * x.mean()
        return self.cache["first"]


@pytest.mark.parametrize("block", [Block, OfTheFirstCall])
def test_other_caches_are_refused(block: type[nn.Module]) -> None:
    """A cache that outlives a training step has the old weights; a cache of values has the values of another call."""
    with pytest.raises(NotPortableError, match="keeps a value in"):
        rebuilt_with_programs(block())
