"""The recorder: typical forwards, each run as a program beside the original, or refused with a reason."""

from __future__ import annotations

import inspect
import math
import random
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  as everyone writes it

from model_factory import CallSignatureError, NotPortableError
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.rebuild import rebuild
from model_factory.program.forward_signature import ForwardSignature
from model_factory_server.export.record.recorder import record_modes
from model_factory_server.export.verify.verifier import verify
from support.compare import assert_same, observe

FEATURES = 4
OUTSIDE = nn.Parameter(torch.ones(FEATURES))
OUTSIDE_LAYER = nn.Linear(FEATURES, FEATURES)


def ported(module: nn.Module, *calls: dict[str, Any]) -> nn.Module:
    """The module without its class: described, recorded for these calls, verified and rebuilt."""
    programs = []
    for arguments in calls:
        bound = ForwardSignature.of(module.forward).bind((), arguments)
        for recorded in record_modes(module, bound):
            verify(module, recorded, bound)
            programs.append(("", recorded))
    descriptor = describe(module)
    tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(module, descriptor).items()}
    twin = rebuild(descriptor, tensors, tuple(programs))
    assert type(twin) is not type(module)
    return twin


def x(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"x": torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape))).to(dtype)}


class Block(nn.Module):
    """A layer with parameters and a buffer, for the forwards below."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)
        self.scale = nn.Parameter(torch.full((FEATURES,), 1.5))
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class BatchOfOne(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return self.linear(x) * 2
        return self.linear(x) + 1


class LongSequence(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 6:
            x = x[:, -6:]
        return self.linear(x)


class EvenLength(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        return self.linear(x.unflatten(1, (-1, 2)))


class AtMostFour(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, : min(x.shape[1], 4)])


class EqualSizes(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == x.shape[1]:
            return self.linear(x + x.transpose(0, 1))
        return self.linear(x)


class Squeezed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze(1)


class SqueezedAll(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze()


class LoopOverTokens(Block):
    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        for index in range(x.shape[1]):
            state = torch.tanh(self.linear(state) + x[:, index])
        return state


class IterateTokens(Block):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.linear(token) for token in x.transpose(0, 1)]


class PythonsSqrt(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) / math.sqrt(x.shape[1])


class PythonsLen(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) / len(x)


BRANCHES: list[tuple[type[Block], tuple[int, ...], list[tuple[int, ...]], list[tuple[int, ...]]]] = [
    # Recorded at; the same way at; another way at.
    (BatchOfOne, (3, 5, FEATURES), [(2, 5, FEATURES), (7, 1, FEATURES)], [(1, 5, FEATURES), (1, 1, FEATURES)]),
    (BatchOfOne, (1, 5, FEATURES), [(1, 2, FEATURES), (1, 1, FEATURES)], [(2, 5, FEATURES)]),
    (LongSequence, (2, 5, FEATURES), [(3, 6, FEATURES), (1, 1, FEATURES)], [(2, 7, FEATURES), (3, 9, FEATURES)]),
    (LongSequence, (2, 8, FEATURES), [(3, 7, FEATURES), (1, 30, FEATURES)], [(2, 6, FEATURES), (3, 1, FEATURES)]),
    (EvenLength, (2, 4, FEATURES), [(3, 6, FEATURES), (1, 2, FEATURES)], [(2, 5, FEATURES)]),
    (EvenLength, (2, 5, FEATURES), [], [(2, 4, FEATURES)]),
    (AtMostFour, (2, 3, FEATURES), [(2, 2, FEATURES), (3, 1, FEATURES)], []),
    (AtMostFour, (2, 6, FEATURES), [(2, 5, FEATURES), (3, 9, FEATURES)], []),
    (EqualSizes, (3, 5, FEATURES), [(4, 2, FEATURES)], [(3, 3, FEATURES), (1, 1, FEATURES)]),
    (EqualSizes, (3, 3, FEATURES), [(5, 5, FEATURES)], [(3, 4, FEATURES)]),
    (Squeezed, (3, 1, FEATURES), [(2, 1, FEATURES), (1, 1, FEATURES)], [(2, 5, FEATURES)]),
    (Squeezed, (3, 5, FEATURES), [(2, 4, FEATURES), (1, 2, FEATURES)], [(2, 1, FEATURES)]),
    (SqueezedAll, (3, 1, FEATURES), [(2, 1, FEATURES)], [(1, 1, FEATURES), (3, 2, FEATURES), (1, 2, FEATURES)]),
    (LoopOverTokens, (2, 3, FEATURES), [(5, 3, FEATURES)], [(2, 2, FEATURES), (2, 4, FEATURES)]),
    (PythonsSqrt, (2, 3, FEATURES), [(5, 3, FEATURES), (2, 2, FEATURES), (2, 1, FEATURES)], []),
    (PythonsLen, (2, 3, FEATURES), [(2, 5, FEATURES)], [(3, 3, FEATURES), (1, 3, FEATURES)]),
    (IterateTokens, (2, 3, FEATURES), [(5, 3, FEATURES)], [(2, 2, FEATURES), (2, 4, FEATURES)]),
]


@pytest.mark.parametrize(
    ("block", "recorded_at", "inside", "outside"),
    BRANCHES,
    ids=[f"{block.__name__}-{'x'.join(map(str, shape))}" for block, shape, _, _ in BRANCHES],
)
def test_a_decision_on_sizes_is_never_run_wrong(
    block: type[Block],
    recorded_at: tuple[int, ...],
    inside: list[tuple[int, ...]],
    outside: list[tuple[int, ...]],
) -> None:
    original = block()
    twin = ported(original, x(*recorded_at))
    for shape in (recorded_at, *inside):
        assert_same(observe(twin, x(*shape)), observe(original, x(*shape)), str(shape))
    for shape in outside:
        with pytest.raises(CallSignatureError, match="no program for the call"):
            twin(**x(*shape))


def test_two_programs_cover_both_sides_of_a_decision() -> None:
    original = BatchOfOne()
    twin = ported(original, x(3, 2, FEATURES), x(1, 2, FEATURES))
    for batch in (1, 2, 3, 4):
        assert_same(observe(twin, x(batch, 3, FEATURES)), observe(original, x(batch, 3, FEATURES)))


class SizesAsNumbers(Block):
    def forward(self, x: Tensor) -> Tensor:
        batch, seq, features = x.shape
        positions = torch.arange(seq, device=x.device, dtype=x.dtype) / seq
        scores = x @ x.transpose(1, 2) * features**-0.5 / seq**0.5
        mask = torch.ones(seq, seq, dtype=torch.bool, device=x.device).tril()
        mixed = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ x
        flat = (mixed + positions[None, :, None]).reshape(batch * seq, -1)
        return self.linear(flat).view(batch, seq, features)[:, seq // 2 :] * (x.numel() / batch)


class NoGradRegion(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.linear(x)
            with torch.enable_grad():
                inner = self.linear(x) * self.scale
        return self.linear(x) - target + inner + x.detach()


@torch.no_grad()
def _frozen(x: Tensor) -> Tensor:
    return x.square().sum(-1, keepdim=True)


class NoGradDecorator(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * _frozen(x)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = self.scale
        y[..., 1:3] *= 2
        y.add_(1).clamp_(min=-3)
        view = y[:, -1]
        view.zero_()
        return F.relu(self.linear(y), inplace=True)


class RunningBuffers(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
                self.count += 1
        return self.linear(x - self.mean)


class Item(Block):
    def forward(self, x: Tensor) -> Tensor:
        largest = x.detach().abs().max().item()
        return self.linear(x) / largest * self.scale[0].item()


class FunctionalDropout(Block):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x) if self.training else torch.zeros_like(x)
        return F.dropout(self.linear(x), 0.4, self.training) + noise


class DtypeOfInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        table = torch.linspace(0, 1, FEATURES, dtype=torch.float32, device=x.device)
        return self.linear(x) + table.to(x.dtype) + torch.zeros(1, dtype=x.dtype) + self.scale.type_as(x)


class DeviceOfInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.full((x.shape[1], 1), 2.0, device=x.device) + torch.eye(x.shape[1]).to(x.device)[:, :1]
        return self.linear(x.to(self.scale.device)) * y


class Constants(Block):
    def forward(self, x: Tensor) -> dict[str, Any]:
        table = torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {
            "y": self.linear(x) * table,
            "pair": (x, [x + 1, None]),
            "size": x.shape[1],
            "name": "fixed",
            "same": x,
        }


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(FEATURES)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.drop(self.norm(x)) * scale


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.layers = nn.ModuleList([nn.Linear(FEATURES, FEATURES), Inner(), self.inner])
        self.heads = nn.ModuleDict({"a": nn.Linear(FEATURES, 2), "b": nn.Linear(FEATURES, 3)})
        self.heads["b"].bias = None
        self.layers[0].bias = self.layers[1].norm.bias  # tied

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.inner(x, scale=0.5) + self.inner(x)
        for layer in self.layers:
            x = x + layer(x)
        return {name: head(x) for name, head in self.heads.items()}


class SelectsByMask(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y[x > 0].sum() + y.flatten()[x.flatten().nonzero()].mean()


class MakesALayer(Block):
    def forward(self, x: Tensor) -> Tensor:
        return nn.ReLU()(self.linear(x))


class UsesAnAttributeTensor(Block):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.table


class PassesNoTensorForTheResult(Block):
    """torch's normalize() calls itself with ``out=None``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x), dim=-1)


