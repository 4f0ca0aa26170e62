"""Attributes that a forward assigns: left out if no forward reads them at its next call, else the model is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs, with_recorder
from model_factory import NotPortableError
from support.compare import assert_same, observe

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.last: Tensor | None = None
        self.rate = 0.5

    def example_inputs(self) -> Any:
        return [{"x": tensor(2)}]


def tensor(size: int) -> Tensor:
    return torch.rand(size, WIDTH, generator=torch.Generator().manual_seed(size))


class Shows(Block):
    """As layers do that keep key points or a perplexity for a plot."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x).softmax(-1)
        return self.last * self.rate


class ShowsInTraining(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.training:
            self.last = y.detach()
        return y.relu()


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.norm = Shows(), nn.LayerNorm(WIDTH)

    def example_inputs(self) -> Any:
        return [{"x": tensor(2)}]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pool(x)) + self.pool.last


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", [Shows, ShowsInTraining, Inside])
def test_an_attribute_that_no_forward_reads_is_left_out(block: type[nn.Module], training: bool) -> None:
    original = block().train(training)
    rebuilt = rebuilt_with_programs(original).train(training)
    for size in (2, 5, 1):
        inputs = {"x": tensor(size)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(size))
    shows = rebuilt.pool if block is Inside else rebuilt
    assert shows.rate == 0.5
    with pytest.raises(AttributeError, match="last"):  # and no value of another call
        _ = shows.last


class ByMode(Block):
    """Training keeps a value, and evaluation reads the value."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.last = x.detach().mean()
            return self.linear(x)
        return self.linear(x) if self.last is None else self.linear(x) * self.last


class ByArguments(Block):
    """One kind of call keeps a value, and another kind reads the value."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        if scale is None:
            self.last = x.detach().mean()
            return self.linear(x)
        return self.linear(x) * scale if self.last is None else self.linear(x) * self.last

    def example_inputs(self) -> Any:
        return [{"x": tensor(2)}, {"x": tensor(2), "scale": torch.ones(())}]


class ByMethods(Block):
    portable_methods = ("encode",)

    def encode(self, x: Tensor) -> Tensor:
        self.last = x.detach().mean()
        return self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if self.last is None else self.linear(x) * self.last

    def example_inputs(self) -> Any:
        return {"encode": [{"x": tensor(2)}], "forward": [{"x": tensor(2)}]}


class ReadsOfAnother(Block):
    def __init__(self, other: Block) -> None:
        super().__init__()
        self.others = (other,)  # no child

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if getattr(self.others[0], "last", None) is None else x


def two_blocks() -> nn.Module:
    first = Shows()
    return nn.Sequential(first, ReadsOfAnother(first))


@pytest.mark.parametrize("make", [ByMode, ByArguments, ByMethods, two_blocks])
def test_an_attribute_for_another_call_is_refused(make: Any) -> None:
    with pytest.raises(NotPortableError, match=r"assigns .*last, which a forward reads at its next call"):
        rebuilt_with_programs(make())


class PrivateByMode(Block):
    """As :class:`ByMode`, with a private name."""

    _mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._mean = x.detach().mean()
            return self.linear(x)
        return self.linear(x) if self._mean is None else self.linear(x) * self._mean


class PrivateByArguments(Block):
    def __init__(self) -> None:
        super().__init__()
        self._mean: Tensor | None = None

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        if scale is None:
            self._mean = x.detach().mean()
            return self.linear(x)
        return self.linear(x) * scale if self._mean is None else self.linear(x) * self._mean

    def example_inputs(self) -> Any:
        return [{"x": tensor(2)}, {"x": tensor(2), "scale": torch.ones(())}]


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = PrivateByMode()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).relu()

    def example_inputs(self) -> Any:
        return [{"x": tensor(2)}]


@pytest.mark.parametrize("block", [PrivateByMode, PrivateByArguments, Around])
def test_a_private_attribute_for_another_kind_of_call_is_refused(block: type[nn.Module]) -> None:
    """Each kind of call alone does as its program; after a call of the other kind, the original does something else."""
    with pytest.raises(NotPortableError, match=r"assigns .*_mean, which a forward reads in a call of another kind"):
        rebuilt_with_programs(block())


class PrivateOfTheCall(Block):
    def forward(self, x: Tensor) -> Tensor:
        self._mean = x.detach().mean()
        return self.linear(x) * self._mean


def test_a_private_attribute_of_one_call_is_left_alone() -> None:
    original = PrivateOfTheCall()
    rebuilt = rebuilt_with_programs(original)
    for training in (True, False):
        for size in (2, 5, 1):
            inputs = {"x": tensor(size)}
            assert_same(observe(rebuilt.train(training), inputs), observe(original.train(training), inputs), str(size))


class WithoutExamples(Shows):
    example_inputs = None  # type: ignore[assignment]


def test_a_first_call_of_a_trainer_assigns_nothing() -> None:
    """The rebuilt module already has the attribute as it was before all calls."""
    _, remote, _ = with_recorder(WithoutExamples)
    with pytest.raises(NotPortableError, match=r"define example_inputs\(\)"):
        remote(tensor(2))


class PrivateWithoutExamples(PrivateByMode):
    example_inputs = None  # type: ignore[assignment]


class AroundWithoutExamples(Around):
    example_inputs = None  # type: ignore[assignment]


@pytest.mark.parametrize("block", [PrivateWithoutExamples, AroundWithoutExamples])
def test_a_first_call_of_a_trainer_assigns_no_private_attribute(block: type[nn.Module]) -> None:
    """Another kind of call may read the attribute, and nothing shows which calls the trainer makes later."""
    _, remote, _ = with_recorder(block)
    with pytest.raises(NotPortableError, match=r"assigns Private\w+\._mean, .*define example_inputs\(\)"):
        remote.train()(tensor(2))


def test_a_descriptor_without_recordings_has_every_attribute() -> None:
    assert rebuilt_elsewhere(Shows()).last is None


class ReadsParametrised(Block):
    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.normed.weight.detach()
        return self.linear(x) @ self.normed.weight


def test_reads_of_parametrised_layers_are_noted() -> None:
    original = ReadsParametrised()
    rebuilt = rebuilt_with_programs(original)
    for size in (2, 5, 1):
        assert_same(observe(rebuilt, {"x": tensor(size)}), observe(original, {"x": tensor(size)}), str(size))
