"""Exported programs: compared with the module at several sizes, or refused."""

from __future__ import annotations

import io
import sys
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from matrix.blocks import BLOCKS, WIDTH
from matrix.portability import rebuilt_with_programs
from model_factory import ModelFactoryError
from model_factory.exported.comparison import compare
from model_factory.exported.export import FORMATS, export
from model_factory.exported.inputs import parse_inputs


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Fixed(nn.Module):
    """A forward that holds for a single size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 2) + x


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, views: list[Tensor], mask: Tensor | None = None) -> dict[str, Any]:
        first, second = views
        total = self.layer(first) + second
        return {"sum": total if mask is None else total * mask, "parts": (first * 2, second)}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.filterwarnings("ignore")  # torch's exporter to ONNX, about its own use of deprecated functions
def test_names_of_inputs_and_outputs(file_format: str) -> None:
    model = Pair()
    inputs = parse_inputs(["views.0=batch,4", "views.1=batch,2", "mask=none"])
    exported = export(model, inputs, file_format)
    assert [sizes["batch"] for sizes in exported.compared.sizes] == [3, 4, 1]
    views = [torch.randn(7, 4), torch.randn(7, 2)]
    expected = model(views)
    if file_format == "pt2":
        actual = torch.export.load(io.BytesIO(exported.data)).module()(views=views, mask=None)
        assert torch.equal(actual["sum"], expected["sum"])
        assert exported.compared.largest_difference == 0.0
        return
    session = onnxruntime.InferenceSession(exported.data)
    assert [(item.name, item.shape) for item in session.get_inputs()] == [
        ("views_0", ["batch", 4]),
        ("views_1", ["batch", 2]),
    ]
    assert [item.name for item in session.get_outputs()] == ["sum", "parts_0", "parts_1"]
    given = {f"views_{index}": view.numpy() for index, view in enumerate(views)}
    torch.testing.assert_close(torch.from_numpy(session.run(["sum"], given)[0]), expected["sum"])


@pytest.mark.parametrize("name", ["SequentialOfBlocks", "Attention", "TiedParameters", "Parametrized", "Embeddings"])
def test_rebuilt_blocks(name: str) -> None:
    model = rebuilt_with_programs(BLOCKS[name]())
    exported = export(model, parse_inputs([f"x=batch,{WIDTH}"]), "pt2")
    assert not model.training
    assert exported.compared.largest_difference < 1e-6  # an attention of torch has another kernel in a program


def test_other_dtypes() -> None:
    model = nn.Linear(3, 2).double()
    exported = export(model, parse_inputs(["input=batch,3"]), "pt2")
    assert torch.export.load(io.BytesIO(exported.data)).module()(input=torch.ones(1, 3).double()).dtype == torch.double


def test_random_numbers_stay_random_and_are_the_same_from_a_seed() -> None:
    assert export(Draws(), parse_inputs(["x=batch,2"]), "pt2").compared.largest_difference == 0.0
    before = torch.get_rng_state()
    export(nn.Dropout(), parse_inputs(["input=batch,2"]), "pt2")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore")
def test_random_numbers_of_onnx_differ() -> None:
    with pytest.raises(ModelFactoryError, match=r"differs from the module at batch 3.*draws random numbers"):
        export(Draws(), parse_inputs(["x=batch,2"]), "onnx")


def test_a_size_that_the_forward_fixes() -> None:
    with pytest.raises(ModelFactoryError, match=r"cannot be exported as pt2: .*Remedy: .*numbers instead of names"):
        export(Fixed(), parse_inputs(["x=batch,2"]), "pt2")
    assert export(Fixed(), parse_inputs(["x=3,2"]), "pt2").compared.sizes == ({},)


def test_inputs_that_the_module_refuses() -> None:
    for text in ("input=batch,4", "x=batch,3"):
        with pytest.raises(ModelFactoryError, match=r"does not run on the example inputs: .*Remedy: correct --input"):
            export(nn.Linear(3, 2), parse_inputs([text]), "pt2")


def test_a_size_that_the_module_refuses_is_left_out() -> None:
    compared = export(nn.Conv1d(2, 2, 3), parse_inputs(["input=batch,2,steps"]), "pt2").compared
    assert [dict(sizes) for sizes in compared.sizes] == [{"batch": 3, "steps": 4}, {"batch": 4, "steps": 5}]


def test_the_comparison_finds_a_difference() -> None:
    model, inputs = nn.Linear(3, 2).eval(), parse_inputs(["input=batch,3"])
    wrong = {
        "differs from the module at batch 3, by up to 1": lambda given: [model(**given) + 1],
        "differs from the module at batch 4": lambda given: [model(**given) + (len(given["input"]) == 4)],
        "results of other shapes": lambda given: [model(**given)[:1]],
        "fails at batch 1, .*RuntimeError: one": lambda given: [model(**given)] if len(given["input"]) > 1 else fail(),
    }
    for message, run in wrong.items():
        with pytest.raises(ModelFactoryError, match=message):
            compare(model, run, inputs, torch.float32)
    assert compare(model, lambda given: [model(**given)], inputs, torch.float32).largest_difference == 0.0


def fail() -> list[Tensor]:
    raise RuntimeError("one\ntwo")


def test_a_missing_package_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelFactoryError, match=r"needs onnxscript: .*Remedy: pip install 'model-factory\[onnx\]'"):
        export(nn.Linear(2, 2), parse_inputs(["input=2,2"]), "onnx")
