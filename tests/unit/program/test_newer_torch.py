"""Names of newer versions of torch: refused with the version that has the name."""

from __future__ import annotations

import re

import pytest
import torch

from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.tree import Descriptor, StockNode
from model_factory.errors import FormatError
from model_factory.program import torch_names
from model_factory.program.ir import OpCall, Program, Ref
from model_factory.program.ops import OPS
from model_factory.program.runtime import step_compiler
from model_factory.program.runtime.interpreter import Runner
from model_factory.program.torch_names import SINCE

REMEDY = r".*; torch 2\.\d+ has the name, this is torch 2\..* Remedy: install torch 2\.\d+ or later"


@pytest.fixture
def old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of torch 2.4, if this is a newer one."""
    monkeypatch.setattr(torch_names, "_THIS", (2, 4))
    older = {name: op for name, op in OPS.items() if name not in SINCE}
    monkeypatch.setattr(step_compiler, "OPS", older)
    monkeypatch.setattr(step_compiler, "CHECKED_OPS", {})


def program(name: str, **kwargs: object) -> Program:
    return Program(inputs=("x",), steps=(OpCall(name=name, args=(Ref("x"),), kwargs=kwargs, out="y"),), result=Ref("y"))


@pytest.mark.skipif(max(SINCE.values()) > torch_names._THIS, reason="needs the newest torch")
def test_every_name_is_one_of_the_newest_torch() -> None:
    for name in SINCE:
        op, _, argument = name.partition("(")
        if op.startswith("nn."):
            assert hasattr(torch.nn, op[3:]), name
        elif "." not in op:
            assert op in torch_names._CONSTANTS
        else:
            assert op in OPS
            assert name == op or argument.removesuffix(")").isidentifier()


@pytest.mark.usefixtures("old_torch")
@pytest.mark.parametrize("name", [name for name in SINCE if "." in name and not name.startswith("nn.")])
def test_a_program_with_a_newer_name_is_refused(name: str) -> None:
    op, _, argument = name.partition("(")
    kwargs = {argument.removesuffix(")"): True} if argument else {}
    with pytest.raises(FormatError, match=re.escape(name) + REMEDY):
        Runner(program(op, **kwargs))


def test_other_unknown_names_have_no_remedy() -> None:
    with pytest.raises(FormatError, match=r"unknown op 'torch\.unheard'$"):
        Runner(program("torch.unheard"))
    layer = StockNode(type="nn.Unheard", training=True, attributes={})
    with pytest.raises(FormatError, match=r"not a stock module of this torch$"):
        rebuild(Descriptor(modules=(layer,), tensors=()), {})


def test_a_newer_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_factory.descriptor import rebuild as room  # noqa: PLC0415  the module, not the function

    monkeypatch.setattr(room, "STOCK_CLASSES", {})
    layer = StockNode(type="nn.LinearCrossEntropyLoss", training=True, attributes={})
    with pytest.raises(FormatError, match=r"nn\.LinearCrossEntropyLoss" + REMEDY):
        rebuild(Descriptor(modules=(layer,), tensors=()), {})
