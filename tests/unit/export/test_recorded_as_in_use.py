"""Forwards with a risk of a wrong recording: the program equals the forward, or the forward is refused."""

from __future__ import annotations

import copy
import pickle
import random
from collections import OrderedDict, deque
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from matrix.portability import rebuilt_with_programs
from model_factory import CallSignatureError, NotPortableError
from model_factory.program.example_call import ExampleCall, decode_call, encode_call
from model_factory_server.export.trainer_call import record_call
from support.compare import assert_same, assert_same_runs

WIDTH = 4


class Block(nn.Module):
    """A layer, and an example of its forward."""

    example: ClassVar[dict[str, Any]] = {"x": torch.randn(3, 5, WIDTH)}

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [self.example]

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


class ScaledByAnInput(Block):
    example: ClassVar[dict[str, Any]] = {"x": torch.randn(3, 5, WIDTH), "weight": torch.rand(3, 5, 1)}

    def forward(self, x: Tensor, weight: Tensor) -> Any:
        return self.linear(x) * weight


class FilledWithNan(Block):
    example: ClassVar[dict[str, Any]] = {"x": torch.randn(3, 5, WIDTH), "fill": float("nan")}

    def forward(self, x: Tensor, fill: float = 0.0) -> Any:
        return self.linear(x).clamp_max(0) if fill != fill else self.linear(x) + fill  # noqa: PLR0124


class PaddedToEight(Block):
    def forward(self, x: Tensor) -> Any:
        return functional.pad(self.linear(x), (0, 0, 0, -x.shape[1] % 8))


class ReturnsAParameter(Block):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x), self.linear.bias


class WritesToItsInput(Block):
    def forward(self, x: Tensor) -> Any:
        x -= x.mean()
        return self.linear(x)


class OfProbabilities(Block):
    example: ClassVar[dict[str, Any]] = {"x": torch.rand(3, WIDTH), "target": torch.rand(3, WIDTH)}

    def forward(self, x: Tensor, target: Tensor) -> Any:
        return functional.binary_cross_entropy(self.linear(x).sigmoid(), target)


class RunningMean(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        return self.linear(x - self.mean)


class ToTheSizeOfAnother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.randn(2, 3, 5, 6), "skip": torch.randn(2, 3, 10, 11)}]

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([self.up(x, output_size=skip.shape[-2:]), skip], 1)


class ByKeywordInAnotherOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)
        self.gru = nn.GRU(8, 8, batch_first=True)

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.randn(2, 5, 8), "memory": torch.randn(2, 3, 8)}]

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        return self.decoder(memory=memory, tgt=x), self.gru(hx=torch.zeros(1, x.shape[0], 8), input=x)[0]


class WithoutAutocastAsDecorator(Block):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


class CastsByType(Block):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x.type(self.linear.weight.dtype))


