"""Forwards that set or read ``requires_grad``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import NotPortableError
from model_factory.program.ir import AttributeRead, OpCall, Program, Ref
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.program_module import ProgramModule
from support.compare import assert_same, observe

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(2)}]


def tensor(size: int) -> Tensor:
    return torch.rand(size, WIDTH, generator=torch.Generator().manual_seed(size))


class SetsInTraining(Block):
    """As speech models do for activation checkpointing with frozen layers."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = x[:, None]
        if self.training:
            hidden.requires_grad = True
        return self.linear(hidden)


class SetsOfDetached(Block):
    def forward(self, x: Tensor) -> Tensor:
        hidden = x.detach()
        hidden.requires_grad = True
        return self.linear(hidden) * hidden


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", [SetsInTraining, SetsOfDetached])
def test_a_value_gets_gradients(block: type[Block], training: bool, with_gradient: bool) -> None:
    original = block().train(training)
    rebuilt = rebuilt_with_programs(original).train(training)
    for module in (original, rebuilt):
        module.linear.requires_grad_(with_gradient)  # type: ignore[union-attr,operator]
    for size in (2, 5, 1):
        inputs = tensor(size)
        expected, actual = original(inputs), rebuilt(inputs)
        assert_same(actual, expected)
        assert actual.requires_grad == expected.requires_grad
        if with_gradient:
            gradients = []
            for module, result in ((rebuilt, actual), (original, expected)):
                module.zero_grad()
                result.square().sum().backward()
                gradients.append({name: item.grad for name, item in module.named_parameters()})
            assert_same(*gradients)
        assert not inputs.requires_grad
        assert inputs.grad is None


class SetsOfAnArgument(Block):
    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad = True
        return self.linear(x)


def test_a_caller_s_tensor_is_left_alone() -> None:
    with pytest.raises(NotPortableError, match="sets requires_grad of the argument x"):
        rebuilt_with_programs(SetsOfAnArgument())


def test_a_program_cannot_thaw_a_parameter() -> None:
    module = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    steps = (AttributeRead(path="weight", out="v0"), OpCall(name="require_grad", args=(Ref("v0"),), out="v1"))
    found = Runner(Program(inputs=(), steps=steps, result=Ref("v1"))).run(module, [])
    assert found.requires_grad
    assert not module.weight.requires_grad


class Reads(Block):
    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.linear(x) * (2 if x.requires_grad else 3)
        return y if other is None or other.requires_grad else y + other


class ReadsOfAComputedValue(Block):
    """As filters of images do, which are faster without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return self.linear(y.exp() if y.requires_grad else y.expm1() + 1)


class ReadsOfDetached(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x + 1
        return self.linear(x) * (2 if y.requires_grad or x.detach().requires_grad else 3)


class ReadsWithoutEffect(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and self.linear.bias is None:
            return x
        return self.linear(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", [Reads, ReadsOfAComputedValue, ReadsOfDetached, ReadsWithoutEffect])
def test_a_read_of_an_argument_s_flag_is_a_condition(block: type[Block], training: bool) -> None:
    original = block().train(training)
    rebuilt = rebuilt_with_programs(original).train(training)
    assert isinstance(rebuilt, ProgramModule)
    for size in (2, 5, 1):
        assert_same(observe(rebuilt, {"x": tensor(size)}), observe(original, {"x": tensor(size)}))
        assert_same(rebuilt(tensor(size)), original(tensor(size)))
        with torch.no_grad():
            assert_same(rebuilt(tensor(size).requires_grad_()), original(tensor(size).requires_grad_()))
    assert len(rebuilt._programs) == {Reads: 2, ReadsOfAComputedValue: 3}.get(block, 1)


class ReadsOfAValue(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y * 2 if y.requires_grad else y


class ReadsOfAChangedValue(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        part = y[:1]
        y += self.linear.weight.sum()
        return y * 2 if part.requires_grad else y


class ReadsOfAChangedInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(self.linear.weight.sum())
        return x * 2 if x.requires_grad else x


@pytest.mark.parametrize("block", [ReadsOfAValue, ReadsOfAChangedValue, ReadsOfAChangedInput])
def test_a_flag_that_depends_on_parameters_is_refused(block: type[Block]) -> None:
    """A trainer may freeze parameters."""
    with pytest.raises(NotPortableError, match="requires_grad"):
        rebuilt_with_programs(block())
