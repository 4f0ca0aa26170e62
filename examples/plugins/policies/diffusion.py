"""A conditional U-Net over time: the denoiser of a diffusion policy (Chi et al. 2023, section IV)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class TimestepEmbedding(nn.Module):
    """Sines and cosines of a diffusion step at many frequencies, and two layers on them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(dim // 2) / (dim // 2 - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, timestep: Tensor) -> Tensor:
        """Map steps ``(batch,)`` to ``(batch, dim)``."""
        angles = timestep[:, None] * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=-1))


class ConditionedBlock(nn.Module):
    """Two convolutions over time with a residual connection; a condition scales and shifts the features in between."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int, groups: int, kernel_size: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.first = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=padding),
            nn.GroupNorm(groups, out_channels),
            nn.Mish(),
        )
        self.second = nn.Sequential(
            nn.Conv1d(out_channels, out_channels, kernel_size, padding=padding),
            nn.GroupNorm(groups, out_channels),
            nn.Mish(),
        )
        self.condition = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, 2 * out_channels))
        same = in_channels == out_channels
        self.residual = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map ``x (batch, in, time)`` and ``condition (batch, c)`` to ``(batch, out, time)``."""
        scale, shift = self.condition(condition).unsqueeze(-1).chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.residual(x)


class ConditionalUNet1d(nn.Module):
    """Predicts the noise in a chunk of actions, given the diffusion step and the observation."""

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        channels: Sequence[int] = (256, 512, 1024),
        step_dim: int = 256,
        groups: int = 8,
        kernel_size: int = 5,
    ) -> None:
        super().__init__()
        self.dims = {"action": action_dim, "condition": condition_dim}
        self.step = TimestepEmbedding(step_dim)
        total = step_dim + condition_dim

        def block(in_channels: int, out_channels: int) -> ConditionedBlock:
            return ConditionedBlock(in_channels, out_channels, total, groups, kernel_size)

        widths = [action_dim, *channels]
        self.down = nn.ModuleList(
            nn.ModuleDict({"first": block(narrow, wide), "second": block(wide, wide)})
            for narrow, wide in itertools.pairwise(widths)
        )
        self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in channels[:-1])
        self.middle = nn.ModuleList(block(channels[-1], channels[-1]) for _ in range(2))
        levels = list(itertools.pairwise(reversed(channels)))
        self.up = nn.ModuleList(
            nn.ModuleDict({"first": block(wide + narrow, narrow), "second": block(narrow, narrow)})
            for wide, narrow in levels
        )
        self.grow = nn.ModuleList(nn.ConvTranspose1d(wide, wide, 4, stride=2, padding=1) for wide, _ in levels)
        self.last = nn.Conv1d(channels[0], action_dim, 1)

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Map ``noisy (batch, time, a)``, ``timestep (batch,)`` and ``condition (batch, c)`` to ``(batch, time, a)``.

        Raises:
            ValueError: the time cannot be halved as often as there are levels.
        """
        halvings = len(self.shrink)
        if noisy.shape[1] % 2**halvings:
            raise ValueError(f"the horizon {noisy.shape[1]} is no multiple of {2**halvings}")
        condition = torch.cat([self.step(timestep), condition], dim=-1)
        x = noisy.transpose(1, 2)
        skipped = []
        for index, level in enumerate(self.down):
            x = level["second"](level["first"](x, condition), condition)
            if index < halvings:
                skipped.append(x)
                x = self.shrink[index](x)
        for layer in self.middle:
            x = layer(x, condition)
        for grow, level in zip(self.grow, self.up, strict=True):
            x = torch.cat([grow(x), skipped.pop()], dim=1)
            x = level["second"](level["first"](x, condition), condition)
        return self.last(x).transpose(1, 2)

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a training batch; its sizes stay free."""
        horizon = 3 * 2 ** len(self.shrink)
        return [
            {
                "noisy": torch.zeros(2, horizon, self.dims["action"]),
                "timestep": torch.zeros(2, dtype=torch.int64),
                "condition": torch.zeros(2, self.dims["condition"]),
            }
        ]
