"""Forwards that write to their parameters: targets that follow, codebooks with new entries, weights kept normal."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from matrix.same import same
from model_factory.errors import NotPortableError
from model_factory.program.ir import ModuleCall
from model_factory_server.export.exporter import record_model

WIDTH = 4


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.target = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(3, WIDTH)}]

    def write(self) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.write()
        result: Tensor = self.layer(x) - self.target(x)
        return result


class Follows(Writes):
    def write(self) -> None:
        for own, followed in zip(self.target.parameters(), self.layer.parameters(), strict=True):
            own.data.lerp_(followed.data, 0.1)


class FollowsInTraining(Follows):
    def write(self) -> None:
        if self.training:
            super().write()


class TakesAll(Writes):
    def write(self) -> None:
        self.target.weight.data[:] = self.layer.weight.data


class AddsInPlace(Writes):
    def write(self) -> None:
        torch.add(self.target.weight.data, 1.0, out=self.target.weight.data)


class KeepsTheWeightNormal(Writes):
    @torch.no_grad()
    def write(self) -> None:
        self.layer.weight.copy_(nn.functional.normalize(self.layer.weight, dim=-1))


class ReplacesEntries(Writes):
    """As a codebook whose far entries are replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(3, WIDTH))

    def write(self) -> None:
        with torch.no_grad():
            far = (self.codes.norm(dim=-1) > 1)[:, None]
            self.codes.copy_(torch.where(far, self.layer.bias, self.codes))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.codes.sum(0)


class Calls(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.out = inner, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.inner(x))
        return result

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(3, WIDTH)}]


BLOCKS = [Follows, FollowsInTraining, TakesAll, AddsInPlace, KeepsTheWeightNormal, ReplacesEntries]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_training_writes_what_the_original_writes(block: type[nn.Module], inside: bool) -> None:
    torch.manual_seed(0)
    original = Calls(block()) if inside else block()
    before = copy.deepcopy(original.state_dict())
    rebuilt = rebuilt_with_programs(original)
    assert same(before, original.state_dict()), "the recording changed the model"
    for step in range(6):
        for model in (original, rebuilt):
            model.train(step % 3 != 2)
            torch.manual_seed(step)
            optimizer = torch.optim.SGD([item for item in model.parameters() if item.requires_grad], lr=1e-3)
            model(torch.randn(2 + step, WIDTH)).square().sum().backward()
            optimizer.step()
        assert same(original.state_dict(), rebuilt.state_dict())


def test_a_block_that_writes_to_its_parameters_has_a_program_of_its_own() -> None:
    program = next(item.program for path, item in record_model(Calls(Follows())) if not path)
    assert [step.path for step in program.steps if isinstance(step, ModuleCall)] == ["inner", "out"]


class WritesAfterUse(Writes):
    """The backward of the original runs with the written weight, unnoticed; autograd refuses this of a program."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.first(x))
        self.layer.weight.data.mul_(0.5)
        return y


def test_a_write_to_a_weight_that_the_backward_needs_is_refused() -> None:
    model = WritesAfterUse()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotPortableError, match=r"does not reproduce the forward.*modified by an inplace operation"):
        rebuilt_with_programs(model)
    assert same(before, model.state_dict())
