"""Forwards that ask for modes of the caller: the answer is a condition, unless both answers have the same program."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from model_factory import CallSignatureError, NotPortableError
from model_factory.errors import FormatError
from model_factory.program.codec.programs import decode_recorded, encode_recorded
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server.export.exporter import record_model
from support.compare import assert_same, leaves, observe
from support.recording import InProcessRecorder

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.checkpointing = False

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2, 6)}]


def tensor(*sizes: int) -> Tensor:
    return torch.rand(*sizes, WIDTH, generator=torch.Generator().manual_seed(sum(sizes)))


class AsksWithoutEffect(Block):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.checkpointing:
            return x
        with torch.no_grad():
            assert not torch.is_grad_enabled()
        return self.linear(x) * (2 if x.is_cuda and self.checkpointing else 3)


class FillsWithNan(AsksWithoutEffect):
    """NaN is no reason for two programs."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.masked_fill(y < 0, float("nan"))


class ByGrad(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * (2 if torch.is_grad_enabled() else 3)
        with torch.no_grad():
            shift = 1 if torch.is_grad_enabled() else self.linear(x)
        return y + shift


class ByGradAndTraining(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            return self.linear(x) + torch.rand_like(x)
        return self.linear(x)


class ByAutocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if torch.is_autocast_enabled("cpu"):
            y = y.square() + x.to(torch.get_autocast_dtype(device_type="cpu"))
        return y * y if torch.is_autocast_enabled() else y + y


class WithoutAutocastOfAnyDevice(Block):
    """As diffusion models add noise: a decorator, made at the import, on a machine with or without a GPU."""

    @torch.autocast("cuda", enabled=False)
    def noisy(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.randn_like(x)

    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.noisy(x))


class ByGradOrAutocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.linear(x) * (2 if torch.is_autocast_enabled("cpu") else 3)
        return self.linear(x)


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


STATES: list[Callable[[], AbstractContextManager[Any]]] = [nullcontext, torch.no_grad, autocast]


def assert_equal(rebuilt: nn.Module, original: nn.Module, inputs: dict[str, Any]) -> None:
    if torch.is_grad_enabled():
        assert_same(observe(rebuilt, inputs), observe(original, inputs))
        return
    results = []
    for module in (rebuilt, original):
        torch.manual_seed(3)
        results.append((module(**inputs), torch.get_rng_state()))
    assert_same(*results)
    assert not any(leaf.requires_grad for leaf in leaves(results[0][0]))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "block", [AsksWithoutEffect, FillsWithNan, ByGrad, ByGradAndTraining, ByAutocast, ByGradOrAutocast]
)
def test_each_mode_of_the_caller_equals_the_original(
    block: type[Block], training: bool, state: Callable[[], AbstractContextManager[Any]]
) -> None:
    original = block()
    rebuilt = rebuilt_with_programs(original)
    for module in (original, rebuilt):
        module.train(training)
    for sizes in [(2, 6), (5, 3), (1, 1)]:
        with state():
            assert_equal(rebuilt, original, {"x": tensor(*sizes)})


@pytest.mark.parametrize(
    ("block", "modes"),
    [
        (AsksWithoutEffect, {()}),
        (FillsWithNan, {()}),
        (ByGrad, {(("grad", True),), (("grad", False),)}),
        (
            ByAutocast,
            {
                (("autocast cpu", False), ("autocast cuda", False)),
                (("autocast cpu", True), ("autocast cuda", False), ("autocast_dtype cpu", "bfloat16")),
            },
        ),
        (
            ByGradOrAutocast,
            {(("grad", False),), (("autocast cpu", False), ("grad", True)), (("autocast cpu", True), ("grad", True))},
        ),
    ],
)
def test_only_answers_with_an_effect_are_conditions(block: type[Block], modes: set[Any]) -> None:
    assert {recorded.modes for _, recorded in record_model(block())} == modes


def test_a_trainer_s_first_call_records_every_mode() -> None:
    original = ByGrad()
    rebuilt = rebuilt_elsewhere(copy.deepcopy(original))
    assert isinstance(rebuilt, ProgramModule)
    recorder = InProcessRecorder(lambda: copy.deepcopy(original))
    rebuilt._recorder = recorder
    for state in (torch.no_grad, nullcontext):
        with state():
            assert_equal(rebuilt, original, {"x": tensor(2, 3)})
    assert recorder.calls == 1


def test_another_dtype_of_autocast_is_not_run_wrong() -> None:
    rebuilt = rebuilt_with_programs(ByAutocast())
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(CallSignatureError):
        rebuilt(tensor(2, 6))


def test_a_program_with_modes_is_compiled() -> None:
    original = ByGrad()
    rebuilt = rebuilt_with_programs(original)
    torch.compiler.reset()  # other tests have compiled the same lines, and the number of compilations has a limit
    compiled = torch.compile(rebuilt, fullgraph=True, backend="eager")
    for state in (nullcontext, torch.no_grad):
        with state():
            assert_same(compiled(tensor(2, 6)), original(tensor(2, 6)))


@pytest.mark.parametrize(
    "mode", [("cpu", True), ("grad", "yes"), ("autocast disk", True), ("autocast_dtype cpu", "qint8"), ("", False)]
)
def test_a_hostile_mode_is_refused(mode: tuple[str, Any]) -> None:
    ((_, recorded), *_) = record_model(AsksWithoutEffect())
    arrived = decode_recorded(encode_recorded(replace(recorded, modes=(mode,))))
    with pytest.raises(FormatError):
        rebuilt_elsewhere(AsksWithoutEffect(), (("", arrived),))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_decorator_without_autocast_is_recorded(training: bool) -> None:
    original = WithoutAutocastOfAnyDevice()
    rebuilt = rebuilt_with_programs(original).train(training)
    original.train(training)
    for size in (2, 5, 1):
        for context in (nullcontext(), autocast()):
            with context:
                assert_same(observe(rebuilt, {"x": tensor(size, 6)}), observe(original, {"x": tensor(size, 6)}))


def test_a_decorator_with_autocast_of_a_missing_gpu_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch disables autocast, and warns
        decorate = torch.autocast("cuda")

    class WithAutocast(Block):
        @decorate
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    with pytest.raises(NotPortableError, match="the forward changes the autocast mode"):
        rebuilt_with_programs(WithAutocast())


class WithScaleOfSizes(Block):
    """As attention with several kinds of positions: torch turns gradients off inside of ``torch.tensor``."""

    def forward(self, x: Tensor) -> Tensor:
        transposed = x.transpose(1, 2)
        scale = torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float) * 3)
        result: Tensor = self.linear(transposed.transpose(1, 2)) * scale.to(dtype=x.dtype)
        return result


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_grad_region_of_torch_changes_no_step(training: bool) -> None:
    original = WithScaleOfSizes().train(training)
    rebuilt = rebuilt_with_programs(original).train(training)
    for sizes in [(2, 6), (3, 1)]:
        inputs = {"x": tensor(*sizes)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(sizes))
