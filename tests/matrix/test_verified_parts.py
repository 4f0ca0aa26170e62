"""A caller is verified with stand-ins for its verified inner blocks: less work, and the same differences are seen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from matrix.same import assert_same_runs
from model_factory.program.ir import ModuleCall
from model_factory_server.export.exporter import record_model
from model_factory_server.export.record.recording import Recording

WIDTH = 4


class Settings:
    """Python state that a program does not have."""

    scale = 1.0


class Scales(nn.Module):
    """An inner block; real runs are counted."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.settings = settings or Settings()
        self.runs: Counter[str] = RUNS

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            self.runs["inner"] += 1
        return self.layer(x) * self.settings.scale


RUNS: Counter[str] = Counter()


class Caller(nn.Module):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.settings = Settings()
        self.blocks = nn.ModuleList(Scales(self.settings) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.relu(block(x)) + x.mean()
        return x

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(3, WIDTH)}]


class Wraps(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) * 2
        return result

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(3, WIDTH)}]


class SetsTheScale(Caller):
    """Each inner block would do something else alone."""

    def forward(self, x: Tensor) -> Tensor:
        self.settings.scale = 3.0
        try:
            return super().forward(x)
        finally:
            self.settings.scale = 1.0


def inputs() -> list[Tensor]:
    return [torch.randn(5, WIDTH, requires_grad=True)]


def called(model: nn.Module) -> list[str]:
    """Paths of the blocks that the program of the model calls."""
    program = next(item.program for path, item in record_model(model) if not path)
    return [step.path for step in program.steps if isinstance(step, ModuleCall)]


def test_state_in_an_object_that_caller_and_block_share_is_seen() -> None:
    torch.manual_seed(0)
    model = SetsTheScale()
    assert called(model) == ["blocks.0.layer"]  # the inside of the block
    assert_same_runs(model, rebuilt_with_programs(model), inputs)


def test_inner_blocks_of_a_caller_run_a_few_times_only() -> None:
    """Each level of callers is verified with stand-ins; only the outermost runs the blocks at several sizes."""
    runs = {}
    for levels in (1, 3):
        model: nn.Module = Caller(depth=8)
        for _ in range(levels):
            model = Wraps(model)
        RUNS.clear()
        assert called(model) == ["inner"]
        runs[levels] = RUNS["inner"]
    assert runs[3] - runs[1] <= 2 * 8  # a run of each block for each level, to see what changes


class Wrong(Caller):
    """A caller with a difference of its own between two runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.settings.__dict__["count"] = count = self.settings.__dict__.get("count", 0) + 1
        return self.blocks[0](x) * count


def test_a_difference_of_the_caller_is_seen_beside_stand_ins() -> None:
    with pytest.raises(Exception, match="does not reproduce the forward"):
        record_model(Wrong())


class TakesPart(nn.Module):
    """The result is a part of a larger tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.layer(x).chunk(2, dim=-1)
        return left[:, 0], right


class UsesPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TakesPart()

    def forward(self, x: Tensor) -> Tensor:
        first, all_of_them = self.inner(x)
        return first + all_of_them.reshape(x.shape[0], -1)[:, :WIDTH] + all_of_them.transpose(1, 2).mean(-1)

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, 3, WIDTH)}]


class ViewsPart(UsesPart):
    """A part with gaps in memory takes no ``view``: the recording and the original refuse alike."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)[1].view(-1)
        return result


def test_a_result_with_gaps_in_memory_is_the_result_of_a_step() -> None:
    torch.manual_seed(0)
    model = UsesPart()
    assert called(model) == ["inner"]
    assert_same_runs(model, rebuilt_with_programs(model), lambda: [torch.randn(4, 5, WIDTH, requires_grad=True)])


def test_a_view_over_gaps_is_refused_as_by_the_original() -> None:
    with pytest.raises(Exception, match="Cannot view a tensor"):
        record_model(ViewsPart())


class Compares(nn.Module):
    """The forward compares a size of the call with a number of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * 2 if x.shape[0] < y.shape[1] else y - 1

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, WIDTH)}, {"x": torch.randn(8, WIDTH)}]


def test_a_condition_on_a_number_of_a_layer_selects_the_program() -> None:
    torch.manual_seed(0)
    model = Compares()
    programs = record_model(model)
    assert len(programs) == 2
    rebuilt = rebuilt_elsewhere(model, programs)
    for rows in (1, 3, 4, 5):
        x = torch.randn(rows, WIDTH)
        assert torch.equal(rebuilt(x), model(x))


class Result:
    """More than data."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class ReturnsAnObject(Scales):
    def forward(self, x: Tensor) -> Any:
        return Result(super().forward(x))


class UnpacksAnObject(Caller):
    def __init__(self) -> None:
        super().__init__()
        self.inner = ReturnsAnObject()

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.inner(x).value
        return value


def test_a_block_whose_result_is_no_data_is_not_recorded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: Counter[str] = Counter()
    run = Recording.run

    def counted(recording: Recording) -> Any:
        recorded[type(recording.module).__name__] += 1
        return run(recording)

    monkeypatch.setattr(Recording, "run", counted)
    assert called(UnpacksAnObject()) == ["inner.layer"]
    assert recorded == {"UnpacksAnObject": 1}


class Masks(nn.Module):
    """The mask keeps its dtype, whatever the dtype of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Masked()

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], dtype=torch.float32)
        result: Tensor = self.inner(x, mask).to(x.dtype)
        return result

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, 3, WIDTH)}]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x) * mask.to(x.dtype)[:, None]


def test_a_tensor_that_keeps_its_dtype_is_no_reason_against_a_step_in_other_dtypes() -> None:
    torch.manual_seed(0)
    model = Masks()
    assert called(model) == ["inner"]
    rebuilt = rebuilt_with_programs(model)
    x = torch.randn(4, 5, WIDTH, dtype=torch.bfloat16)
    assert torch.equal(rebuilt.bfloat16()(x), model.bfloat16()(x))
