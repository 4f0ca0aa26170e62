"""Methods and hooks for state dicts: without an effect on the state dict of this model, a block is portable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from support.compare import assert_same, assert_same_state, observe

WIDTH = 4


class Saves(nn.Linear):
    """Saves by a method of its own, and converts older state dicts."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__(size, out)
        self._register_load_state_dict_pre_hook(self.rename)

    def rename(self, state: dict[str, Any], prefix: str, *_others: Any) -> None:
        if f"{prefix}kernel" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.named_parameters():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Saves(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square()

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.ones(2, WIDTH)}]


def test_a_state_dict_as_torch_makes_it_is_portable() -> None:
    original = Block()
    rebuilt = rebuilt_with_programs(original)
    assert_same_state(rebuilt, original)
    other = Block()
    rebuilt.load_state_dict(other.state_dict())
    inputs = {"x": torch.rand(3, WIDTH)}
    assert_same(observe(rebuilt, inputs), observe(other, inputs))
