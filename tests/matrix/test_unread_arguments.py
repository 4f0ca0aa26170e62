"""Unread arguments are no part of the call signature: texts, counters, options without effect."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import operator
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from model_factory import CallSignatureError
from model_factory.program.call_signature import any_of_kind, call_signature, match_call_signature
from support.compare import assert_same
from support.recording import InProcessRecorder, ask

WIDTH = 6


class Policy(nn.Module):
    """Reads the observation of a batch, and the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, batch: dict[str, Any], iterations: int = 10, scale: float = 1.0) -> Tensor:  # noqa: ARG002
        return self.layer(batch["obs"]) * scale


class Opaque:
    """An object that no program can take."""


class ReadsText(Policy):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.layer(batch["obs"]) * len(batch["task"])


class ReadsCounter(Policy):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        y = self.layer(batch["obs"])
        for _ in range(batch["episode"]):
            y = y * 2
        return y


class ComparesCounter(Policy):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        if batch["episode"] < 0:
            raise ValueError("an episode before the first")
        return self.layer(batch["obs"])


class ReadsInTraining(Policy):
    def forward(self, batch: dict[str, Any], rate: float = 0.0) -> Tensor:
        y = self.layer(batch["obs"])
        return y * rate if self.training else y


class ReadsByText(Policy):
    def forward(self, batch: dict[str, Any], mode: str = "double") -> Tensor:
        return self.layer(batch["obs"]) * {"double": 2, "triple": 3}[mode]


class AsksForARank(Policy):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.layer(batch["obs"]) * batch["mask"].dim()


def make(block: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return block().eval()


def remote(block: type[nn.Module]) -> tuple[nn.Module, InProcessRecorder]:
    recorder = InProcessRecorder(lambda: make(block))
    twin = rebuilt_elsewhere(make(block))
    ask(twin, recorder)
    return twin.eval(), recorder


def batches(size: int = 4) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "obs": torch.randn(2 + index, WIDTH, generator=generator),
            "task": [f"task {index}"] * (2 + index),
            "episode": index,
            "time": 0.1 * index,
        }
        for index in range(size)
    ]


def test_a_batch_with_texts_and_counters_is_recorded_once() -> None:
    original, (twin, recorder) = make(Policy), remote(Policy)
    for step, batch in enumerate(batches(25)):
        assert_same(twin(batch, iterations=step), original(batch))
    assert recorder.calls == 1
    assert twin(batches()[0], iterations=10**9).shape == (2, 3)
    assert recorder.calls == 1


def test_an_unread_default_is_recorded_once_more() -> None:
    original, (twin, recorder) = make(Policy), remote(Policy)
    for batch in batches():
        assert_same(twin(batch), original(batch))
        assert_same(twin(batch, iterations=batch["episode"]), original(batch))
    assert recorder.calls == 2


def test_unread_values_of_other_classes_pass() -> None:
    """One recording for each class: a forward can tell a class, and None, without a read."""
    original, (twin, recorder) = make(Policy), remote(Policy)
    obs = batches()[0]["obs"]
    others = ["text", None, 3, np.int64(3), np.zeros(2), dt.datetime.now(dt.UTC), Opaque(), [obs], {1: 2}]
    for _ in range(2):
        for other in others:
            batch = {"obs": obs, "task": other, "episode": other, "time": other}
            assert_same(twin(batch), original(batch))
    assert recorder.calls == len(others)
    with pytest.raises(CallSignatureError, match=r"argument 'batch\.task' can be called"):
        twin({"obs": obs, "task": print})


