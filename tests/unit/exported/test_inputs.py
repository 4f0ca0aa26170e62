"""Inputs of an export as texts: shapes with named axes, constants, lists, values."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_map_only

from model_factory import FormatError
from model_factory.exported.inputs import parse_inputs


def shapes(texts: list[str]) -> dict[str, object]:
    inputs = parse_inputs(texts)
    example = inputs.example(inputs.first_sizes())
    return {name: tree_map_only(torch.Tensor, lambda item: tuple(item.shape), value) for name, value in example.items()}


def test_shapes() -> None:
    assert shapes(["x=batch,steps,12", "views.1=batch,2", "views.0=4", "t=", "mask=none"]) == {
        "x": (3, 4, 12),
        "views": [(4,), (3, 2)],
        "t": (),
        "mask": None,
    }


def test_dtypes_and_constants() -> None:
    inputs = parse_inputs(["tokens=int64:batch,20", "on=bool:7", "flag=true", "off=false", "x=2,2", "y=float64:1"])
    example = inputs.example({"batch": 2}, torch.bfloat16)
    assert {name: getattr(value, "dtype", value) for name, value in example.items()} == {
        "tokens": torch.int64,
        "on": torch.bool,
        "flag": True,
        "off": False,
        "x": torch.bfloat16,
        "y": torch.float64,
    }
    assert set(example["tokens"].unique().tolist()) == {0, 1}
    assert inputs.named_axes()["tokens"] == {0: "batch"}
    assert inputs.named_axes()["x"] == {}


def test_examples_repeat_and_differ_by_seed() -> None:
    inputs = parse_inputs(["x=batch,12"])
    one, again, other = (inputs.example({"batch": 3}, seed=seed)["x"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_values_have_their_sizes_and_repeat_at_others() -> None:
    values = {"x": torch.arange(6.0).view(2, 3), "index": torch.tensor([5, 7])}
    inputs = parse_inputs(["x=batch,3"], values)
    assert inputs.first_sizes() == {"batch": 2}
    example = inputs.example({"batch": 5})
    assert torch.equal(example["x"][2], values["x"][0])
    assert torch.equal(example["index"], values["index"])
    assert torch.equal(inputs.example({"batch": 1})["x"], values["x"][:1])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x"], "is not an input"),
        (["=3"], "is not an input"),
        (["x=3,"], "has the axis ''"),
        (["x=-3"], "has the axis '-3'"),
        (["x=1.5"], "has the axis"),
        (["x=99999999999999999999"], "has the axis"),
        (["x=a b"], "has the axis"),
        (["x=\x1b[2J"], r"has the axis '\\x1b\[2J'"),
        (["x=float99:3"], "float99"),
        (["x=load:3"], "the input 'x': "),
        (["x=" + ",".join("1" * 17)], "17 axes"),
        (["x=3", "x=4"], "given twice"),
        (["v.0=3", "v.2=3"], "the items of the list 'v'"),
        (["v.a=3"], "the items of the list 'v'"),
    ],
)
def test_wrong_texts(texts: list[str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_inputs(texts)


@pytest.mark.parametrize("text", ["x=batch,4", "x=3,3", "x=batch", "x=int64:batch,3"])
def test_a_value_that_does_not_fit_its_text(text: str) -> None:
    with pytest.raises(FormatError, match=r"the value of 'x' is torch\.float32 \(2, 3\)"):
        parse_inputs([text], {"x": torch.zeros(2, 3)})


def test_values_that_torch_would_fix() -> None:
    with pytest.raises(FormatError, match="size 1 along 'batch'"):
        parse_inputs(["x=batch,3"], {"x": torch.zeros(1, 3)}).first_sizes()
    two = {"x": torch.zeros(2, 3), "y": torch.zeros(4)}
    with pytest.raises(FormatError, match="the sizes 2 and 4 for the axis 'batch'"):
        parse_inputs(["x=batch,3", "y=batch"], two).first_sizes()
