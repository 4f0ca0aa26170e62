"""Decisions by values: each branch is a program, and a run continues in the program of its branch."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs
from model_factory import CallSignatureError, NotPortableError
from model_factory.errors import FormatError
from model_factory.limits import MAX_BRANCHES
from model_factory.program.codec.programs import decode_program, encode_program
from model_factory.program.codec.values import decode_expression
from model_factory.program.example_call import decode_call, encode_call
from model_factory.program.ir import Expr, Guard, OpCall, Program, Rank, Ref, Require, Size
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.runtime.program_module import ProgramModule
from model_factory.program.runtime.step_compiler import BranchMissError
from model_factory_server.export.trace.decisions import MAX_DECISIONS
from support.compare import assert_same, observe, train
from support.recording import InProcessRecorder

FEATURES = 4
NEEDLE = 0.640625


def pair(block: type[nn.Module]) -> tuple[nn.Module, ProgramModule, InProcessRecorder]:
    """Return the original, and the module of a trainer without any program."""
    torch.manual_seed(1)
    original = block()
    rebuilt = rebuilt_elsewhere(copy.deepcopy(original))
    assert isinstance(rebuilt, ProgramModule)
    kept = copy.deepcopy(original)
    rebuilt._recorder = server = InProcessRecorder(lambda: copy.deepcopy(kept))
    return original, rebuilt, server


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)
        self.other = nn.Linear(FEATURES, FEATURES)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))


class IfItem(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.max().item() > 1.5:
            x = x / 255
        return self.linear(x)


class IfTensor(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else self.other(x) * 2


class IfAny(Block):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()) and not torch.equal(x, x.abs() * -1):
            return self.linear(x).square()
        return self.other(x)


class Several(Block):
    """Random numbers, a buffer and a region without gradients before, between and after the decisions."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.linear(x))
        self.calls += 1
        with torch.no_grad():
            largest = hidden.abs().max()
            factor = 1 / largest if largest.item() > 5 else torch.rand(())
        hidden = hidden * factor + torch.rand(())
        if hidden.shape[0] > 2 and hidden[..., 0].sum() > 0:
            hidden = self.drop(self.other(hidden))
        return hidden * self.calls


class BoundByValue(Block):
    def forward(self, x: Tensor) -> Tensor:
        steps = int(x.abs().max())
        for _ in range(min(steps, 3)):
            x = self.linear(x)
        return self.other(x[:, : max(steps, 1)])


class WhileValue(Block):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().mean().item() > 1:
            x = self.linear(x) / 2
        return self.other(x)


class ItemOfSizes(Block):
    """A number from a tensor, compared with a number from the sizes, and used."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum().item()
        return self.linear(x) * (total if total > x.shape[0] else 1.0)


BLOCKS = [IfItem, IfTensor, IfAny, Several, BoundByValue, WhileValue, ItemOfSizes]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_branch_equals_the_original(block: type[nn.Module], training: bool) -> None:
    """Outputs, gradients, buffers and the random state; the server knows only the range of the values."""
    original, rebuilt, server = (item.train(training) if isinstance(item, nn.Module) else item for item in pair(block))
    calls = [
        (0.1, 2), (10.0, 2), (-1.0, 3), (0.1, 5), (30.0, 3), (-0.1, 2), (3.0, 4), (0.1, 2), (10.0, 2)
    ]  # fmt: skip
    for scale, batch in calls:
        values = torch.rand(batch, 5, FEATURES, generator=torch.Generator().manual_seed(batch)) + 0.1
        inputs = {"x": values * scale}
        assert_same(observe(rebuilt, inputs), observe(original, inputs), f"{scale} x {batch}")
    assert any(server.asked), "one side was enough"
    sides = {ready.recorded.program.outcomes() for ready in rebuilt._programs}
    assert len(sides) > 1
    asked = len(server.asked)
    for scale, batch in calls:
        rebuilt(torch.rand(batch, 5, FEATURES) * 0 + scale)
    assert len(server.asked) - asked <= len(calls)


def test_training_over_both_branches_equals_the_original() -> None:
    original, rebuilt, _ = pair(Several)
    for model in (original, rebuilt):
        with torch.no_grad():
            model.linear.weight.mul_(4)
    inputs = {"x": torch.randn(4, 3, FEATURES, generator=torch.Generator().manual_seed(0)) * 2}
    assert train(rebuilt, inputs) == train(original, inputs)
    assert len({ready.recorded.program.outcomes() for ready in rebuilt._programs}) > 1


def test_a_branch_is_recorded_once() -> None:
    _, rebuilt, server = pair(IfItem)
    for value in (1.0, 2.0, 1.0, 2.0, 0.0, 9.0):
        rebuilt(torch.full((2, 5, FEATURES), value))
    assert len(server.asked) == 2
    copied = copy.deepcopy(rebuilt)
    copied(torch.full((3, 5, FEATURES), 2.0))
    assert len(server.asked) == 2


class GivenExamples(IfItem):
    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.ones(2, 5, FEATURES)}, {"x": torch.ones(2, 5, FEATURES) * 255}]


def test_examples_of_both_branches_need_no_server_afterwards() -> None:
    torch.manual_seed(1)
    original = GivenExamples()
    rebuilt = rebuilt_with_programs(copy.deepcopy(original))
    for x in (torch.randn(3, 2, FEATURES).abs() * 50 + 2, torch.rand(1, 7, FEATURES)):
        assert_same(observe(rebuilt, {"x": x}), observe(original, {"x": x}))


class Guarded(Block):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise ValueError("an image has no negative values")
        return self.linear(x)


def test_a_branch_refused_by_the_original_is_refused() -> None:
    _, rebuilt, _ = pair(Guarded)
    rebuilt(torch.rand(2, 5, FEATURES))
    with pytest.raises(CallSignatureError, match="ValueError: an image has no negative values"):
        rebuilt(-torch.rand(2, 5, FEATURES))
    rebuilt(torch.rand(3, 5, FEATURES))


class Needle(Block):
    """A branch that random inputs do not reach."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x[0, 0, 0].item() == NEEDLE else self.other(x)


