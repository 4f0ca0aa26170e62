"""Results with named fields: records in place of dataclasses and named tuples."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
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
from model_factory.program.runtime.named_results import Record, RecordTuple
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
    "record", [Record({"a": torch.ones(2), "b": None}), RecordTuple(("a", "b"), (torch.ones(2), 1))]
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


@dataclass
class Critic:
    values: Tensor


class HidesAMethod(Block):
    def forward(self, x: Tensor) -> Critic:
        return Critic(self.layer(x))


@pytest.mark.parametrize(
    ("block", "message"),
    [
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
    for fields in (Fields(("a", "b"), (Ref("v0"), None)), Fields(("a",), ((Ref("v0"), 1),), is_tuple=True)):
        assert decode_value(encode_value(fields)) == fields
    for bad in ({"record": [["a", 1], ["a", 2]]}, {"record": [[1, 1]]}, {"named_tuple": {"a": 1}}, {"record": [["a"]]}):
        with pytest.raises(FormatError):
            decode_value(bad)
    hostile = Record({"__class__": torch.ones(1), "_absent": 1, "__reduce__": 2})
    assert type(hostile) is Record
    assert hostile.__class__ is Record
