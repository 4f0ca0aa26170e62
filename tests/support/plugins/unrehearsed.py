"""Blocks without example inputs, so that the first call of a trainer shows which blocks need source code."""

from __future__ import annotations

import numpy as np
import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn


class Step(nn.Module):
    """Used through a method that is not the forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def apply_at(self, x: Tensor, rank: float) -> Tensor:
        return self.layer(x) / (1 + rank)


class Ranks(nn.Module):
    """Weighs the features by ranks that NumPy finds; the layer of einops stays a program."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = 1.0
        self.split = Rearrange("b (h d) -> b h d", h=2)
        self.step = Step(width // 2)
        self.dropout = nn.Dropout(0.2)
        self.norm = nn.BatchNorm1d(width)
        self.table = torch.linspace(1.0, 2.0, width)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width)`` to the same shape."""
        self.calls += 1
        order = np.argsort(x.detach().cpu().numpy(), axis=-1, kind="stable")
        ranked = self.table.to(x)[torch.from_numpy(order)] * x
        halves = self.split(self.norm(ranked))
        return self.scale * self.dropout(self.step.apply_at(halves, float(order[0, 0])).flatten(1))


class Codes(nn.Module):
    """A forward with a program, and a declared method without."""

    portable_methods = ("code",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()

    def code(self, x: Tensor) -> Tensor:
        return torch.tensor([len(set(row)) for row in self(x).round(decimals=1).tolist()])


class Holds(nn.Module):
    """Can be sent neither as a program nor as source code."""

    def __init__(self) -> None:
        super().__init__()
        self.order = np.argsort

    def forward(self, x: Tensor) -> Tensor:
        return x[torch.from_numpy(self.order(x.detach().numpy()))]


def make(width: int) -> nn.Module:
    class Local(nn.Module):
        """A class inside a function, which no import finds."""

        def forward(self, x: Tensor) -> Tensor:
            return x + len(set(x.flatten().tolist())) * width

    return Local()


def register(registry) -> None:
    for name, block in {"ranks": Ranks, "codes": Codes, "holds": Holds, "local": make}.items():
        registry.register_module(name, block)
