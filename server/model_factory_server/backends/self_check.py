"""A small block that every backend has, so that a deployment can be checked with a block that needs a program.

A server builds the block before it says SERVING, and ``model-factory doctor`` builds and runs the block from a trainer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model_factory.blocks import SELF_CHECK


class SelfCheck(nn.Module):
    """Does what most blocks do: calls a layer, reads a parameter, makes positions, joins values of several sizes.

    Example:
        >>> SelfCheck(width=3)(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 6, 3])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x (batch, steps, width)`` to ``(batch, steps + 1, width)``.

        Step t is ``layer(x[:, t]) * scale + sin(t)``; the last step is ``x[:, 0]``.
        """
        positions = torch.arange(x.shape[1], device=x.device).to(x.dtype)
        steps = self.layer(x) * self.scale + torch.sin(positions)[:, None]
        return torch.cat([steps, x[:, :1]], dim=1)

    def example_inputs(self) -> list[dict[str, Tensor]]:
        """Return one call on ``x (2, 3, width)``."""
        return [{"x": torch.zeros(2, 3, self.width)}]


def register(registry: Any) -> None:
    """Register the block with the registry of this package or of a checkout."""
    registry.register_module(SELF_CHECK, SelfCheck)
