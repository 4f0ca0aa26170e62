"""Blocks whose calls have names, defaults and records."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Batch:
    """Observations and a mask."""

    obs: Tensor
    mask: Tensor | None = None


class Goals(nn.Module):
    """Reads an optional argument; has a method for trainers."""

    portable_methods = ("encode",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, obs: Tensor, goal: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
        y = self.layer(obs) * scale
        return y if goal is None else y + goal

    def encode(self, obs: Tensor, act: Any = torch.relu) -> Tensor:
        return act(self.layer(obs))

    def compute_loss(self, obs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """A method that the class does not declare."""
        error = self(obs) - target
        return {"loss": error.square().mean(), "worst": error.abs().amax()}


class Batches(nn.Module):
    """Takes a record."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, batch: Batch) -> Batch:
        assert isinstance(batch, Batch)
        y = self.layer(batch.obs)
        return Batch(y if batch.mask is None else y * batch.mask, batch.mask)


class Samples(nn.Module):
    """Draws noise from a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, obs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.layer(obs) + torch.randn(obs.shape, generator=generator)


class Arrays(nn.Module):
    """Takes an array of NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, obs: Any) -> Tensor:
        return self.layer(torch.as_tensor(obs, dtype=torch.float32))


def register(registry: Any) -> None:
    """Register the blocks under their names."""
    for block in (Goals, Batches, Samples, Arrays):
        registry.register_module(f"calling.{block.__name__}", block)
