"""Reads of layers and parameters: after a layer is replaced, a program uses the new layer, or the call is refused."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from matrix.cases import CASES, SEED_OF_BUILD, Case
from matrix.portability import rebuilt_with_programs
from model_factory.errors import CallSignatureError, GraphExecutionError, NotPortableError
from model_factory.program.recorded_program import is_plain
from support.compare import assert_same
from support.recording import InProcessRecorder, ask

# Torch's own hints on single arguments, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


def pair(make: Callable[[], nn.Module], recorder: InProcessRecorder | None = None) -> tuple[nn.Module, nn.Module]:
    """An original and the trainer's module, in eval mode."""
    torch.manual_seed(0)
    original = make()
    torch.manual_seed(0)
    twin = rebuilt_with_programs(make())
    ask(twin, recorder)
    return original.eval(), twin.eval()


def ways(name: str) -> list[tuple[int, Case]]:
    """The cases of a class with one floating tensor as input."""
    found = []
    for index, case in enumerate(CASES[name]):
        if case.inputs is not None:
            args = case.inputs()
            if len(args) == 1 and isinstance(args[0], Tensor) and args[0].is_floating_point():
                found.append((index, case))
    return found


def same_input(name: str, case: Case) -> Tensor:
    torch.manual_seed(SEED_OF_BUILD)
    assert case.inputs is not None
    return case.inputs()[0].detach()  # type: ignore[no-any-return]


def first(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        value = value[0]
    return value


class ReadsSizes(nn.Module):
    """Scales by all sizes of the layer's result, and returns the result in another shape."""

    def __init__(self, layer: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.example = [example]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        y = first(self.layer(x))
        scale = sum((axis + 2) * size for axis, size in enumerate(y.shape))
        return y / scale, y.reshape(-1, y.shape[-1] if y.dim() else 1), y.numel()

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": self.example[0]}]


def build(name: str, case: Case) -> nn.Module:
    torch.manual_seed(SEED_OF_BUILD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own hints on single arguments
        return case.build(name)


def thinned(cases: list[Any]) -> list[Any]:
    """Every third case; the others are slow, since all of them take minutes."""
    return [
        case if index % 3 == 0 else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for index, case in enumerate(cases)
    ]


REPLACED = [
    pytest.param(name, one, other, id=f"{name}-{index}-{number}")
    for name in CASES
    if not name.startswith("Lazy")  # no program before the first call
    for (index, one), (number, other) in itertools.permutations(ways(name), 2)
]
MAY_BE_REFUSED = frozenset({"MaxPool1d", "MaxPool2d", "MaxPool3d", "FractionalMaxPool2d"})
"""Return a tensor, or two tensors, with the indices of the largest values."""


@pytest.mark.parametrize(("name", "one", "other"), thinned(REPLACED))
def test_a_replaced_layer_is_followed_or_refused(name: str, one: Case, other: Case) -> None:
    x = same_input(name, one)

    def make() -> nn.Module:
        return ReadsSizes(build(name, one), x)

    try:
        original, twin = pair(make)
    except NotPortableError:
        pytest.skip("its result is of no use to a forward that reads sizes")
    original.layer, twin.layer = build(name, other).eval(), build(name, other).eval()
    torch.manual_seed(1)
    try:
        expected = original(x.clone())
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return  # no layer for these inputs
    torch.manual_seed(1)
    try:
        found = twin(x.clone())
    except (CallSignatureError, GraphExecutionError):
        assert name in MAY_BE_REFUSED
        return
    assert_same(found, expected)


def number(value: Any) -> float:
    if isinstance(value, tuple | list):
        return sum((index + 1.5) * number(item) for index, item in enumerate(value))
    return float(len(value)) if isinstance(value, str) else -1.0 if value is None else float(value)


class ReadsAttribute(nn.Module):
    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.layer = layer
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return x * number(getattr(self.layer, self.name))

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(2, 3)}]


def changed(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(changed(item) for item in value)
    if isinstance(value, bool):
        return not value
    if value is None:
        return 3
    return f"{value}x" if isinstance(value, str) else value + 1


ATTRIBUTES = [
    pytest.param(name, cases[0], attribute, id=f"{name}-{attribute}")
    for name, cases in CASES.items()
    if not name.startswith("Lazy")  # no program before the first call
    for attribute, value in sorted(vars(build(name, cases[0])).items())
    if not attribute.startswith("_") and is_plain(value) and changed(value) != value
]


@pytest.mark.parametrize(("name", "case", "attribute"), thinned(ATTRIBUTES))
def test_an_attribute_of_a_torch_module_is_read_again(name: str, case: Case, attribute: str) -> None:
    recorder = InProcessRecorder(lambda: ReadsAttribute(build(name, case), attribute))
    original, twin = pair(recorder.make, recorder)
    x = torch.randn(4, 3)
    assert_same(twin(x), original(x))
    assert recorder.calls == 0
    value = getattr(original.layer, attribute)
    other = 0.5 if attribute == "output_ratio" else changed(value)
    for module in (original, twin):
        setattr(module.layer, attribute, other)
    assert_same(twin(x), original(x))
    assert_same(twin(x), original(x))
    assert recorder.calls == 1, "what was recorded is used again"
    for module in (original, twin):
        setattr(module.layer, attribute, value)
    assert_same(twin(x), original(x))
    assert recorder.calls == 1


class Attention(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, width), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        return (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1]) + q.shape[-1] ** -0.5

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, 5, 6)}]


