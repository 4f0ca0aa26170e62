"""The number of recordings of a model: as few as possible, and never fewer than the model's behaviours."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from matrix.same import assert_same_runs
from model_factory_server.export.exporter import record_model
from model_factory_server.export.record.recorder import record
from model_factory_server.export.record.recording import Recording
from model_factory_server.export.verify.candidate_sizes import candidate_shapes

WIDTH = 4


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of recordings by class."""
    found: Counter[str] = Counter()
    run = Recording.run

    def counted(recording: Recording) -> Any:
        found[type(recording.module).__name__] += 1
        return run(recording)

    monkeypatch.setattr(Recording, "run", counted)
    return found


class Residual(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.5)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.drop(self.layer(x))


class Stages(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stages = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x) * 2

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(3, WIDTH)}]


def inputs() -> list[Tensor]:
    return [torch.randn(3, WIDTH, requires_grad=True)]


def test_equal_blocks_in_a_torch_layer_are_recorded_once(recorded: Counter[str]) -> None:
    torch.manual_seed(0)
    model = Stages(*(Residual() for _ in range(6)))
    rebuilt = rebuilt_with_programs(model)
    assert recorded == {"Stages": 1, "Residual": 1}
    assert_same_runs(model, rebuilt, inputs)


class ReturnsNothing(Residual):
    """Libraries forget the result of ``train()``."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_equal_blocks_whose_train_returns_nothing() -> None:
    torch.manual_seed(0)
    model = Stages(*(ReturnsNothing() for _ in range(3)))
    assert_same_runs(model, rebuilt_with_programs(model), inputs)


FACTORS = {id(None): 1.0}


class Hidden(Residual):
    """Does something else, and no attribute shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * FACTORS.get(id(self), 3.0)


class HiddenInTraining(Residual):
    """Does something else in train mode, and no attribute shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (FACTORS.get(id(self), 3.0) if self.training else 1.0)


@pytest.mark.parametrize("block", [Hidden, HiddenInTraining])
def test_blocks_that_do_something_else_have_programs_of_their_own(
    block: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    blocks = [block() for _ in range(3)]
    monkeypatch.setitem(FACTORS, id(blocks[2]), 5.0)
    model = Stages(*blocks)
    programs = record_model(model)
    first, second, third = ([item for path, item in programs if path == f"stages.{index}"] for index in range(3))
    assert first == second != third
    assert_same_runs(model, rebuilt_elsewhere(model, programs), inputs)


def test_other_values_of_attributes_are_another_kind(recorded: Counter[str]) -> None:
    torch.manual_seed(0)
    model = Stages(Residual(1.0), Residual(2.0), Residual(1.0), Residual(2.0))
    rebuilt = rebuilt_with_programs(model)
    assert recorded["Residual"] == 2
    assert_same_runs(model, rebuilt, inputs)


class Assigns(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.last = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last * 2


def test_an_attribute_that_each_block_assigns_is_left_out_of_each() -> None:
    torch.manual_seed(0)
    model = Stages(*(Assigns() for _ in range(3)))
    rebuilt = rebuilt_with_programs(model)
    assert not any(hasattr(item, "last") for item in rebuilt.stages)
    assert_same_runs(model, rebuilt, inputs)


class ReadsFlag(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1 if self.training else x


class ReadsFlagOfLayer(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1 if self.drop.training else x


class ReadsDict(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1 if vars(self)["training"] else x


@pytest.mark.parametrize("block", [ReadsFlag, ReadsFlagOfLayer, ReadsDict])
def test_a_block_with_a_mode_is_recorded_in_both(block: type[nn.Module], recorded: Counter[str]) -> None:
    torch.manual_seed(0)
    model = Stages(block())
    rebuilt = rebuilt_with_programs(model)
    assert recorded[block.__name__] > 1
    assert recorded["Stages"] == 1
    assert_same_runs(model, rebuilt, inputs)


class Together(nn.Module):
    """Two sizes that may change only together; no condition of the program shows it."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y.sum()


def test_sizes_that_may_change_only_together_are_verified() -> None:
    module = Together()
    program = record(module, {"x": torch.ones(3), "y": torch.ones(4)})
    found = list(candidate_shapes(module, program, [[3], [4]], lambda shapes: shapes[1][0] - shapes[0][0] in {0, 1}))
    assert found == [[[4], [5]], [[1], [1]]]


def test_sizes_that_are_refused_alone_are_kept() -> None:
    module = Together()
    program = record(module, {"x": torch.ones(3), "y": torch.ones(4)})
    assert list(candidate_shapes(module, program, [[3], [4]], lambda shapes: shapes[1] == [4])) == [
        [[4], [4]],
        [[1], [4]],
    ]


class ReadsDtype(nn.Module):
    """A dtype that the forward reads is recorded in another dtype, too; each inner block is known before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Residual(), ReturnsNothing(2.0), ReadsFlag()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.third(self.second(self.first(x))).to(x.dtype)
        return result

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(3, WIDTH)}]


def test_a_run_in_another_dtype_begins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, begun = ReadsDtype(), Counter[Any]()
    run = Recording._run

    def counted(recording: Recording) -> Any:
        if recording.module is model:
            begun[recording.dtype] += 1
        return run(recording)

    monkeypatch.setattr(Recording, "_run", counted)
    rebuilt = rebuilt_with_programs(model)
    assert begun[torch.float64] == 1
    assert_same_runs(model, rebuilt, inputs)
