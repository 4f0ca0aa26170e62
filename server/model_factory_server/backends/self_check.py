"""A small block in every backend, for checks of a deployment: the block needs a recorded program.

A server builds the block before the status SERVING; ``model-factory doctor`` builds and runs the block on a trainer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model_factory.blocks import SELF_CHECK


class SelfCheck(nn.Module):
    """Calls a layer, reads a parameter, creates positions and joins values of several sizes, as most blocks do.

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
        """Return a call with ``x (2, 3, width)``."""
        return [{"x": torch.zeros(2, 3, self.width)}]


def register(registry: Any) -> None:
    """Register the block with the registry of this package or of a checkout."""
    registry.register_module(SELF_CHECK, SelfCheck)