@pytest.mark.parametrize("block", [ReadsText, ReadsCounter, ComparesCounter])
def test_a_read_is_a_condition(block: type[nn.Module]) -> None:
    original, (twin, recorder) = make(block), remote(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning about a changing number
        for batch in batches():
            assert_same(twin(batch), original(batch))
    assert recorder.calls == len(batches())


def test_a_read_in_one_mode_is_a_condition_of_both() -> None:
    original, (twin, recorder) = make(ReadsInTraining), remote(ReadsInTraining)
    for rate in (0.5, 0.25):
        for module in (original, twin):
            module.train()
        assert_same(twin(batches()[0], rate=rate), original(batches()[0], rate=rate))
    assert recorder.calls == 2


def test_a_text_that_chooses_is_read() -> None:
    original, (twin, recorder) = make(ReadsByText), remote(ReadsByText)
    for mode in ("double", "triple", "double"):
        assert_same(twin(batches()[0], mode=mode), original(batches()[0], mode=mode))
    assert recorder.calls == 2
    with pytest.raises(CallSignatureError, match="KeyError"):
        twin(batches()[0], mode="quadruple")


def test_a_call_of_dim_is_a_read() -> None:
    original, (twin, recorder) = make(AsksForARank), remote(AsksForARank)
    for shape in ((2,), (2, 3), (5, 1), ()):
        batch = {"obs": torch.ones(2, WIDTH), "mask": torch.ones(shape)}
        assert_same(twin(batch), original(batch))
    assert recorder.calls == 3


def test_unread_tensors_may_change() -> None:
    original, (twin, recorder) = make(Policy), remote(Policy)
    for mask in (torch.ones(2), torch.ones(0, 3), torch.ones(2, 2, dtype=torch.bool)):
        for frames in ([mask], [mask, mask], []):
            batch = {"obs": torch.ones(2, WIDTH), "mask": mask, "frames": frames}
            assert_same(twin(batch), original(batch))
    assert recorder.calls == 1
    batch = {"obs": torch.ones(2, WIDTH), "mask": None, "frames": []}
    assert_same(twin(batch), original(batch))
    assert recorder.calls == 2, "a forward can tell None from a tensor"


class ReadsPrecision(nn.Module):
    """As policies do whose position table follows the precision of the state; actions are read in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y = self.layer(batch["obs"])
        if batch["obs"].dtype == torch.float64:
            y = y * 2
        return y + batch["action"] if self.training else y

    def example_inputs(self) -> list[Any]:
        return [{"batch": {"obs": torch.ones(2, WIDTH), "action": torch.ones(2, 3)}}]


def test_a_precision_of_an_unread_tensor_is_no_condition() -> None:
    original = ReadsPrecision()
    rebuilt = rebuilt_with_programs(original)
    for training, action in ((True, torch.rand(5, 3)), (False, torch.rand(5, 3)), (False, torch.rand(1).half())):
        batch = {"obs": torch.rand(5, WIDTH), "action": action}
        assert_same(rebuilt.train(training)(batch), original.train(training)(batch))


class ByKind(Policy):
    """Tells kinds apart without any use of the value."""

    def forward(self, batch: dict[str, Any]) -> Tensor:
        y, v = self.layer(batch["obs"]), batch["v"]
        y = y * 2 if v is not None else y
        y = y + 1 if isinstance(v, str) else y
        y = y + 3 if torch.is_tensor(v) else y
        y = y * 5 if isinstance(v, list | tuple) else y
        return y - 7 if type(v) is int else y


CHANGES = pytest.mark.filterwarnings("ignore:.*is called with another number")


@CHANGES
@pytest.mark.parametrize("first", [None, 1, 2.0, "text", [1], (1,), torch.ones(2), [torch.ones(2)], True], ids=str)
def test_kinds_are_distinguished(first: Any) -> None:
    original, (twin, _) = make(ByKind), remote(ByKind)
    for v in (
        first,
        None,
        1,
        2,
        2.0,
        "text",
        "more",
        [1],
        [2],
        (1,),
        torch.ones(2),
        torch.ones(3),
        [torch.ones(2)],
        True,
    ):
        batch = {"obs": torch.ones(2, WIDTH), "v": v}
        assert_same(twin(batch), original(batch), repr(v))


USES: dict[str, Any] = {
    "slice": (lambda m, v: len(m.layers[:v]), (5, 1, 2)),
    "islice": (lambda _m, v: len(list(itertools.islice([1, 2, 3], v))), (5, 1)),
    "zip of a range": (lambda m, v: len(list(zip(range(v), m.layers, strict=False))), (9, 1)),
    "text by a slice": (lambda _m, v: len("abc"[:v]), (7, 1)),
    "in a text": (lambda _m, v: 1 + (v in "train eval"), ("train", "other")),
    "search": (lambda _m, v: 1 + (re.search("left", v) is not None), ("right", "left")),
    "joined": (lambda _m, v: 1 + ("left" in "task: " + v), ("right", "left")),
    "start": (lambda _m, v: 1 + "left".startswith(v), ("x", "le")),
    "json": (lambda _m, v: len(json.dumps(v)[:4]), (10000, 1)),
    "sign": (lambda _m, v: math.copysign(2, v), (3.0, -3.0)),
    "finite": (lambda _m, v: 1 + math.isfinite(v), (3.0, math.inf)),
    "index": (lambda _m, v: min(operator.index(v), 2), (5, 1)),
    "digits": (lambda _m, v: round(0.123456, v), (9, 1)),
    "bytes": (lambda _m, v: len(bytes(v)[:2]), (9, 1)),
    "method of the class": (lambda _m, v: 1 + (int.__eq__(v, 4) is True), (3, 4)),
    "length of a list": (lambda _m, v: min(len(v), 2), ([1, 2, 3], [1])),
    "first of a list": (lambda _m, v: 1 + isinstance(v[0], str), ([1], ["a"])),
    "key": (lambda _m, v: {"a": 1}.get(v, 2), ("b", "a")),
    "format": (lambda _m, v: len(f"{v}"[:2]), (100, 1)),
    "truth": (lambda _m, v: 2 if v else 1, (3, 0)),
}


class Uses(Policy):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
        self.name = name

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.layer(batch["obs"]) * USES[self.name][0](self, batch["v"])


@CHANGES
@pytest.mark.parametrize("name", USES)
def test_every_way_to_use_a_constant_is_a_read(name: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Uses(name).eval()

    original, twin = build(), rebuilt_elsewhere(build()).eval()
    ask(twin, InProcessRecorder(build))
    for v in USES[name][1]:
        batch = {"obs": torch.ones(2, WIDTH), "v": v}
        try:
            assert_same(twin(batch), original(batch), repr(v))
        except CallSignatureError:
            continue  # a constant that the recording cannot follow is refused


def test_a_read_of_an_object_is_refused() -> None:
    twin, _ = remote(ReadsText)
    with pytest.raises(CallSignatureError, match=r"is a datetime\.date; a remotely built module reads tensors"):
        twin({"obs": torch.ones(2, WIDTH), "task": dt.date(2026, 1, 1)})


def test_examples_of_a_build_omit_unread_arguments() -> None:
    class WithExamples(Policy):
        def example_inputs(self) -> list[dict[str, Any]]:
            return [{"batch": batches()[0]}]

    original = make(WithExamples)
    twin = rebuilt_with_programs(make(WithExamples))
    assert_same(twin(batches()[3]), original(batches()[3]))


def test_a_changing_number_is_warned_about_once() -> None:
    twin, recorder = remote(ReadsCounter)
    batch = batches()[0]
    for episode in (1, 2):
        twin(batch | {"episode": episode})
    with pytest.warns(UserWarning, match=r"another number as batch\.episode each time.* torch\.tensor\(number\)"):
        twin(batch | {"episode": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin(batch | {"episode": 4})
        twin(batch | {"episode": 1})
    assert recorder.calls == 4


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["a", "b"]), st.just(torch.ones(2))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.sampled_from(["x", "y"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, other=VALUES)
def test_a_signature_matches_itself_and_any_matches_all(value: Any, other: Any) -> None:
    """The kept tensors belong to the compared parts."""
    form, leaves = call_signature({"x": value, "y": other})
    assert match_call_signature(form, form) == list(range(len(leaves)))
    first = len(call_signature({"x": value})[1])
    assert match_call_signature((form[0], ("y", any_of_kind(form[1][1]))), form) == list(range(first))
    assert match_call_signature((("x", any_of_kind(form[0][1])), form[1]), form) == list(range(first, len(leaves)))
    assert match_call_signature((form[0], ("y", ("any", "other"))), form) is None
    theirs, _ = call_signature({"x": other, "y": value})
    assert (match_call_signature(form, theirs) is not None) == (form == theirs)
