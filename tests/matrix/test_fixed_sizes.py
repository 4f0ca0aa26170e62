"""Forwards that accept no symbols for sizes: recorded with the sizes as conditions, a program for each call's sizes."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from model_factory import CallSignatureError, NotPortableError
from model_factory.program.runtime.program_module import ProgramModule
from support.compare import assert_same, observe
from support.recording import InProcessRecorder

WIDTH = 4


@functools.lru_cache(maxsize=8)
def table(length: int, width: int) -> Tensor:
    return torch.linspace(0, 1, length)[:, None].expand(length, width)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2, 6)}]


def tensor(*sizes: int) -> Tensor:
    return torch.rand(*sizes, WIDTH, generator=torch.Generator().manual_seed(sum(sizes)))


class CachedMethod(Block):
    @functools.lru_cache(maxsize=8)  # noqa: B019  as models have it
    def table(self, length: int) -> Tensor:
        return torch.arange(length).float()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.table(x.shape[1]))


class CachedFunction(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + table(x.shape[1], WIDTH)


class AsksForInt(Block):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x.shape[1], int):
            raise TypeError("the length is not an integer")
        return self.linear(x)


class BranchesByInt(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if isinstance(x.shape[1], int) else 3)


class GridOfSizes(Block):
    def forward(self, x: Tensor) -> Tensor:
        grid = torch.arange(x.shape[1]).tolist()
        factors = {x.shape[0]: 1, x.shape[1]: 2}
        return self.linear(x) * factors[x.shape[1]] + sum(grid) + math.log(len(grid))


class ByNumpy(Block):
    def forward(self, x: Tensor) -> Tensor:
        line = np.interp(np.arange(x.shape[1]), [0, 10], [0, 1])
        return self.linear(x) + torch.from_numpy(line).float()[None, :, None]


class ByWidth(Block):
    """The width of a layer is a key, too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y * {WIDTH: 2, x.shape[0]: 3}[(y + 1).shape[-1]] + {WIDTH: 1}[self.linear.weight.shape[0]]


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = GridOfSizes()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2, 6)}]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "block", [CachedMethod, CachedFunction, AsksForInt, BranchesByInt, GridOfSizes, ByNumpy, ByWidth, Outer]
)
def test_each_size_has_a_program(block: type[nn.Module], training: bool) -> None:
    original = block().train(training)
    rebuilt = rebuilt_elsewhere(block()).train(training)
    rebuilt.load_state_dict(original.state_dict())
    assert isinstance(rebuilt, ProgramModule)
    rebuilt._recorder = recorder = InProcessRecorder(block)
    sizes = [(2, 6), (3, 5), (2, 7)]
    for size in [*sizes, *sizes]:
        inputs = {"x": tensor(*size)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(size))
    assert recorder.calls <= len(sizes)


@pytest.mark.parametrize("block", [CachedMethod, GridOfSizes])
def test_no_program_runs_at_other_sizes(block: type[nn.Module]) -> None:
    rebuilt = rebuilt_with_programs(block())
    rebuilt(tensor(2, 6))
    for size in [(2, 5), (3, 6)]:
        with pytest.raises(CallSignatureError):
            rebuilt(tensor(*size))


def test_a_layer_of_another_width_is_refused() -> None:
    rebuilt = rebuilt_with_programs(ByWidth())
    rebuilt(tensor(2, 6))
    rebuilt.linear = nn.Linear(WIDTH, WIDTH + 1)
    with pytest.raises(CallSignatureError):
        rebuilt(tensor(2, 6))


def test_a_cache_has_no_tensors_of_a_recording() -> None:
    rebuilt_with_programs(CachedFunction())
    assert type(table(6, WIDTH)) is Tensor
    assert table(6, WIDTH)[-1, 0].item() == 1


class KeepsTheFirstLength(Block):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen.setdefault(x.shape[1], 1 + len(self.seen))
        return self.linear(x) * self.seen[x.shape[1]]


def test_state_between_calls_of_several_sizes_is_refused() -> None:
    with pytest.raises((NotPortableError, CallSignatureError)):
        rebuilt_with_programs(KeepsTheFirstLength())


def test_the_reason_of_the_recording_with_symbols_is_shown() -> None:
    class Refused(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * {x.shape[1]: 1}[x.shape[1]] * float(x.sum())

    with pytest.raises((NotPortableError, CallSignatureError), match=r"unhashable|by the values"):
        rebuilt_with_programs(Refused())
