"""Kernels of three tensors that broadcast: torch's fake kernels take symbols for sizes in Python's code only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from support.compare import assert_same, observe

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.rate = nn.Parameter(torch.rand(WIDTH))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2, 3)}]


def tensor(*sizes: int) -> Tensor:
    return torch.rand(*sizes, WIDTH, generator=torch.Generator().manual_seed(sum(sizes)))


class Lerp(Block):
    """As transformers on a sphere do, with a learned rate for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.lerp(self.linear(x), self.rate * 2)


class Addcmul(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.linear(x), x, self.rate * 2)


class Addcdiv(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addcdiv(self.linear(x), x, self.rate + 1)


class Baddbmm(Block):
    """As attention with a bias for each position of the keys."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(2)[:, None].baddbmm(self.linear(x), x.transpose(1, 2), beta=0.5)


class Addbmm(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addbmm(self.rate, x, self.linear.weight.expand(x.shape[0], -1, -1), alpha=0.5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", [Lerp, Addcmul, Addcdiv, Baddbmm, Addbmm])
def test_one_program_for_all_sizes(block: type[Block], training: bool) -> None:
    original = block().train(training)
    rebuilt = rebuilt_with_programs(original).train(training)
    for sizes in [(2, 3), (5, 2), (1, 1)]:
        inputs = {"x": tensor(*sizes)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(sizes))
