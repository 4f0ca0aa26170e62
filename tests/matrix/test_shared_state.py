"""State that a caller shares with an inner block, and inner blocks in other dtypes and layouts: no silent difference.

A call of the rebuilt model equals the call of the original, or is refused: the trainer then asks for a program.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from matrix.same import assert_same_runs
from model_factory.errors import CallSignatureError

WIDTH = 4


class Settings:
    """A plain object of caller and inner block."""

    scale: float = 1.0
    stop = False


class Inner(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.layer, self.settings = nn.Linear(WIDTH, WIDTH), settings

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y.detach() if self.settings.stop else y * self.settings.scale


class InEval(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if self.training else y * self.settings.scale


class Caller(nn.Module):
    inner_class: type[Inner] = Inner

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.inner, self.out = self.inner_class(self.settings), nn.Linear(WIDTH, WIDTH)

    def set(self, x: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.set(x)
        try:
            result: Tensor = self.out(self.inner(x)) + x
            return result
        finally:
            self.settings.scale, self.settings.stop = 1.0, False

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(3, WIDTH)}]


class BySize(Caller):
    def set(self, x: Tensor) -> None:
        self.settings.scale = x.shape[0] ** -0.5


class StopsGradients(Caller):
    def set(self, x: Tensor) -> None:  # noqa: ARG002
        self.settings.stop = True


class ByMode(Caller):
    def set(self, x: Tensor) -> None:  # noqa: ARG002
        self.settings.scale = 2.0 if torch.is_grad_enabled() else 3.0


class OnlyInEval(Caller):
    inner_class = InEval

    def set(self, x: Tensor) -> None:  # noqa: ARG002
        self.settings.scale = 2.0


class AssignsAnAttribute(Caller):
    """As models that tell a block the height and width of an image."""

    def set(self, x: Tensor) -> None:
        self.inner.settings.scale = x.shape[0]


class Decides(nn.Module):
    """The caller between decides nothing, its own caller does."""

    def __init__(self) -> None:
        super().__init__()
        self.between = BySize()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.between(x)
        return y if x.sum() > 0 else -y

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(3, WIDTH)}, {"x": -torch.ones(3, WIDTH)}]


def compare(model: nn.Module, rebuilt: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Compare calls of several sizes; return the number of calls with a program."""
    found = 0
    for rows in (1, 2, 3, 5):
        for sign in (1, -1):
            x = sign * torch.rand(rows, WIDTH, dtype=dtype)
            try:
                assert_same_runs(model, rebuilt, lambda x=x: [x.clone().requires_grad_()])
                with torch.no_grad():
                    assert torch.equal(model.train()(x), rebuilt.train()(x))
            except CallSignatureError:
                continue
            found += 1
    return found


@pytest.mark.parametrize("make", [BySize, StopsGradients, ByMode, OnlyInEval, AssignsAnAttribute, Decides])
def test_shared_state_makes_no_silent_difference(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    assert compare(model, rebuilt_with_programs(model)) >= 2


class Cuts(nn.Module):
    """The result has gaps in memory at some sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)[:, :3]
        return result


class AsksForGaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Cuts()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * 2 if y.is_contiguous() else y * 3

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, 3, WIDTH)}]


def test_gaps_at_other_sizes_make_no_silent_difference() -> None:
    torch.manual_seed(0)
    model = AsksForGaps()
    rebuilt = rebuilt_with_programs(model)
    for length in (1, 3, 4, 5):
        x = torch.randn(2, length, WIDTH)
        try:
            assert torch.equal(rebuilt(x), model(x))
        except CallSignatureError:
            continue


class Rotates(nn.Module):
    """A table in single precision is converted, if the other argument has another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        if table.dtype != x.dtype:
            table = table.to(x.dtype)
        result: Tensor = self.layer(x) * table
        return result.to(x.dtype)


class RotatesTwice(Rotates):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        if table.dtype != x.dtype:
            table = table.to(x.dtype) * 2
        return super().forward(x, table)


class HasATable(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x, torch.arange(WIDTH, dtype=torch.float32) / 7)
        return result

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.randn(3, WIDTH)}]


@pytest.mark.parametrize("inner", [Rotates, RotatesTwice])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_arguments_that_keep_their_dtype_make_no_silent_difference(inner: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    original = HasATable(inner())
    rebuilt = rebuilt_with_programs(original)
    found = compare(copy.deepcopy(original).to(dtype), rebuilt.to(dtype), dtype)
    assert found or dtype != torch.float32


class SwitchesToEval(nn.Module):
    """The inner block is called in another mode than its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = InEval(Settings())
        self.inner.settings.scale = 3.0

    def forward(self, x: Tensor) -> Tensor:
        self.inner.eval()
        y: Tensor = self.inner(x)
        self.inner.train(self.training)
        return y

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(3, WIDTH)}]


@pytest.mark.timeout(60)
def test_a_block_in_another_mode_than_its_caller_ends() -> None:
    torch.manual_seed(0)
    model = SwitchesToEval()
    assert compare(model, rebuilt_with_programs(model)) >= 2