class Table(nn.Module):
    """Adds as many rows of a table as there are steps, and masks by a buffer; counts both."""

    def __init__(self, rows: int = 9) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(rows, 6))
        self.register_buffer("mask", torch.ones(rows, rows).tril())

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[1]
        if steps > self.rows.shape[0]:
            raise ValueError(f"{steps} steps, and {self.rows.shape[0]} rows")
        y = self.mask[:steps, :steps] @ (x + self.rows[:steps])
        return y / self.rows.shape[0] + self.mask.numel()

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, 5, 6)}]


class FunctionalConvolution(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.conv.padding
        return functional.conv2d(
            functional.pad(x, (padding[0],) * 4, mode="reflect"), self.conv.weight, self.conv.bias, self.conv.stride
        )

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, 3, 8, 8)}]


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.drop.p, self.drop.training)

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, 5, 6)}]


class Normalised(nn.Module):
    """Batch norm by hand, with a layer's momentum, eps, statistics and flag."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        return functional.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, bn.momentum or 0.0, bn.eps
        )

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(4, 6)}]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) / len(self.layers)
        return x

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, 6)}]


class MaybeBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.layer.weight)
        return y if self.layer.bias is None else y + self.layer.bias

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.zeros(2, 6)}]


def set_all(modules: tuple[nn.Module, nn.Module], change: Callable[[nn.Module], Any]) -> None:
    for module in modules:
        torch.manual_seed(3)
        change(module)


def widen(module: nn.Module) -> None:
    module.q, module.k = nn.Linear(6, 32), nn.Linear(6, 32)


def lengthen(module: nn.Module) -> None:
    module.rows = nn.Parameter(torch.randn(30, 6))
    module.mask = torch.ones(30, 30).tril()


def test_attention_scales_by_the_width_of_a_wider_layer() -> None:
    both = pair(Attention)
    set_all(both, widen)
    x = torch.randn(2, 5, 6)
    assert_same(both[1](x), both[0](x))


def test_a_longer_table_serves_longer_inputs() -> None:
    both = pair(Table)
    x = torch.randn(2, 20, 6)
    with pytest.raises(CallSignatureError):
        both[1](x)
    set_all(both, lengthen)
    assert_same(both[1](x), both[0](x))


def test_a_convolution_with_another_stride_is_recorded_anew() -> None:
    recorder = InProcessRecorder(FunctionalConvolution)
    both = pair(FunctionalConvolution, recorder)
    set_all(both, lambda module: setattr(module, "conv", nn.Conv2d(3, 8, 3, stride=2, padding=2)))
    x = torch.randn(2, 3, 9, 9)
    assert_same(both[1](x), both[0](x))
    assert recorder.calls == 1


@pytest.mark.parametrize("training", [True, False])
def test_a_rate_and_a_flag_of_a_layer_are_read_again(training: bool) -> None:
    recorder = InProcessRecorder(FunctionalDropout)
    both = pair(FunctionalDropout, recorder)
    x = torch.randn(4, 5, 6)
    for rate in (0.1, 0.9, 0.5):
        set_all(both, lambda module, rate=rate: setattr(module.drop, "p", rate))
        set_all(both, lambda module: module.train(not training))
        set_all(both, lambda module: module.drop.train(training))
        results = []
        for module in both:
            torch.manual_seed(1)
            results.append(module(x))
        assert_same(results[1], results[0])


def test_batch_norm_by_hand_follows_its_layer() -> None:
    recorder = InProcessRecorder(Normalised)
    both = pair(Normalised, recorder)
    x = torch.randn(4, 6)
    for momentum, eps, training in ((0.1, 1e-5, True), (0.3, 1e-5, True), (0.3, 1e-2, False), (0.3, 1e-2, True)):
        set_all(both, lambda module, m=momentum, e=eps: module.bn.__dict__.update(momentum=m, eps=e))
        set_all(both, lambda module, flag=training: module.bn.train(flag))
        assert_same(both[1](x), both[0](x))
        assert_same(both[1].state_dict(), both[0].state_dict())


def test_one_layer_more_is_refused() -> None:
    both = pair(Layers, InProcessRecorder(Layers))
    set_all(both, lambda module: module.layers.append(nn.Linear(6, 6)))
    with pytest.raises(CallSignatureError, match="a layer or parameter has been replaced"):
        both[1](torch.randn(2, 6))


def test_a_bias_that_was_absent_is_refused() -> None:
    both = pair(MaybeBias, InProcessRecorder(MaybeBias))
    set_all(both, lambda module: setattr(module, "layer", nn.Linear(6, 6)))
    with pytest.raises(CallSignatureError, match="a layer or parameter has been replaced"):
        both[1](torch.randn(2, 6))


def test_what_is_not_read_is_no_condition() -> None:
    """Another width, a wrapper, a rate read by the layer only: no call to the server."""

    class Wrapped(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) * 2

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.body(x)))

        def example_inputs(self) -> list[dict[str, Tensor]]:
            return [{"x": torch.zeros(2, 6)}]

    def change(module: nn.Module) -> None:
        module.body = Wrapped(nn.Linear(6, 20))
        module.head = nn.Linear(20, 7)
        module.drop.p = 0.1
        module.train()

    both = pair(Plain)
    set_all(both, change)
    x, results = torch.randn(2, 6), []
    for module in both:
        torch.manual_seed(1)
        results.append(module(x))
    assert_same(results[1], results[0])


class Changed:
    """A forward, the layers, and the layer that a trainer replaces."""

    def __init__(self, layers: Callable[[], dict[str, Any]], forward: Callable[..., Any], change: Callable[..., Any]):
        self.layers, self.forward, self.change = layers, forward, change

    def make(self) -> nn.Module:
        case = self

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name, layer in case.layers().items():
                    setattr(self, name, layer)

            def forward(self, x: Tensor) -> Any:
                return case.forward(self, x)

            def example_inputs(self) -> list[dict[str, Tensor]]:
                return [{"x": torch.ones(2, 6)}]

        torch.manual_seed(0)
        return Block()


def replaced(**layers: Callable[[], Any]) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        for name, make in layers.items():
            setattr(module, name, make())

    return change


def shared_layers() -> dict[str, Any]:
    layer = nn.Linear(6, 6)
    return {"one": layer, "other": layer}


def squeezed_states(block: Any, x: Tensor) -> Tensor:
    _, (h, _) = block.lstm(x[None])
    h = h.squeeze(0)
    return h.reshape(h.shape[0], -1) / h.shape[0]


CHANGES = {
    "squeezed head": Changed(
        lambda: {"head": nn.Linear(6, 1)},
        lambda s, x: s.head(x).squeeze(-1) / s.head(x).squeeze(-1).dim(),
        replaced(head=lambda: nn.Linear(6, 2)),
    ),
    "squeezed states": Changed(
        lambda: {"lstm": nn.LSTM(6, 4, batch_first=True)},
        squeezed_states,
        replaced(lstm=lambda: nn.LSTM(6, 4, 2, batch_first=True)),
    ),
    "a size of 1 in a sum of sizes": Changed(
        lambda: {"head": nn.Linear(6, 1)},
        lambda s, x: (y := torch.cat([s.head(x), x], -1)) / y.shape[-1],
        replaced(head=lambda: nn.Linear(6, 4)),
    ),
    "a class token": Changed(
        lambda: {"token": nn.Parameter(torch.ones(1, 6))},
        lambda s, x: (y := torch.cat([s.token, x], 0)) / y.shape[0],
        replaced(token=lambda: nn.Parameter(torch.ones(4, 6))),
    ),
    "rank of a parameter": Changed(
        lambda: {"scale": nn.Parameter(torch.ones(6))},
        lambda s, x: x * s.scale + s.scale.dim(),
        replaced(scale=lambda: nn.Parameter(torch.ones(3, 6))),
    ),
    "rank of a result": Changed(
        lambda: {"layer": nn.Linear(6, 6)},
        lambda s, x: (y := s.layer(x)) / y.dim(),
        replaced(layer=lambda: nn.Flatten(0)),
    ),
    "a norm that became a layer": Changed(
        lambda: {"norm": nn.LayerNorm(6)},
        lambda s, x: (y := s.norm(x)) / y.shape[-1],
        replaced(norm=lambda: nn.Linear(6, 9)),
    ),
    "one of two shared layers": Changed(
        shared_layers, lambda s, x: s.one(x) - 2 * s.other(x), replaced(other=lambda: nn.Linear(6, 6))
    ),
    "a layer that was not there": Changed(
        lambda: {"layer": nn.Linear(6, 6)},
        lambda s, x: s.more(s.layer(x)) if hasattr(s, "more") else s.layer(x),
        replaced(more=lambda: nn.Linear(6, 6)),
    ),
    "parts of another size": Changed(
        lambda: {"layer": nn.Linear(6, 8)},
        lambda s, x: [part / part.shape[-1] for part in torch.tensor_split(s.layer(x), 3, -1)],
        replaced(layer=lambda: nn.Linear(6, 9)),
    ),
    "one parameter more in a list": Changed(
        lambda: {"scales": nn.ParameterList([torch.ones(6), torch.ones(6)])},
        lambda s, x: sum(x * scale for scale in s.scales) / len(s.scales),
        lambda module: module.scales.append(nn.Parameter(torch.ones(6))),
    ),
    "a parameter that is gone": Changed(
        lambda: {"scale": nn.Parameter(torch.ones(6))},
        lambda s, x: x if s.scale is None else x * s.scale * 3,
        replaced(scale=lambda: None),
    ),
    "numbers of all parameters": Changed(
        lambda: {"layer": nn.Linear(6, 4)},
        lambda s, x: s.layer(x).sum(-1) / sum(item.numel() for item in s.layer.parameters()),
        replaced(layer=lambda: nn.Linear(6, 9)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_followed_or_refused(name: str) -> None:
    both = pair(CHANGES[name].make)
    x = torch.randn(3, 6)
    assert_same(both[1](x), both[0](x))
    set_all(both, CHANGES[name].change)
    expected = both[0](x)
    try:
        found = both[1](x)
    except (CallSignatureError, GraphExecutionError):
        return
    assert_same(found, expected)


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return functional.linear(x, weight, self.layer.bias) / weight.shape[0]

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(2, 6)}]


def test_a_parametrised_weight_is_worked_out_once_a_call() -> None:
    both = pair(Spectral)
    set_all(both, lambda module: nn.utils.parametrizations.spectral_norm(module.layer.train()))
    x = torch.randn(3, 6)
    for _ in range(3):
        assert_same(both[1](x), both[0](x))
