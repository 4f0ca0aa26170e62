"""The zoo's own parts, and a few models of it. ``make zoo`` runs all models, with the libraries of all."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_factory_server import PolicyConstructorModelFactory
from zoo import examine as examination
from zoo.causes import cause_of
from zoo.examine import examine
from zoo.libraries import LIBRARIES, models_of
from zoo.model import BATCH, Model, images, tensors
from zoo.page import HEAD, PAGE, render
from zoo.remote import PLUGIN, chosen, config
from zoo.results import add_result, read_results

TRANSFORMERS = ("ResNet", "DINOv2")
"""Models of the library that the development environment has."""


class Small(nn.Module):
    """A layer, and a call that no other sample changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.linear(x)).relu()


class Refused(Small):
    """A value that is kept for the next call."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.mean() + getattr(self, "kept", 0)
        return super().forward(x) + self.kept


class OfThreeRows(Small):
    """The rows of the first two calls only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 3:
            raise ValueError("too many rows")
        return super().forward(x)


class Broken(Small):
    """A forward that fails."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"never runs with {x.dim()} axes")


class Unsteady(Small):
    """Random numbers of Python at each build."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.linear.bias, random.random())


def outcome(make: Callable[[], nn.Module], *, export: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    examine(Model(name="own/small", make=make, inputs=tensors(x=(BATCH, 5))), found.update, export=export)
    return found


def test_a_model_travels_and_is_exported() -> None:
    found = outcome(Small, export=True)
    assert (found["status"], found["sizes"], found["parameters"], found["programs"]) == ("travels", 3, 24, 1)
    assert (found["export"], found["export_sizes"], found["asked"]) == ("any", 3, 0)
    assert found["record"] >= 0
    assert found["ratio"] > 0


@pytest.mark.parametrize(
    ("make", "status", "reason"),
    [
        (Refused, "refused", "kept"),
        (Broken, "broken", "ValueError: never runs with 2 axes"),
        (Unsteady, "unsteady", "linear.bias"),
    ],
)
def test_what_is_no_travel(make: Callable[[], nn.Module], status: str, reason: str) -> None:
    found = outcome(make)
    assert found["status"] == status
    assert reason in found["reason"]


def test_a_size_that_the_original_refuses_is_left_out() -> None:
    found = outcome(OfThreeRows, export=False)
    assert (found["status"], found["sizes"]) == ("travels", 2)


@pytest.mark.parametrize("what", ["linear.weight", "drop.p"])
def test_a_difference_is_an_alarm(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuilt module with another weight, or with another rate of dropout."""
    rebuilt_elsewhere = examination.rebuilt_elsewhere

    def changed(*arguments: Any) -> nn.Module:
        module = rebuilt_elsewhere(*arguments)
        if what == "drop.p":
            module.get_submodule("drop").p = 0.25
        else:
            with torch.no_grad():
                module.get_parameter(what)[0, 0] += 1e-6
        return module

    monkeypatch.setattr(examination, "rebuilt_elsewhere", changed)
    assert outcome(Small)["status"] == "wrong"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_of_transformers_travel(name: str) -> None:
    model = next(model for model in models_of("transformers") if model.name == f"transformers/{name}")
    found: dict[str, Any] = {}
    examine(model, found.update, export=False)
    assert (found["status"], found["sizes"]) == ("travels", 3), found


def test_names_are_of_the_library_and_unique() -> None:
    names = [model.name for model in models_of("transformers")]
    assert len(names) == len(set(names)) >= 50
    assert {model.library for model in models_of("transformers")} == {"transformers"}
    assert len(LIBRARIES) >= 10


def test_sizes_differ() -> None:
    assert [images(8, 12)(size)["x"].shape for size in range(3)] == [(2, 3, 8, 8), (3, 3, 8, 8), (4, 3, 12, 12)]


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("the model (A): the forward calls torch._assert, which is not in the table of ops", "calls `torch._assert`"),
        ("the forward calls torch.is_grad_enabled(), and the result can differ", "asks `torch.is_grad_enabled()`"),
        ("lin (Linear) overrides _save_to_state_dict(), and the rebuilt module", "overrides `_save_to_state_dict()`"),
        ("blocks.0 (B): something that has no words yet (a.py:1: x). Remedy: none", "something that has no words yet"),
    ],
)
def test_causes(reason: str, cause: str) -> None:
    assert cause_of(reason) == cause


def test_results_are_replaced_and_shown(tmp_path: Any) -> None:
    path = tmp_path / "results.jsonl"
    refused = {
        "name": "b/two",
        "status": "refused",
        "reason": "the forward calls x.y, which is not in the table of ops",
    }
    travels = {"name": "a/one", "status": "travels", "sizes": 3, "programs": 2, "steps": 9, "record": 2.0, "asked": 1}
    travels |= {"export": "any", "export_seconds": 1.0, "export_sizes": 2, "ratio": 1.5}
    for result in ({**travels, "status": "wrong"}, refused, travels):
        add_result(path, result)
    assert read_results(path) == {"a/one": travels, "b/two": refused}
    page = render(read_results(path).values(), [{"name": "a/one", "status": "trains"}])
    assert "| **all** | 2 | 1 (50%) | 1 (50%) | 0 (0%) | 2.00 | 1.50 |" in page
    assert "None, in 6 compared calls." in page
    assert "| calls `x.y` | 1 | `b/two` |" in page
    assert "1 of 1 models of 1 libraries" in page
    alarm = render([{"name": "a/one", "status": "wrong", "reason": "outputs", "sizes": 3}])
    assert "| a/one | outputs |" in alarm


def test_models_over_the_wire_are_chosen_and_built() -> None:
    """The plug-in of the server, in this process; the whole way is a part of the command."""
    names = {"ViT": ("travels", 2.0), "DINOv2": ("travels", 1.0), "BEiT": ("travels", 0.5), "GPT2": ("refused", 0.1)}
    results = [
        {"name": f"transformers/{name}", "status": status, "record": record, "parameters": int(name != "BEiT")}
        for name, (status, record) in names.items()
    ]
    [(library, models)] = chosen(results, ["t*/*"], 1).items()
    assert (library, [model.name for model in models]) == ("transformers", ["transformers/DINOv2"])
    assert chosen(results, ["timm/*"], 1) == {}
    graph = PolicyConstructorModelFactory(seed=3, plugins=[PLUGIN]).build(config(models))
    block = graph.graph_modules["transformers_DINOv2"]
    assert type(block).__name__ == "Dinov2Model"
    inputs = models[0].inputs(0)
    output = graph(**{f"transformers_DINOv2_{name}": value for name, value in inputs.items()})
    assert torch.equal(output.last_hidden_state, block(**inputs).last_hidden_state)


def test_the_page_is_of_this_command() -> None:
    assert PAGE.read_text(encoding="utf-8").startswith(HEAD)
