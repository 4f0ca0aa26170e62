"""Weights that a module has in a list or dict as well, as recurrent layers of other libraries do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from support.compare import assert_same, observe, train

WIDTH = 4


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.weights = [self.first, self.second]
        self.by_name = {"nested": [self.second]}

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x * weight if weight.dim() == 1 else x @ weight
        return x + self.by_name["nested"][0]

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(3, WIDTH)}]


class Recurrent(nn.GRU):
    """A recurrent layer with a forward of its own, which asks torch for its checks."""

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        state = x.new_zeros(1, x.shape[1], self.hidden_size) if hx is None else hx
        self.check_forward_args(x, state, batch_sizes=None)
        return (x @ self.weight_ih_l0.T + self.bias_ih_l0).tanh()  # type: ignore[operator]

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(2, 3, WIDTH)}]


@pytest.mark.parametrize(("make", "shapes"), [(Listed, [(3,), (5,)]), (lambda: Recurrent(WIDTH, 2), [(2, 3), (4, 5)])])
def test_a_list_has_the_weights_of_the_module(make: Any, shapes: Any) -> None:
    torch.manual_seed(0)
    original = make()
    before = [id(item) for item in getattr(original, "weights", [])]
    rebuilt = rebuilt_with_programs(original)
    assert [id(item) for item in getattr(original, "weights", [])] == before, "a recording leaves the list alone"
    for shape in shapes:
        inputs = {"x": torch.randn(*shape, WIDTH)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs))
    one, other = (train(module, {"x": torch.randn(*shapes[0], WIDTH, generator=torch.Generator().manual_seed(1))})
                  for module in (rebuilt, original))  # fmt: skip
    assert_same(one, other)
