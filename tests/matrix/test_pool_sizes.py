"""Sizes after a pool whose settings are lists, as configs of video models have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from support.compare import assert_same


class Pools(nn.Module):
    def __init__(self, *settings: Any) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(*settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) * 2

    def example_inputs(self) -> Any:
        return [{"x": torch.randn(2, 3, 9, 8)}]


@pytest.mark.parametrize("settings", [([3, 2], [2, 1], [1, 0]), ([3], [2], [1]), ((3, 3), 2, [1, 1]), ([2, 3],)])
def test_settings_may_be_lists(settings: Any) -> None:
    original = Pools(*settings)
    rebuilt = rebuilt_with_programs(original)
    for sides in ((9, 8), (12, 7)):
        x = torch.randn(4, 3, *sides)
        assert_same(rebuilt(x), original(x))
