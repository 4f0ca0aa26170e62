"""A plug-in of the tests': a block that decides by the values of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """Divides images by 255 where they are not between 0 and 1 yet."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, features)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("bytes_seen", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        image = self.drop(image)
        if image.max().item() > 1.5:
            self.bytes_seen += 1
            image = image / 255
        return self.layer(image)


def register(registry: Any) -> None:
    registry.register_module("normalised", Normalised)
