"""A small file in the place of ResNet-34's published weights: every tensor repeats one number."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model_factory_server.constructor.blocks.parts.resnet_layers import ResNet34

NAME = "resnet34-b627a593.pth"


def weights(value: float = 0.0) -> dict[str, Tensor]:
    """Return a state dict of ResNet-34 with few bytes."""
    with torch.device("meta"):
        state = ResNet34(dict).state_dict()
    return {key: torch.full((), value, dtype=like.dtype).expand(like.shape) for key, like in state.items()}


def write_weights(hub: Path, value: float) -> Path:
    """Write the weights into a hub folder."""
    folder = hub / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(weights(value), folder / NAME)
    return folder / NAME