class DrawsFromADistribution(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.distributions.Normal(self.linear(x), functional.softplus(x) + 0.1).rsample()


class CachesPositions(Block):
    def __init__(self) -> None:
        super().__init__()
        self._positions: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        if self._positions is None or len(self._positions) < x.shape[1]:
            self._positions = torch.arange(x.shape[1]).float()[:, None]
        return self.linear(x) + self._positions[: x.shape[1]]


class CachesMasks(Block):
    def __init__(self) -> None:
        super().__init__()
        self._masks: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        length = int(x.shape[1])
        if length not in self._masks:
            self._masks[length] = torch.ones(length, length).tril()
        return self._masks[length].to(x.dtype) @ self.linear(x)


class CachesInAList(Block):
    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[str, list[Tensor]] = {"frequencies": []}

    def forward(self, x: Tensor) -> Any:
        if not self._cache["frequencies"]:
            self._cache["frequencies"].append(torch.arange(WIDTH).float())
        return self.linear(x) * self._cache["frequencies"][0].sin()


class WritesTheSameNumber(Block):
    def __init__(self) -> None:
        super().__init__()
        self.settings = OrderedDict(scale=0.0)

    def forward(self, x: Tensor) -> Any:
        self.settings["scale"] = 1 / WIDTH**0.5
        return self.linear(x) * self.settings["scale"]


class KeepsALog(Block):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.last: deque[str] = deque(maxlen=2)

    def forward(self, x: Tensor) -> Any:
        self.seen.add("called")
        self.last.append("called")
        return self.linear(x)


class ByTheTextOfASize(Block):
    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({"5": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Any:
        key = str(x.shape[1])
        return self.adapters[key](x) if key in self.adapters else self.linear(x)


class ByTheTextOfSizes(ByTheTextOfASize):
    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({"(3, 5)": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Any:
        key = str(tuple(x.shape[:2]))
        return self.adapters[key](x) if key in self.adapters else self.linear(x)


class InPlaceByKeyword(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.relu_(input=self.linear(x))


class CachesBesideABuffer(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self._cache: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        self._cache = torch.arange(x.shape[1])
        if self.seen.item() == 0:
            self.seen.fill_(1)
            return self.linear(x)
        return self.linear(x) * 2


SAME = [
    *(FilledWithNan, ScaledByAnInput, PaddedToEight, ReturnsAParameter, WritesToItsInput, OfProbabilities, RunningMean),
    *(ToTheSizeOfAnother, ByKeywordInAnotherOrder, WithoutAutocastAsDecorator, CastsByType, DrawsFromADistribution),
    *(
        CachesPositions,
        CachesMasks,
        CachesInAList,
        WritesTheSameNumber,
        KeepsALog,
        ByTheTextOfASize,
        ByTheTextOfSizes,
        InPlaceByKeyword,
    ),
]


@pytest.mark.parametrize("block", SAME)
def test_the_blocks_are_portable(block: type[Any]) -> None:
    original = block()
    twin = rebuilt_with_programs(copy.deepcopy(original))
    for training in (False, True):
        for module in (original, twin):
            module.train(training)
        (inputs,) = original.example_inputs()
        if block is WritesToItsInput:  # autograd does not allow writes to a leaf
            assert_same(*(module(inputs["x"].clone()) for module in (original, twin)))
        else:
            assert_same_runs(original, twin, inputs)


def test_an_argument_of_nan_after_pickling() -> None:
    twin = rebuilt_with_programs(FilledWithNan())
    again = pickle.loads(pickle.dumps(twin))  # noqa: S301  written here
    (inputs,) = FilledWithNan().example_inputs()
    assert_same(again(**inputs), twin(**inputs))


class CheckpointsReentrantly(Block):
    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.linear, x, use_reentrant=True) * checkpoint(self.linear, x, use_reentrant=False)


class SkipsSeldom(Block):
    def forward(self, x: Tensor) -> Any:
        return x if random.random() < 1e-6 else self.linear(x)


class RemembersItsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        self._state: Tensor | None = None

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.randn(3, WIDTH)}]

    def forward(self, x: Tensor) -> Tensor:
        self._state = self.cell(x, None if self._state is None else self._state.detach())
        return self._state


class RemembersInADict(RemembersItsState):
    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, list[Tensor]] = {"all": []}

    def forward(self, x: Tensor) -> Tensor:
        states = self.states["all"]
        states.append(self.cell(x, states[-1].detach() if states else None))
        return states[-1]


class OnceByRemoval(Block):
    def __init__(self) -> None:
        super().__init__()
        self.state = {"first": True}

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) * (2 if self.state.pop("first", False) else 1)


class KeepsTheFirstMean(Block):
    def __init__(self) -> None:
        super().__init__()
        self.statistics: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        if "mean" not in self.statistics:
            self.statistics["mean"] = x.detach()[0].mean()
        return self.linear(x - self.statistics["mean"])


class KeepsTheFirstSize(Block):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) * self.sizes.setdefault("batch", x.shape[0])


class CountsInADict(Block):
    def __init__(self) -> None:
        super().__init__()
        self.counts = {"calls": 0}

    def forward(self, x: Tensor) -> Any:
        self.counts["calls"] += 1
        return self.linear(x)


class WarmsUp(Block):
    def __init__(self) -> None:
        super().__init__()
        self._step = 0

    def forward(self, x: Tensor) -> Any:
        self._step += 1
        return self.linear(x) * min(1, self._step / 10)


class ChangesAtTheFifth(WarmsUp):
    def forward(self, x: Tensor) -> Any:
        self._step += 1
        return self.linear(x) if self._step < 5 else self.linear(x) * 2


class WarmsUpOnProbabilities(WarmsUp):
    example = OfProbabilities.example

    def forward(self, x: Tensor, target: Tensor) -> Any:
        self._step += 1
        return functional.binary_cross_entropy(self.linear(x).sigmoid(), target) * min(1, self._step / 10)


class WritesToItsCallersDict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        batch["image"] = batch["image"] / 255
        return batch["image"].mean()

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"batch": {"image": torch.ones(2, 3)}}]