FORWARDS = [
    MakesALayer,
    UsesAnAttributeTensor,
    SelectsByMask,
    SizesAsNumbers,
    NoGradRegion,
    NoGradDecorator,
    InPlace,
    RunningBuffers,
    Item,
    FunctionalDropout,
    DtypeOfInput,
    DeviceOfInput,
    Constants,
    Nested,
    PassesNoTensorForTheResult,
]


SIZES = [(2, 5, FEATURES), (1, 1, FEATURES), (3, 8, FEATURES), (6, 2, FEATURES)]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", FORWARDS)
def test_forward_is_reproduced_at_other_sizes(block: type[nn.Module], training: bool) -> None:
    original = block().train(training)
    twin = ported(original, x(2, 5, FEATURES)).train(training)
    for shape in SIZES:
        assert_same(observe(twin, x(*shape)), observe(original, x(*shape)), str(shape))


@pytest.mark.parametrize("block", [*FORWARDS, BatchOfOne, LongSequence])
def test_forward_is_reproduced_in_another_dtype(block: type[nn.Module]) -> None:
    original = block().double()
    twin = ported(block(), x(2, 5, FEATURES)).double()
    twin.load_state_dict(original.state_dict())
    arguments = x(3, 2, FEATURES, dtype=torch.float64)
    assert_same(observe(twin, arguments), observe(original, arguments))


