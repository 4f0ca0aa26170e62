"""Forwards that read a device: a decision by the device is a condition, and a device for a new tensor is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import CallSignatureError, NotPortableError
from model_factory.program.runtime.caller_modes import AUTOCAST, IS_CUDA, mode_value
from model_factory_server.export.exporter import record_model
from model_factory_server.export.record.recording import Recording
from support.compare import assert_same, observe

WIDTH = 4
CPU_ALONE = {((IS_CUDA, False),)}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.ones(WIDTH))

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2)}]


def tensor(size: int) -> Tensor:
    return torch.rand(size, WIDTH, generator=torch.Generator().manual_seed(size))


class ByType(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if x.device.type == "cpu" else 3)


class ByDevice(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if x.device == torch.device("cpu") else 3)


class ByText(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if "cuda" not in str(x.device) else 3)


class ByParameter(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if next(self.parameters()).device.type != "cuda" else 3)


class ByBuffer(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if self.scale.device.index is None else 3)


class ByResult(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y * {"cpu": 2, "cuda": 3}[y.device.type]


class ByHash(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * {torch.device("cpu"): 2}.get(x.device, 3)


class ByFormat(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if f"{x.device}" == "cpu" else 3)


class ByDifference(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if torch.device("cuda", 0) != x.device else 3)


class ByCopy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if torch.device(x.device).type == "cpu" else 3)


class ByTextOrType(Block):
    """As helpers do that take a device or the name of a device."""

    def forward(self, x: Tensor) -> Tensor:
        device = x.device
        name = device if isinstance(device, str) else device.type
        return self.linear(x) * (2 if name == "cpu" else 3)


class ByKeyword(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if torch.device(device=x.device).type == "cpu" else 3)


class ByNumber(Block):
    """The numbers of the first GPU and of the second differ."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x.device.index or 0)


class ByOneOfSeveral(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (3 if x.device == torch.device("cuda", 1) else 2)


class FailsOnGpu(Block):
    def forward(self, x: Tensor) -> Tensor:
        assert x.device.type == "cpu"
        return self.linear(x)


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = ByType()

    def example_inputs(self) -> Any:
        return [{"x": tensor(2)}]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).relu()


class Passes(Block):
    """Every way to give a device to torch."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device != self.scale.device or x.device.type not in {"cpu", "cuda"}:
            x = x.to(self.scale.device)
        y = self.linear(x) + torch.zeros(WIDTH, device=x.device) + torch.arange(WIDTH, device=self.scale.device)
        y = y + torch.rand(WIDTH, device=x.device.type) + torch.tensor([1.0], device=str(x.device))
        y = y + torch.ones(1).to(x.device) + torch.ones(1).to(x.device, torch.float32) + x.new_zeros(1, device=x.device)
        with torch.device(x.device):
            y = y + torch.full((1,), 2.0)
        return y.to(x.device.type) + torch.as_tensor([2.0], device=torch.device(x.device))


class PassesUnread(Block):
    """Gives a device to torch, and never looks at the device."""

    def forward(self, x: Tensor) -> Any:
        assert isinstance(x.device, torch.device)
        assert not isinstance(x.device, (str, int))
        if x.device != self.scale.device:
            x = x.to(self.scale.device)
        y = self.linear(x) + torch.arange(WIDTH, device=copy.copy(x.device))
        y = y + torch.ones(1).to(copy.deepcopy(x.device), torch.float32)
        with torch.device(x.device):
            y = y + torch.full((1,), 2.0) + torch.zeros_like(y, device=x.device)
        return {"y": y, "device": y.device}


class WithoutAutocast(Block):
    """As layers compute angles in full precision, whichever device they are on."""

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type if x.device.type != "mps" else "cpu"
        with torch.autocast(device_type=kind, enabled=False):
            return self.linear(x) + self.scale.to(x.device)


class AsksForAutocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            return self.linear(x)


def modes_of(block: nn.Module) -> set[Any]:
    return {recorded.modes for _, recorded in record_model(block)}


BY_DEVICE = [
    ByType,
    ByDevice,
    ByText,
    ByParameter,
    ByBuffer,
    ByResult,
    ByHash,
    ByFormat,
    ByDifference,
    ByCopy,
    ByTextOrType,
]


@pytest.mark.parametrize("block", [*BY_DEVICE, FailsOnGpu])
def test_a_decision_by_the_device_is_a_condition(block: type[Block]) -> None:
    assert modes_of(block()) == CPU_ALONE
    check_on_cpu(block())


def test_a_decision_of_an_inner_block_is_a_condition() -> None:
    programs = dict(record_model(Inside()))
    assert programs["inner"].modes == ((IS_CUDA, False),)


def test_a_device_that_the_forward_does_not_look_at_needs_no_recording_for_a_gpu() -> None:
    recording = Recording(PassesUnread(), {"x": tensor(2)}, None)
    recording.run()
    assert recording.tape.modes.noted == {}


@pytest.mark.parametrize("block", [Passes, PassesUnread, WithoutAutocast])
def test_a_device_that_is_passed_on_is_no_condition(block: type[Block]) -> None:
    assert modes_of(block()) == {()}
    check_on_cpu(block())


def test_a_question_for_the_autocast_of_the_device_is_a_question_for_each_device() -> None:
    found = modes_of(AsksForAutocast())
    assert {dict(modes).get(IS_CUDA) for modes in found} == {False, True}
    for modes in map(dict, found):
        assert (f"{AUTOCAST}cuda" in modes) == modes[IS_CUDA]
        assert (f"{AUTOCAST}cpu" in modes) != modes[IS_CUDA]
    assert len(found) == 4
    check_on_cpu(AsksForAutocast())


@pytest.mark.parametrize("kind", ["mps", "xpu", "meta"])
def test_a_device_of_another_kind_has_no_program_with_a_condition(kind: str) -> None:
    assert mode_value(IS_CUDA, torch.device(kind)) not in {True, False}


def check_on_cpu(original: nn.Module) -> None:
    rebuilt = rebuilt_with_programs(copy.deepcopy(original))
    states: list[Callable[[], AbstractContextManager[Any]]] = [nullcontext, lambda: torch.autocast("cpu")]
    for training in (False, True):
        for size in (2, 5, 1):
            for state in states:
                with state():
                    inputs = {"x": tensor(size)}
                    assert_same(
                        observe(rebuilt.train(training), inputs), observe(original.train(training), inputs), str(size)
                    )


class ByClass(Block):
    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type if type(x.device) is torch.device else x.device
        return self.linear(x) * (3 if kind == "cuda" else 2)


class ByBeginning(Block):
    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type if type(x.device) is torch.device else x.device
        return self.linear(x) * (3 if kind.startswith("cuda") else 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("block", [ByClass, ByBeginning])
def test_the_stand_in_for_a_device_decides_nothing(block: type[Block]) -> None:
    with pytest.raises((NotPortableError, CallSignatureError), match=r"a device with a text|no methods of a text"):
        record_model(block())
