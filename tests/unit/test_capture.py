"""The comparison of ways to capture a module asks what it says, on one small model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.capture import QUESTIONS, WAYS, Example, examine


class Small(nn.Module):
    """Layers whose modes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.linear(x)))


class Branches(Small):
    """What torch.fx does not capture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.shape[0] > 1 else x


@pytest.mark.parametrize(
    ("way", "missing"),
    [
        ("torch.export, non-strict", {"keeps types", "switches"}),
        ("torch.fx", set()),
        ("model-factory", set()),
    ],
)
def test_what_comes_back(way: str, missing: set[str]) -> None:
    outcomes, reason = examine(WAYS[way], Example("small", Small(), {"x": torch.rand(4, 3)}))
    assert reason == ""
    assert {question for question, holds in outcomes.items() if not holds} == missing


def test_a_capture_that_fails_has_a_reason() -> None:
    outcomes, reason = examine(WAYS["torch.fx"], Example("branches", Branches(), {"x": torch.rand(4, 3)}))
    assert outcomes == dict.fromkeys(QUESTIONS, False)
    assert "control flow" in reason
