"""Blocks that only source can carry: draws of Python's and NumPy's, and a forward that writes to parameters."""

import random

import numpy as np
import torch
from torch import Tensor, nn


class Samples(nn.Module):
    """Keeps some features by Python's generator and scales by NumPy's."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        kept = random.sample(range(x.shape[-1]), 3)
        return self.layer(x)[..., kept] * float(np.random.rand())

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(2, self.layer.in_features)}]


class Follows(nn.Module):
    """Moves a target's parameters towards the layer's in each forward, by values that decide."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layer, self.target = nn.Linear(width, width), nn.Linear(width, width)
        self.target.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rate = 0.5 if len(set(x.flatten().tolist())) > 1 else 0.25
            for own, followed in zip(self.target.parameters(), self.layer.parameters(), strict=True):
                own.lerp_(followed, rate)
        return self.layer(x) - self.target(x)

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(2, self.layer.in_features)}]
