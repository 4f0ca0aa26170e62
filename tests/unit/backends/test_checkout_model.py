"""A checkout's model as ours: what is known is taken over, everything else is refused by name."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from model_factory.errors import BuildError
from model_factory.program.ir import Ref as OurRef
from model_factory.program.ir import step_text
from model_factory_server.backends.checkout_model import convert_model


@dataclass(frozen=True)
class Ref:
    name: str


@dataclass
class Step:
    call_kind: str = "module"
    call_name: str = "a"
    args: Any = field(default_factory=lambda: [Ref("x")])
    kwargs: Any = field(default_factory=dict)
    out: Any = "y"


class Built(nn.Module):
    def __init__(self, steps: Any, outputs: Any = ("y",), policy: Any = "single", ops: Any = None) -> None:
        super().__init__()
        self.inputs = ["x"]
        self.graph_modules = nn.ModuleDict({"a": nn.Linear(2, 2)})
        self._steps = steps
        self._outputs = list(outputs) if isinstance(outputs, tuple) else outputs
        self._return_policy = policy
        self._ops = ops or {}


def twice(value: torch.Tensor) -> torch.Tensor:
    return value + value


def test_modules_are_the_same_objects_and_steps_a_program() -> None:
    built = Built([Step()]).eval()
    model = convert_model(built)
    assert model.graph_modules["a"] is built.graph_modules["a"]
    assert model.inputs == ["x"]
    assert not model.training
    x = torch.ones(1, 2)
    assert model(x).equal(built.graph_modules["a"](x))


def test_ops_are_found_in_the_table_by_identity_and_become_modules_otherwise() -> None:
    steps = [
        Step("op", "plus", [Ref("x"), 1], {}, "p"),
        Step("op", "join", [[Ref("p"), Ref("x")]], {"dim": 0}, "j"),
        Step("op", "add", [Ref("j")], {}, "y"),
    ]
    # An op that is called like one of ours, and is another.
    model = convert_model(Built(steps, ops={"plus": operator.add, "join": torch.cat, "add": twice}))
    assert [step_text(step) for step in model.runner.program.steps] == [
        "op:add",
        "op:cat",
        "module:graph_modules.op:add",
    ]
    assert model(torch.ones(1)).tolist() == [4.0, 2.0]


@pytest.mark.parametrize(
    ("outputs", "policy", "result"),
    [
        (("y",), "single", OurRef("y")),
        (("y",), "tuple", (OurRef("y"),)),
        (("y", "x"), "tuple", (OurRef("y"), OurRef("x"))),
        ({"k": "y"}, "dict", {"k": OurRef("y")}),
        (("y",), "dict", {"y": OurRef("y")}),
    ],
)
def test_results(outputs: Any, policy: Any, result: Any) -> None:
    assert convert_model(Built([Step()], outputs, policy)).runner.program.result == result


@pytest.mark.parametrize(("out", "value"), [(["y", "z"], ("y", "z")), ({"k": "y"}, {"k": "y"})])
def test_results_of_steps(out: Any, value: Any) -> None:
    assert convert_model(Built([Step(out=out)])).runner.program.steps[0].out == value


def with_parameter() -> Built:
    built = Built([Step()])
    built.scale = nn.Parameter(torch.ones(1))
    return built


def without_ops() -> Built:
    built = Built([Step()])
    del built._ops
    return built


REFUSED = {
    "not a model": (lambda: {"a": 1}, "build_model returns a dict without inputs, graph_modules, _steps"),
    "part missing": (without_ops, "build_model returns a Built without _ops"),
    "own parameter": (with_parameter, "the model has modules or tensors outside graph_modules"),
    "steps": (lambda: Built({"a": Step()}), "the _steps of the model are not a list"),
    "step": (lambda: Built([("module", "a")]), r"step 0 is a tuple without call_kind, call_name"),
    "call kind": (
        lambda: Built([Step(call_kind="method")]),
        r"step 0 \(method:a\) calls an unknown module or op",
    ),
    "module": (lambda: Built([Step(call_name="b")]), r"step 0 \(module:b\) calls an unknown module or op"),
    "op": (lambda: Built([Step(call_kind="op")]), r"step 0 \(op:a\) calls an unknown module or op"),
    "argument": (lambda: Built([Step(args=[object()])]), r"step 0 \(module:a\) has an argument of type object"),
    "kwargs": (
        lambda: Built([Step(kwargs=[1])]),
        r"step 0 \(module:a\) has args that are not a list, or kwargs that are not a mapping",
    ),
    "out": (
        lambda: Built([Step(out=3)]),
        r"the results of step 0 \(module:a\) are not a name, a list of names or a mapping to names",
    ),
    "outputs": (lambda: Built([Step()], 3), "_outputs are not a name, a list of names or a mapping to names"),
    "return": (lambda: Built([Step()], ("y", "x"), "single"), "the model returns 2 outputs as 'single'"),
    "value": (lambda: Built([Step(args=[Ref("q")])]), "uses 'q' before it exists"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unknown_shapes_are_refused(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(BuildError, match=message) as caught:
        convert_model(make())
    assert "Remedy: mount a version of the checkout whose models have inputs, graph_modules" in str(caught.value)
