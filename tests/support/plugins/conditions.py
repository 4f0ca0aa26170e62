"""Blocks whose forward reads a layer's numbers, and leaves parts of its arguments unread."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Policy(nn.Module):
    """Drops observations at the rate of a layer, and scales by the width of another one."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, width)

    def forward(self, batch: dict[str, Any], iterations: int = 10) -> Tensor:  # noqa: ARG002
        kept = functional.dropout(batch["obs"], self.drop.p, self.training)
        y = self.head(kept)
        return y * y.shape[-1] ** -0.5

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"batch": {"obs": torch.zeros(2, self.head.in_features)}}]


def register(registry: Any) -> None:
    registry.register_module("conditions.Policy", Policy)
