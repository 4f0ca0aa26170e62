from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Declares two methods besides its forward, with examples for one of them."""

    portable_methods = ("encode", "decode")

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.width = width
        self.down = nn.Sequential(nn.Linear(width, 2 * latent), nn.Dropout(0.2))
        self.up = nn.Linear(latent, width)

    def encode(self, x: Tensor, *, scale: float = 1.0, noisy: bool = False) -> tuple[Tensor, Tensor]:
        """Map ``(..., width)`` to mean and deviation, each ``(..., latent)``."""
        mean, deviation = self.down(x).chunk(2, dim=-1)
        return mean * scale + (torch.randn_like(mean) if noisy else 0.0), deviation.exp()

    def decode(self, z: Tensor) -> Tensor:
        """Map ``(..., latent)`` to ``(..., width)``."""
        return self.up(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])

    def interpolate(self, a: Tensor, b: Tensor) -> Tensor:
        return self.decode((self.encode(a)[0] + self.encode(b)[0]) / 2)

    def example_inputs(self) -> dict[str, list[dict[str, Any]]]:
        x = torch.zeros(3, self.width)
        return {"forward": [{"x": x}], "encode": [{"x": x}, {"x": x, "noisy": True}]}
