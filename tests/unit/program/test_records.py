"""Results with named fields: records in place of dataclasses and named tuples."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from matrix.portability import rebuilt_with_programs
from model_factory import NotPortableError
from model_factory.errors import FormatError
from model_factory.program.codec.values import decode_value, encode_value
from model_factory.program.ir import Fields, Ref
from model_factory.program.runtime.named_results import Record, RecordObject, RecordTuple
from support.compare import assert_same


@dataclass
class Prediction:
    action: Tensor
    log_std: Tensor | None = None
    parts: list[Tensor] | None = None


class Carried(NamedTuple):
    action: Tensor
    state: tuple[Tensor, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(2, 4)}]


class Dataclass(Block):
    def forward(self, x: Tensor) -> Prediction:
        return Prediction(self.layer(x), parts=[x, x * 2])


class NamedTupleBlock(Block):
    def forward(self, x: Tensor) -> Carried:
        return Carried(self.layer(x), (x, x + 1))


class Ordered(Block):
    def forward(self, x: Tensor) -> OrderedDict[str, Any]:
        return OrderedDict([("out.1", self.layer(x)), ("values", {"inner": Prediction(x, x)})])


class KeyedByStep(Block):
    def forward(self, x: Tensor) -> dict[Any, Any]:
        return {1: self.layer(x), None: x, False: OrderedDict({2.5: x * 2})}


class Head(StrEnum):
    POLICY = "policy"


class KeyedByEnum(Block):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {Head.POLICY: self.layer(x), "ordered": OrderedDict({Head.POLICY: x})}


class KeyedByInfinity(Block):
    def forward(self, x: Tensor) -> dict[float, Any]:
        return {float("inf"): x}


class KeyedByTuples(Block):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"at": {(0, 1): x}}


class MaxOverAxis(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.max(self.layer(x), dim=1)


def pair(block: type[Block]) -> tuple[nn.Module, nn.Module, Tensor]:
    original = block()
    return rebuilt_with_programs(copy.deepcopy(original)), original, torch.randn(3, 4)


def test_a_dataclass_is_a_record() -> None:
    rebuilt, original, x = pair(Dataclass)
    ours, theirs = rebuilt(x), original(x)
    assert type(ours) is Record
    assert_same(ours.action, theirs.action)
    assert_same(ours.parts, theirs.parts)
    assert ours.log_std is None
    assert list(ours) == ["action", "parts"]
    assert_same(ours[0], theirs.action)
    with pytest.raises(AttributeError, match="no field 'actoin'; it has action, parts, log_std"):
        _ = ours.actoin


def test_a_named_tuple_is_a_record_tuple() -> None:
    rebuilt, original, x = pair(NamedTupleBlock)
    ours = rebuilt(x)
    action, (first, second) = ours
    assert_same(action, original(x).action)
    assert_same(ours.action, action)
    assert_same(ours.state, (first, second))
    assert repr(ours).startswith("RecordTuple(action=tensor(")
    with pytest.raises(AttributeError, match="no field 'hidden'; it has action, state"):
        _ = ours.hidden


def test_mappings_and_results_of_torch() -> None:
    rebuilt, original, x = pair(Ordered)
    ours = rebuilt(x)
    assert isinstance(ours, OrderedDict)
    assert_same(ours["out.1"], original(x)["out.1"])
    assert_same(ours["values"]["inner"].log_std, x)
    assert list(ours.values())[1] is ours["values"]
    rebuilt, original, x = pair(MaxOverAxis)
    values, indices = rebuilt(x)
    assert_same(values, original(x).values)
    assert_same(rebuilt(x).indices, indices)


def test_keys_of_mappings_stay_the_same() -> None:
    rebuilt, original, x = pair(KeyedByStep)
    ours, theirs = rebuilt(x), original(x)
    assert list(ours) == list(theirs) == [1, None, False]
    assert_same(ours[1], theirs[1])
    assert_same(ours[0][2.5], theirs[0][2.5])
    with pytest.raises(NotPortableError, match=r"a mapping with the tuple \(0, 1\) as a key in \['at'\]"):
        pair(KeyedByTuples)
    with pytest.raises(NotPortableError, match="a mapping with the float inf as a key"):
        pair(KeyedByInfinity)
    rebuilt, original, x = pair(KeyedByEnum)
    assert_same(rebuilt(x)["policy"], original(x)["policy"])
    assert_same(rebuilt(x)["ordered"]["policy"], x)


@pytest.mark.parametrize(
    "record",
    [
        Record({"a": torch.ones(2), "b": None}),
        RecordTuple(("a", "b"), (torch.ones(2), 1)),
        RecordObject({"a": torch.ones(2), "b": 1}),
    ],
)
def test_records_are_copied_pickled_and_mapped(record: Any) -> None:
    for same in (copy.deepcopy(record), pickle.loads(pickle.dumps(record))):  # noqa: S301  written here
        assert type(same) is type(record)
        assert_same(same.a, record.a)
        assert same.b == record.b
    doubled = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf * 2, record)
    assert type(doubled) is type(record)
    assert_same(doubled.a, record.a * 2)


class Cache:
    """Not plain data."""


class ReturnsACache(Block):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"action": self.layer(x), "state": [Prediction(x, Cache())]}  # type: ignore[arg-type]


class KeysAndValues:
    """As language models keep for the next token: attributes, and methods that the rebuilt model has not."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._window = torch.ones(1)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], dim=-2)
        self.values = values if self.values is None else torch.cat([self.values, values], dim=-2)
        self.dtype, self.device = keys.dtype, keys.device
        return self.keys, self.values


