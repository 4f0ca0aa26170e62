"""``torch.einsum`` of several tensors: the order of contraction depends on sizes, and is that of the original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from model_factory.program.runtime.program_module import ProgramModule
from support.compare import assert_same, observe
from support.recording import InProcessRecorder

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.rand(2, 6, WIDTH)}]


class Three(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,jk,kl->bil", x, self.one, self.two)


class WithEllipsis(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...j,jk,kl,l->...k", x, self.one, self.two, self.two[0])


class Five(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,jk,kl,lm,m->bi", x, self.one, self.two, self.one, self.two[0])


@pytest.mark.parametrize("block", [Three, WithEllipsis, Five])
def test_the_order_is_the_original_s_at_all_sizes(block: type[Block]) -> None:
    original = block()
    rebuilt = rebuilt_elsewhere(block())
    assert isinstance(rebuilt, ProgramModule)
    rebuilt._recorder = recorder = InProcessRecorder(block)
    for sizes in [(2, 6), (1, 1), (3, 5), (1, 2), (7, 9), (1, 3), (2, 2)]:
        inputs = {"x": torch.rand(*sizes, WIDTH, generator=torch.Generator().manual_seed(sum(sizes)))}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(sizes))
    assert recorder.calls


def test_one_program_holds_for_sizes_with_the_same_order() -> None:
    original = Three()
    rebuilt = rebuilt_with_programs(original)
    for sizes in [(2, 6), (8, 8), (3, 50)]:
        inputs = {"x": torch.rand(*sizes, WIDTH)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(sizes))
