from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from . import scales as _scales


class Expert(nn.Module):
    """Used by the router through a method that is not its forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)

    def correct(self, tokens: Tensor, step: int) -> Tensor:
        halves = rearrange(self.up(tokens), "n (k c) -> k n c", k=2)
        return self.down(self.dropout(rearrange(halves.relu(), "k n c -> n (k c)"))) * _scales.fading(step)