class AppendsToItsCallersList(nn.Module):
    def forward(self, frames: dict[str, list[Tensor]]) -> Tensor:
        frames["all"].append(frames["all"][0])
        return torch.stack(frames["all"])

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"frames": {"all": [torch.ones(2)]}}]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (CheckpointsReentrantly, "use_reentrant=True, whose results have gradients only if an argument has gradients"),
        (WritesToItsCallersDict, r"writes to its caller's argument batch, .* batch = dict\(batch\)"),
        (AppendsToItsCallersList, r"writes to its caller's argument frames\['all'\]"),
        (SkipsSeldom, "random numbers from Python's random"),
        (RemembersItsState, "keeps a value in _state that changes the next call"),
        (RemembersInADict, r"keeps a value in states\['all'\]\[\d\] that changes the next call"),
        (OnceByRemoval, r"keeps a value in state\['first'\]"),
        (KeepsTheFirstMean, r"keeps a value in statistics\['mean'\]"),
        (KeepsTheFirstSize, r"keeps a value in sizes\['batch'\]"),
        (CountsInADict, r"keeps a value in counts\['calls'\]"),
        (WarmsUp, "keeps a value in _step that changes the next call"),
        (ChangesAtTheFifth, "keeps a value in _step"),
        (WarmsUpOnProbabilities, "keeps a value in _step"),
    ],
)
def test_they_are_refused(block: type[nn.Module], reason: str) -> None:
    module = block()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(NotPortableError, match=reason):
        rebuilt_with_programs(module)
    assert_same(dict(module.state_dict()), dict(before))


class UnlessThereAreNone(Block):
    example: ClassVar[dict[str, Any]] = {"x": torch.randn(3, WIDTH), "boxes": torch.randn(2, WIDTH)}

    def forward(self, x: Tensor, boxes: Tensor) -> Any:
        return self.linear(x) if boxes.shape[0] == 0 else self.linear(x) + boxes.mean(0)


class NoneOfThem(UnlessThereAreNone):
    example: ClassVar[dict[str, Any]] = {"x": torch.randn(3, WIDTH), "boxes": torch.randn(0, WIDTH)}


class OfBytesOrUnits(Block):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x.float() / 255 if x.dtype == torch.uint8 else x)


class BooleanOrAddedMask(Block):
    example: ClassVar[dict[str, Any]] = {"x": torch.randn(3, WIDTH), "mask": torch.randn(3, WIDTH)}

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        y = self.linear(x)
        return y.masked_fill(mask, -1e9) if mask.dtype == torch.bool else y + mask


