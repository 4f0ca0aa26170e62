"""A residual network over images (He et al. 2015), with batch normalisation: trainers convert it to SyncBatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions with a residual connection around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in, h, w)`` to ``(batch, out, h / stride, w / stride)``."""
        residual = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + residual)


class ResNetEncoder(nn.Module):
    """Images to feature vectors, by ``len(widths)`` stages of ``depth`` blocks each."""

    def __init__(
        self, out_dim: int, in_channels: int = 3, widths: Sequence[int] = (64, 128, 256, 512), depth: int = 2
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages, channels = [], widths[0]
        for stage, width in enumerate(widths):
            first = BasicBlock(channels, width, stride=1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(depth - 1))))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, out_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images (batch, c, h, w)`` to ``(batch, out_dim)``."""
        return self.head(self.pool(self.stages(self.stem(images))).flatten(1))

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a training batch; its sizes stay free."""
        return [{"images": torch.zeros(2, self.in_channels, 64, 96)}]