def test_a_branch_without_inputs_is_not_guessed() -> None:
    _, rebuilt, _ = pair(Needle)
    x = torch.rand(2, 5, FEATURES)
    rebuilt(x)
    x[0, 0, 0] = NEEDLE
    with pytest.raises(NotPortableError, match=r"no sample inputs take this branch\. Remedy: .*example_inputs"):
        rebuilt(x)


class Endless(Block):
    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 0:
            x = x - 1e-6
        return self.linear(x)


def test_endless_decisions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_factory_server.export.trace.decisions.MAX_DECISIONS", 4)
    assert MAX_DECISIONS > 4
    _, rebuilt, _ = pair(Endless)
    with pytest.raises(NotPortableError, match="more than 4 times"):
        rebuilt(torch.ones(2, 5, FEATURES))


def test_endless_branches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_factory.program.runtime.program_module.MAX_BRANCHES", 2)
    assert MAX_BRANCHES > 2
    _, rebuilt, _ = pair(BoundByValue)
    for value in (1.5, 2.5):
        rebuilt(torch.full((2, 5, FEATURES), value))
    with pytest.raises(CallSignatureError, match=r"already has 2 branches .*Remedy: decide with torch\.where"):
        rebuilt(torch.full((2, 5, FEATURES), 3.5))


GUARDED = Program(
    inputs=("x",),
    steps=(
        OpCall(name="torch.Tensor.sum", args=(Ref("x"),), out="v0"),
        Guard(value=Ref("v0"), outcome=3),
        OpCall(name="torch.Tensor.add", args=(Ref("x"), 1), out="v2"),
    ),
    result=Ref("v2"),
)


def with_step(**changes: Any) -> Any:
    """Return the document of ``GUARDED`` with the guard's fields changed."""
    document = encode_program(GUARDED)
    document["steps"][1] |= changes
    return document


def test_guards_are_plain_data_and_checked() -> None:
    program = decode_program(encode_program(GUARDED))
    assert program == GUARDED
    assert encode_program(GUARDED)["steps"][1] == {
        "call": "guard:int",
        "args": [{"ref": "v0"}, 3],
        "kwargs": [],
        "out": "",
    }
    assert program.outcomes() == (3,)
    assert_same(Runner(program).run(nn.Module(), [torch.ones(3)]), torch.full((3,), 2.0))
    with pytest.raises(BranchMissError) as caught:
        Runner(program).run(nn.Module(), [torch.ones(4)])
    assert caught.value.outcome == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"call": "guard:bool", "args": [{"ref": "v0"}, 1]},
        {"call": "guard:int", "args": [{"ref": "v0"}, True]},
        {"call": "guard:float", "args": [{"ref": "v0"}, 1.0]},
        {"call": "guard:int", "args": [{"ref": "v0"}, {"ref": "x"}]},
        {"call": "guard:int", "args": [{"ref": "v0"}]},
        {"call": "guard", "args": [{"ref": "v0"}, 1]},
        {"call": "guard:int", "kwargs": [["a", 1]]},
        {"call": "guard:int", "out": "v1"},
        {"call": "require", "args": [1]},
        {"call": "require", "args": [{"size": {"rank": "x"}}, 1]},
        {"call": "require:x", "args": [{"size": {"rank": "x"}}]},
        {"call": "attr:weight", "args": [1]},
        {"call": "attr:weight", "args": [], "out": {"tuple": ["a", "b"]}},
        {"call": "other:x"},
        {"call": ""},
    ],
)
def test_steps_of_unknown_kinds_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=f"call of unknown kind: {changes.get('call')!r}"):
        decode_program(with_step(**changes))


def test_a_rank_is_a_node_of_its_own_and_axes_are_counted_from_0() -> None:
    program = replace(GUARDED, steps=(Require(condition=Size(Expr("eq", (Rank("x"), 1)))),), result=Ref("x"))
    assert decode_program(encode_program(program)) == program
    Runner(program).run(nn.Module(), [torch.ones(3)])
    with pytest.raises(CallSignatureError, match=re.escape("relies on the sizes eq(x.dim(), 1)")):
        Runner(program).run(nn.Module(), [torch.ones(3, 1)])
    with pytest.raises(FormatError, match="-1 is not an axis"):
        decode_expression({"dim": ["x", -1]})


@pytest.mark.parametrize("outcome", [1.5, "x", None])
def test_calls_with_other_outcomes_are_refused(outcome: Any) -> None:
    with pytest.raises(FormatError, match="neither a truth value nor an integer"):
        decode_call(encode_call({"x": torch.ones(2)}, None, (outcome,)))