@pytest.mark.parametrize(
    ("block", "inputs", "form"),
    [
        (UnlessThereAreNone, {"boxes": torch.randn(0, WIDTH)}, r"boxes=Tensor\[rank 2, size 0 at 0\]"),
        (NoneOfThem, {"boxes": torch.randn(2, WIDTH)}, r"boxes=Tensor\[rank 2\]"),
        (OfBytesOrUnits, {"x": torch.zeros(3, 5, WIDTH, dtype=torch.uint8)}, r"x=Tensor\[rank 3, uint8\]"),
        (BooleanOrAddedMask, {"mask": torch.ones(3, WIDTH) > 0}, r"mask=Tensor\[rank 2, bool\]"),
    ],
)
def test_a_program_is_not_run_for_what_its_forward_decides_by(
    block: type[Block], inputs: dict[str, Tensor], form: str
) -> None:
    original = block()
    twin = rebuilt_with_programs(copy.deepcopy(original))
    assert_same_runs(original, twin, original.example_inputs()[0])
    with pytest.raises(CallSignatureError, match=f"no program for the call.*{form}"):
        twin(**original.example_inputs()[0] | inputs)


def test_sizes_of_zero_are_recorded() -> None:
    original = NoneOfThem()
    twin = rebuilt_with_programs(copy.deepcopy(original))
    inputs = {"x": torch.randn(7, WIDTH), "boxes": torch.randn(0, WIDTH)}
    assert_same_runs(original.train(), twin.train(), inputs)
    assert_same(twin(**inputs), original.linear(inputs["x"]))


class RefusesNegatives(Block):
    example: ClassVar[dict[str, Any]] = {"x": torch.randn(1, 5, WIDTH)}

    def forward(self, x: Tensor) -> Any:
        if not (x >= 0).all():
            raise ValueError("negative")
        return self.linear(x)


def test_a_refusal_by_values_is_not_laid_to_a_size_of_one() -> None:
    original = RefusesNegatives()
    inputs = {"x": torch.rand(4, 3, WIDTH)}
    assert_same(rebuilt_with_programs(copy.deepcopy(original))(**inputs), original(**inputs))


def test_a_second_call_that_takes_another_side_is_not_compared() -> None:
    original = CachesBesideABuffer()
    twin = rebuilt_with_programs(copy.deepcopy(original))
    assert_same(twin(**original.example), original(**original.example))


class OwnDicts(nn.Module):
    """Writes to copies and to the forward's own keyword arguments, unseen by the caller."""

    def forward(self, batch: dict[str, Tensor], **options: float) -> Tensor:
        batch = dict(batch)
        batch["image"] = batch.pop("image") * options.pop("scale")
        return batch["image"]

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"batch": {"image": torch.ones(2, 3)}, "scale": 2.0}]


def test_a_forward_may_write_to_dicts_of_its_own() -> None:
    twin = rebuilt_with_programs(OwnDicts())
    image = torch.randn(4, 5)
    assert_same(twin({"image": image}, scale=2.0), image * 2.0)


class Standardises(nn.Module):
    """Refuses a constant input; the layer after the check takes one width only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        std = x.std()
        if std == 0:
            raise ValueError("std evaluated to zero")
        return (x - self.mean) / std

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.arange(12.0).view(2, 6)}]


def test_a_wrong_call_has_the_reason_of_the_side_that_the_call_takes() -> None:
    call = decode_call(encode_call({"x": torch.randn(2, 7)}))
    with pytest.raises(CallSignatureError) as caught:
        record_call(Standardises(), "", call, {})
    assert "must match" in str(caught.value) or "size of tensor" in str(caught.value), caught.value
    assert "std evaluated" not in str(caught.value)
    with pytest.raises(CallSignatureError, match="std evaluated to zero"):
        record_call(Standardises(), "", ExampleCall(arguments={"x": torch.ones(2, 6)}, outcomes=(True,)), {})


class DrawsFromNumpy(Block):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x) * float(np.random.rand())


def test_another_generator_of_numpy_is_noticed_and_left_alone() -> None:
    """The state of a generator of another kind is a dict."""
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        assert len(rebuilt_with_programs(Block())._programs) == 1
        with pytest.raises(NotPortableError, match="random numbers from Python's random or from NumPy"):
            rebuilt_with_programs(DrawsFromNumpy())
    finally:
        np.random.set_bit_generator(before)
