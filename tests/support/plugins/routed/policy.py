from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import routed.layers
import routed.scales as scaling

if TYPE_CHECKING:
    from not_installed_anywhere import Nothing  # noqa: F401

try:
    import not_installed_either
except ImportError:
    not_installed_either = None


class Router(nn.Module):
    """Sends each token to the expert that its values choose: Python decides, so no program can stand for it."""

    def __init__(self, width: int, experts: int, corrector: nn.Module | None = None) -> None:
        super().__init__()
        self.corrector = corrector
        self.width = width
        self.gate = nn.Linear(width, experts)
        self.norm = nn.BatchNorm1d(width)
        self.experts = nn.ModuleList(routed.layers.Expert(width) for _ in range(experts))
        self.calls = 0
        self.register_buffer("chosen", torch.zeros(experts, dtype=torch.int64))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(n, width)`` to ``(n, width)``."""
        if self.corrector is not None:
            tokens = self.corrector(tokens)
        scores = self.gate(tokens).softmax(-1)
        choice = scores.argmax(-1).tolist()
        result = torch.zeros_like(tokens)
        for index in sorted(set(choice)):
            expert = self.experts[index]
            assert isinstance(expert, routed.layers.Expert)
            rows = torch.tensor([row for row, chosen in enumerate(choice) if chosen == index])
            corrected = expert.correct(tokens[rows], scaling.checked(self.calls))
            result = result.index_add(0, rows, corrected * scores[rows, index, None])
            self.chosen[index] += len(rows)
        self.calls += 1
        return self.norm(tokens + result)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"tokens": torch.randn(5, self.width)}]
