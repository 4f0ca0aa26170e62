"""Forwards that ask what a trainer has done to a buffer, what a size is, and which dtype two dtypes make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from matrix.portability import rebuilt_with_programs
from model_factory import CallSignatureError, NotPortableError
from model_factory_server.export.exporter import record_model
from support.compare import assert_same, observe

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": tensor(3)}]


def tensor(size: int) -> Tensor:
    return torch.rand(size, WIDTH, generator=torch.Generator().manual_seed(size))


class Average(Block):
    """As codebooks do, which take gradients of their statistics from several steps."""

    def forward(self, x: Tensor) -> Tensor:
        new = x.detach().mean(0)
        if self.mean.grad is not None:
            new = new + self.mean.grad
        if self.training:
            self.mean.data.lerp_(new, 0.5)
        return self.linear(x - self.mean)


class Losses(Block):
    """As losses do that begin with a buffer of 0."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.zero
        if self.training:
            loss.requires_grad_()
            loss = loss + self.linear(x).square().mean()
        return self.linear(x), loss


class Counts(Block):
    """As augmentations do, which check their numbers."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if not (isinstance(rows, int) and rows > 0) or isinstance(rows / 2, int) or not isinstance(rows / 2, float):
            raise ValueError("a positive number of rows")
        return self.linear(x) * (rows if isinstance(rows, (str, int)) else -1)


class Promotes(Block):
    def forward(self, x: Tensor) -> Tensor:
        draw = torch.rand(x.shape[0], dtype=x.dtype, device=x.device)
        dtype = torch.promote_types(draw.dtype, torch.float32)
        return self.linear(x) + draw.to(dtype).to(x.dtype)[:, None] * (1e-3 if torch.can_cast(x.dtype, dtype) else 1)


class KeepsVersion(Block):
    """As augmentations do, which remember the state of their last parameters."""

    def forward(self, x: Tensor) -> Tensor:
        draw = torch.rand(x.shape[0]).mul_(2)
        self._kept = draw._version if not draw.is_inference() else -1
        return self.linear(x) * draw[:, None]


class SamePadding(Block):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(x[:, None], self.weight, padding="same")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.filterwarnings("ignore:Using padding=.same.")  # once, in the recording
@pytest.mark.parametrize("block", [Average, Losses, Counts, Promotes, KeepsVersion, SamePadding])
def test_the_rebuilt_block_does_the_same(block: type[Block], training: bool) -> None:
    original = block().train(training)
    rebuilt = rebuilt_with_programs(original).train(training)
    for size in (3, 5, 1):
        inputs = {"x": tensor(size)}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), str(size))


def test_a_promoted_dtype_limits_the_program_to_its_dtypes() -> None:
    rebuilt = rebuilt_with_programs(Promotes()).to(torch.bfloat16)
    with pytest.raises(CallSignatureError, match="no program for the call"):
        rebuilt(tensor(3).to(torch.bfloat16))


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
def test_sizes_stay_free() -> None:
    for block in (Counts, SamePadding):
        ((_, recorded),) = record_model(block())
        assert not any("Dim(name='x', axis=0)" in str(item) and " 3" in str(item) for item in recorded.size_conditions)


def test_a_gradient_of_a_buffer_is_no_silent_difference() -> None:
    rebuilt = rebuilt_with_programs(Average())
    rebuilt.mean.grad = torch.ones(WIDTH)  # type: ignore[union-attr]
    with pytest.raises(CallSignatureError):
        rebuilt(tensor(3))


class UsesVersion(Block):
    def forward(self, x: Tensor) -> Tensor:
        draw = torch.rand(x.shape[0])
        return self.linear(x) * (draw._version + 1)


class VersionOfArgument(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if x._version else 1)


class UnfreezesParameter(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.requires_grad_()
        return self.linear(x)


class TrainsItsBuffer(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.mean.grad is not None:
            y = y + self.mean.grad
        self.mean.requires_grad_()
        return y * self.mean


class AsksOfArgument(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if x.is_inference() else 1)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (UsesVersion, "uses the version of a tensor"),
        (VersionOfArgument, "reads ._version of a tensor"),
        (UnfreezesParameter, "sets requires_grad of the parameter linear.weight"),
        (TrainsItsBuffer, "makes the buffer mean require gradients, and reads them"),
        (AsksOfArgument, "whether a tensor of the caller is an inference tensor"),
    ],
)
def test_what_could_differ_is_refused(block: type[Block], text: str) -> None:
    with pytest.raises(NotPortableError, match=text):
        record_model(block())


class Orders(Block):
    """Decides by an integer that is 0 or 1, and refuses some of the integers."""

    def forward(self, x: Tensor) -> Tensor:
        order = (x > 2).sum().tolist()
        return self.linear(x) * [2, 3][order]


def test_a_decision_by_an_integer_has_an_integer_as_outcome() -> None:
    (_, recorded), *_ = record_model(Orders())
    assert [type(outcome) for outcome in recorded.program.outcomes()] == [int]
