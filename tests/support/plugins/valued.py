"""Blocks whose programs depend on values of the call: constants, integers, decisions, attributes of layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Tokens(nn.Module):
    """Looks tokens up; reads a truth value and a text."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100_000, 3)

    def forward(self, ids: Tensor, mask: Tensor, batch: dict[str, Any], reverse: bool = False) -> Tensor:  # noqa: ARG002
        y = self.table(ids) * mask.unsqueeze(-1)
        return y.flip(0) if reverse else y


class Modes(nn.Module):
    """Chooses the result by a text."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, mode: str, gain: float = 0.5) -> Tensor:
        return self.layer(x) * gain if mode == "secret-mode" else x


class Chosen(nn.Module):
    """Refuses every text that is not a name of a mode."""

    def forward(self, x: Tensor, mode: str) -> Tensor:
        if mode not in {"double", "same"}:
            raise ValueError("no such mode")
        return x * 2 if mode == "double" else x


class Dropped(nn.Module):
    """Reads the rate of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.drop.p, self.training)


class Signs(nn.Module):
    """Decides by the sign of a sum, and by a count."""

    def __init__(self, counts: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        if self.counts:
            return self.layer(x)[: int((x > 0.5).sum())]
        return self.layer(x) if x.sum() > 0 else torch.square(self.layer(x))


class Lengths(nn.Module):
    """Takes lengths, and refuses a length of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if not torch.all(lengths > 0):
            raise ValueError("a length of 0")
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return self.rnn(x)[0] * mask.unsqueeze(-1)


def register(registry: Any) -> None:
    for block in (Tokens, Modes, Chosen, Dropped, Signs, Lengths):
        registry.register_module(f"valued.{block.__name__}", block)
