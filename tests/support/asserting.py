"""Blocks with ``assert``; pytest writes such statements anew in test modules, and a compiler then finds decisions."""

import torch
from torch import Tensor, nn


class Asserts(nn.Module):
    """Asserts a condition on values."""

    def forward(self, x: Tensor) -> Tensor:
        assert (x > -100).all(), "x is too small"
        return x * 2

    def example_inputs(self) -> list[dict[str, Tensor]]:
        """Return an input for which the condition holds."""
        return [{"x": torch.zeros(2, 3)}]