class Caches:
    def __init__(self, layers: int) -> None:
        self.layers = [KeysAndValues() for _ in range(layers)]
        self.offloading = False

    def __iter__(self) -> Iterator[KeysAndValues]:
        return iter(self.layers)


class ReturnsObjects(Block):
    def forward(self, x: Tensor, caches: Caches | None = None) -> Prediction:
        caches = caches or Caches(2)
        for layer in caches.layers:
            keys, values = layer.update(self.layer(x), x * 2)
            x = (x @ keys.transpose(-1, -2)) @ values
        return Prediction(x, parts=caches)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_object_has_its_attributes(training: bool) -> None:
    torch.manual_seed(0)
    rebuilt, original, _ = pair(ReturnsObjects)
    for size in (2, 5, 1):
        x = torch.randn(size, 4)
        ours, theirs = rebuilt.train(training)(x), original.train(training)(x)
        assert type(ours.parts) is RecordObject
        assert ours.parts.offloading is False
        for mine, other in zip(ours.parts.layers, theirs.parts.layers, strict=True):
            assert_same(mine.keys, other.keys)
            assert_same(mine.values, other.values)
            assert mine.dtype == other.dtype
        gradients = []
        for module, result in ((rebuilt, ours), (original, theirs)):
            module.zero_grad()
            (result.action.sum() + result.parts.layers[1].keys.square().sum()).backward()
            gradients.append([item.grad for item in module.parameters()])
        assert_same(*gradients)
    with pytest.raises(AttributeError, match="no attribute 'update'; it has keys, values, dtype, device, and no meth"):
        ours.parts.layers[0].update(x, x)
    with pytest.raises(AttributeError, match="no attribute '_window'"):
        _ = ours.parts.layers[0]._window


class Endless:
    def __init__(self) -> None:
        self.inner = self


class ReturnsEndless(Block):
    def forward(self, x: Tensor) -> Any:
        return [self.layer(x), Endless()]


class Owner:
    def __init__(self, module: nn.Module) -> None:
        self.module = module


class ReturnsItself(Block):
    def forward(self, x: Tensor) -> Any:
        return [self.layer(x), Owner(self)]


class ReturnsADistribution(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.distributions.Normal(self.layer(x), 1.0)


@dataclass
class Critic:
    values: Tensor


class HidesAMethod(Block):
    def forward(self, x: Tensor) -> Critic:
        return Critic(self.layer(x))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (ReturnsEndless, r"returns a test_records\.Endless in \[1\](\.inner)+, which is not plain data"),
        (ReturnsItself, r"returns a test_records\.ReturnsItself in \[1\]\.module, which is not plain data"),
        (ReturnsADistribution, r"returns a torch\.distributions\.normal\.Normal, which is not plain data"),
        (
            ReturnsACache,
            r"returns a test_records\.Cache in \['state'\]\[0\]\.log_std, which is not plain data\. Remedy",
        ),
        (
            HidesAMethod,
            r"a dataclass with the field 'values', which hides a method of mappings\. Remedy: rename the field",
        ),
    ],
)
def test_results_outside_plain_data_are_refused_by_name(block: type[Block], message: str) -> None:
    with pytest.raises(NotPortableError, match=message):
        rebuilt_with_programs(block())


def test_records_are_plain_data_and_checked() -> None:
    for fields in (Fields(("a", "b"), (Ref("v0"), None)), Fields(("a",), ((Ref("v0"), 1),), "named_tuple")):
        assert decode_value(encode_value(fields)) == fields
    for bad in ({"record": [["a", 1], ["a", 2]]}, {"record": [[1, 1]]}, {"named_tuple": {"a": 1}}, {"record": [["a"]]}):
        with pytest.raises(FormatError):
            decode_value(bad)
    public = Fields(("keys", "values"), (Ref("v0"), None), "object")
    assert decode_value(encode_value(public)) == public
    for name in ("__array_interface__", "__class__", "_window", "a b", ""):
        with pytest.raises(FormatError, match="names of attributes are public"):
            decode_value({"object": [[name, 1]]})
    hostile = Record({"__class__": torch.ones(1), "_absent": 1, "__reduce__": 2})
    assert type(hostile) is Record
    assert hostile.__class__ is Record