@pytest.mark.parametrize("block", FORWARDS)
def test_recording_changes_nothing(block: type[nn.Module]) -> None:
    original = block().train()
    next(original.children()).eval()
    flags = [module.training for module in original.modules()]
    state = {key: value.clone() for key, value in original.state_dict().items()}
    ported(original, x(2, 5, FEATURES))
    assert [module.training for module in original.modules()] == flags
    assert_same(dict(original.state_dict()), state)


@pytest.mark.parametrize("block", [*FORWARDS, BatchOfOne, LongSequence, EqualSizes])
def test_the_same_forward_is_recorded_the_same(block: type[nn.Module]) -> None:
    def recorded() -> list[Any]:
        module = block()
        return record_modes(module, ForwardSignature.of(module.forward).bind((), x(2, 5, FEATURES)))

    assert recorded() == recorded()


def test_no_grad_around_the_call() -> None:
    original = NoGradRegion()
    twin = ported(original, x(2, 5, FEATURES))
    with torch.no_grad():
        outputs = twin(**x(3, 1, FEATURES))
        assert_same(outputs, original(**x(3, 1, FEATURES)))
    assert torch.is_grad_enabled()


class GradRegions(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.linear(x)
            with torch.enable_grad():
                inner = self.linear(x).square()
        with torch.set_grad_enabled(True):
            outer = self.linear(x)
        return self.linear(x) + shift + inner, outer  # type: ignore[return-value]


@torch.no_grad()
def target(linear: nn.Module, x: Tensor) -> Tensor:
    return linear(x).mean()  # type: ignore[no-any-return]


class CallsADecorated(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) - target(self.linear, x)


@pytest.mark.parametrize("block", [NoGradRegion, GradRegions, CallsADecorated])
@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad])
def test_a_region_ends_with_the_mode_of_the_caller(block: type[nn.Module], around: Any) -> None:
    original = block()
    twin = ported(original, x(2, 5, FEATURES))
    with around():
        expected, outputs = original(**x(3, 1, FEATURES)), twin(**x(3, 1, FEATURES))
    assert_same(outputs, expected)
    pairs = zip(outputs, expected, strict=True) if isinstance(expected, tuple) else [(outputs, expected)]
    assert all(one.requires_grad == other.requires_grad for one, other in pairs)


class WithoutAutocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False), torch.autocast(device_type="cpu", enabled=False):
            kept = self.linear(x.float())
        return self.linear(x) + kept.square()


def test_a_region_without_autocast() -> None:
    original = WithoutAutocast()
    twin = ported(original, x(2, 5, FEATURES))
    assert_same(twin(**x(3, 1, FEATURES)), original(**x(3, 1, FEATURES)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(twin(**x(3, 1, FEATURES)), original(**x(3, 1, FEATURES)))
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_the_grad_mode_is_as_before_when_a_step_fails() -> None:
    twin = ported(NoGradRegion(), x(2, 5, FEATURES))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        twin(x=torch.zeros(2, 5, FEATURES + 1))
    assert torch.is_grad_enabled()


class ByDtype(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return self.linear(x) * 2
        return self.linear(x) + torch.finfo(x.dtype).eps


class ByHalf(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y.clamp(max=1000) if y.dtype is torch.float16 else y


HALF_DTYPES = {torch.bfloat16: 1}


class ByHalfElsewhere(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + HALF_DTYPES.get(x.dtype, 0)


class ByHalfAndValues(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.dtype == torch.float16 and torch.isinf(y).any():
            y = y.clamp(max=torch.finfo(y.dtype).max - 1000)
        return y


class ByHalfInTraining(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if self.training and x.dtype == torch.float16 else 1)


class BySizeOfElement(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if x.element_size() == 2 else 3)


@pytest.mark.parametrize(
    ("block", "dtype"),
    [
        (ByDtype, torch.float64),
        (ByHalf, torch.float16),
        (ByHalfElsewhere, torch.bfloat16),
        (ByHalfAndValues, torch.float16),
        (ByHalfInTraining, torch.float16),
        (BySizeOfElement, torch.bfloat16),
    ],
)
def test_a_decision_by_dtype_holds_for_that_dtype_only(block: type[nn.Module], dtype: torch.dtype) -> None:
    original = block()
    twin = ported(original, x(2, 5, FEATURES))
    assert_same(observe(twin, x(3, 2, FEATURES)), observe(original, x(3, 2, FEATURES)))
    with pytest.raises(CallSignatureError):
        twin.to(dtype)(**x(3, 2, FEATURES, dtype=dtype))


def test_a_decision_by_dtype_warns_under_autocast() -> None:
    twin = ported(ByHalf(), x(2, 5, FEATURES))
    with warnings.catch_warnings(action="error"):
        twin(**x(2, 5, FEATURES))
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(UserWarning, match="autocast does not change"):
        twin(**x(2, 5, FEATURES))


class Masked(Block):
    def forward(self, x: Tensor) -> dict[str, Any]:
        scores = self.linear(x) @ x.transpose(1, 2)
        limits = torch.finfo(scores.dtype)
        masked = scores.masked_fill(scores < 0, limits.min) + scores.masked_fill(scores > 0, -limits.max)
        return {
            "weights": masked.softmax(-1),
            "raw": masked,
            "small": scores.clamp(min=limits.tiny) + limits.eps + 1e-6,
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_limits_of_a_dtype_are_those_of_the_value_at_run_time(dtype: torch.dtype, autocast: bool) -> None:
    original = Masked().to(dtype)
    twin = ported(Masked(), x(2, 5, FEATURES)).to(dtype)
    twin.load_state_dict(original.state_dict())
    arguments = x(3, 2, FEATURES, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert_same(observe(twin, arguments), observe(original, arguments))


class LimitsAskedForEarly(Block):
    def forward(self, x: Tensor) -> Tensor:
        least, h = torch.finfo(x.dtype).min, x
        for _ in range(2):
            query = self.linear(h)
            weights = (query.float() @ query.float().mT).softmax(-1).to(query.dtype)
            h = h + weights @ query
        return h.masked_fill(h < 0, least)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_limit_is_that_of_the_value_it_was_asked_for(dtype: torch.dtype) -> None:
    original = LimitsAskedForEarly()
    twin = ported(original, x(2, 5, FEATURES))
    with torch.autocast("cpu", dtype=dtype):
        assert_same(observe(twin, x(3, 2, FEATURES)), observe(original, x(3, 2, FEATURES)))


class Limits(NamedTuple):
    least: float
    step: float


class LimitsAsResult(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Limits]:
        return self.linear(x), Limits(torch.finfo(x.dtype).min, 1e-6)


def test_a_result_has_limits_of_a_dtype_too() -> None:
    twin = ported(LimitsAsResult(), x(2, 5, FEATURES)).double()
    _, limits = twin(**x(2, 5, FEATURES, dtype=torch.float64))
    assert (limits.least, limits.step) == (torch.finfo(torch.float64).min, 1e-6)


class ByTrainingOfAChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = RunningBuffers()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (2 if self.training else 3)


def test_modes_other_than_all_or_none_are_not_run_wrong() -> None:
    original = ByTrainingOfAChild()
    twin = ported(original, x(2, 5, FEATURES))
    for model in (original, twin):
        model.train().inner.eval()
    with pytest.raises(CallSignatureError):
        twin(**x(2, 5, FEATURES))


class ManyArguments(Block):
    def forward(
        self,
        x: Tensor,
        others: list[Tensor] | None = None,
        *rest: Tensor,
        mode: str = "sum",
        named: dict[str, Any] | None = None,
        **extra: Tensor,
    ) -> Tensor:
        parts = [x, *(others or []), *rest, *extra.values()]
        if named is not None:
            parts.append(named["y"] * named.get("factor", 1))
        stacked = torch.stack(parts)
        return self.linear(stacked.sum(0) if mode == "sum" else stacked.amax(0))


def test_each_nesting_is_a_form_of_its_own() -> None:
    original = ManyArguments()
    token = x(2, 3, FEATURES)["x"]
    calls: list[dict[str, Any]] = [
        {"x": token},
        {"x": token, "others": [token, token]},
        {"x": token, "named": {"y": token, "factor": 3}},
        {"x": token, "named": {"y": token}, "mode": "max"},
        {"x": token, "z": token},
    ]
    twin = ported(original, *calls)
    for call in calls:
        assert_same(observe(twin, call), observe(original, call))
    positional = (token, [token, token])
    assert_same(twin(*positional), original(*positional))
    for other in [
        {"others": [token]},
        {"others": (token, token)},
        {"mode": "max"},
        {"named": {"y": token, "factor": 4}},
        {"named": {"y": token, "factor": 3.0}},
        {"w": token},
    ]:
        with pytest.raises(CallSignatureError):
            twin(token, **other)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        twin()


class ScalesByFloat(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(x.mean())  # the culprit


class Helper(Block):
    def choose(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 1 else -x  # the culprit

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.choose(x))


@pytest.mark.parametrize("block", [ScalesByFloat, Helper])
def test_values_that_cannot_be_a_guard_are_refused_and_their_line_named(block: type[Block]) -> None:
    with pytest.raises(NotPortableError) as caught:
        ported(block(), x(2, 5, FEATURES))
    lines, first = inspect.getsourcelines(block)
    culprit = next(number for number, line in enumerate(lines, first) if "# the culprit" in line)
    message = str(caught.value)
    assert f"test_recorder.py:{culprit}: {lines[culprit - first].strip()}" in message
    assert "by the values of a tensor" in message
    assert "Remedy: " in message


class AssignsTensor(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x)
        return self.last


class CountsCalls(Block):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


class ReplacesBuffer(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean * 0.9 + x.mean((0, 1)) * 0.1
        return self.linear(x)


class InnerAssigns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = CountsCalls()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class GrowsAList(Block):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return self.linear(x) * len(self.seen)


class CallsAForeignModule(Block):
    def forward(self, x: Tensor) -> Tensor:
        return OUTSIDE_LAYER(x)


class UsesAGlobalParameter(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + OUTSIDE


class PythonsRandom(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * random.random()


class ThroughNumpy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.from_numpy(x.detach().numpy().copy())


class ChangesAutocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(x) + x.square()


class SetsAutocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_autocast_enabled("cpu", True)
        try:
            return self.linear(x) + x.square()
        finally:
            torch.set_autocast_enabled("cpu", False)


class ChangesAutocastOfAGpu(Block):
    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings(action="ignore"), torch.autocast("cuda", dtype=torch.bfloat16):
            return self.linear(x)


class SetsTheSeed(Block):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return self.linear(x) + torch.rand_like(x)


class LooksAtGrad(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y * 2 if y.requires_grad else y


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (AssignsTensor, "assigns AssignsTensor.last"),
        (CountsCalls, "assigns CountsCalls.calls"),
        (ReplacesBuffer, "assigns ReplacesBuffer._buffers.mean"),
        (InnerAssigns, "assigns CountsCalls.calls"),
        (GrowsAList, "keeps a value in"),
        (CallsAForeignModule, "calls a Linear that is not one of the module's children"),
        (UsesAGlobalParameter, "neither an input nor a parameter or buffer of the module"),
        (PythonsRandom, "random numbers from Python's random"),
        (ThroughNumpy, "numpy"),
        (ChangesAutocast, "autocast"),
        (SetsAutocast, "autocast"),
        (ChangesAutocastOfAGpu, "autocast"),
        (SetsTheSeed, "manual_seed|does not reproduce the forward"),
        (LooksAtGrad, "requires_grad"),
    ],
)
def test_what_a_program_cannot_do_is_refused(block: type[nn.Module], reason: str) -> None:
    with pytest.raises(NotPortableError, match=reason):
        ported(block(), x(2, 5, FEATURES))


@pytest.mark.parametrize(
    "register",
    [
        lambda module, hook: module.register_forward_hook(hook),
        lambda module, hook: module.register_forward_pre_hook(hook),
        lambda module, hook: module.register_full_backward_hook(hook),
        lambda module, hook: module.register_state_dict_post_hook(hook),
    ],
    ids=["forward", "forward_pre", "backward", "state_dict"],
)
@pytest.mark.parametrize("path", ["", "inner.norm"])
def test_hooks_are_refused(register: Callable[[nn.Module, Any], Any], path: str) -> None:
    module = Nested()
    register(module.get_submodule(path), lambda *_: None)
    with pytest.raises(NotPortableError, match=rf"{re.escape(path or 'the model')} .*has a hook"):
        describe(module)


def test_a_forward_that_refuses_the_call_says_so() -> None:
    with pytest.raises(CallSignatureError, match=r"refused the call.*mat1 and mat2|refused the call.*size"):
        ported(SizesAsNumbers(), x(2, 5, FEATURES + 1))
