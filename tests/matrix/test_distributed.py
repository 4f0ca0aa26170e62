"""Forwards that ask whether there are several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed import is_initialized

from matrix.portability import rebuilt_with_programs, with_recorder
from model_factory import CallSignatureError, NotPortableError
from model_factory.program.runtime.caller_modes import DISTRIBUTED
from model_factory_server.export.exporter import record_model
from support.compare import assert_same, observe

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.rand(2, WIDTH)}]


class Gathers(Block):
    """As codebooks do, which average their statistics over processes."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(y)
        return y


class Doubles(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if distributed.is_initialized() else 3)


class AsksABoundFunction(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if is_initialized() else 3)


class WithoutTensors(Block):
    """Reads no tensor of the call."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        return self.linear.weight * (2 if distributed.is_initialized() else 3)


class AsksInVain(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if distributed.is_initialized():
            pass
        return y


class AsksForSize(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * distributed.get_world_size()


@contextmanager
def one_of_several_processes() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("block", [Gathers, Doubles, AsksABoundFunction, WithoutTensors, AsksInVain])
def test_one_process_trains(block: type[Block]) -> None:
    original = block()
    rebuilt = rebuilt_with_programs(original)
    for size in (2, 5, 1):
        inputs = {"x": torch.rand(size, WIDTH)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs))


@pytest.mark.parametrize("block", [Gathers, Doubles, AsksABoundFunction, WithoutTensors])
def test_a_decision_is_a_condition(block: type[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {recorded.modes for _, recorded in record_model(block())} == {((DISTRIBUTED, False),)}
    _, rebuilt, recorder = with_recorder(block)
    record = recorder.record

    def record_in_another_process(*arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as server:
            server.setattr(type(distributed.GroupMember), "WORLD", property(lambda _: None))
            return record(*arguments, **options)

    monkeypatch.setattr(recorder, "record", record_in_another_process)
    with (
        one_of_several_processes(),
        pytest.raises(CallSignatureError, match="asks for distributed, and programs hold for the other answer only"),
    ):
        rebuilt(torch.rand(3, WIDTH))


def test_a_question_without_effect_is_no_condition() -> None:
    original = AsksInVain()
    assert {recorded.modes for _, recorded in record_model(original)} == {()}
    rebuilt, x = rebuilt_with_programs(original), torch.rand(3, WIDTH)
    with one_of_several_processes():
        assert_same(rebuilt(x), original(x))


def test_the_number_of_processes_is_refused() -> None:
    with pytest.raises(NotPortableError, match=r"calls torch.distributed.get_world_size\(\)"):
        record_model(AsksForSize())
