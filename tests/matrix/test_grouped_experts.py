"""Mixtures of experts that multiply each expert's rows in one call, with the ends of the groups as a tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from support.compare import assert_same_runs

WIDTH, EXPERTS, CHOSEN = 8, 4, 2


class Experts(nn.Module):
    """Rows sorted by expert, a product of groups, and the rows in their own order again."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.zeros(2, 3, WIDTH)}]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        weights, experts = self.router(rows).softmax(-1).topk(CHOSEN)
        chosen, order = experts.reshape(-1).sort()
        counts = torch.histc(chosen.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
        ends = torch.cumsum(counts, dim=0, dtype=torch.int32)
        products = torch._grouped_mm(rows[order // CHOSEN], self.weight.transpose(-2, -1), offs=ends)
        places = torch.empty_like(order)
        places[order] = torch.arange(order.size(0), device=x.device)
        result = (products * weights.reshape(-1)[order, None])[places].view(-1, CHOSEN, WIDTH).sum(1)
        return result.view_as(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_rows_of_experts_are_multiplied_in_groups(training: bool) -> None:
    torch.manual_seed(0)
    original = Experts()
    rebuilt = rebuilt_with_programs(original).train(training)
    original.train(training)
    for shape in ((2, 3, WIDTH), (5, 1, WIDTH), (1, 9, WIDTH)):
        assert_same_runs(rebuilt, original, {"x": torch.randn(shape)})
