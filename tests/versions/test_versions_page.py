"""The tables of ``docs/versions.md`` are those of the recorded results, and the comparison behind them can fail."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from versions.compare import outcome
from versions.legs import LEGS
from versions.page import PAGE, render, with_results
from versions.results import read_results, worse

ROOT = Path(__file__).parents[2]
EXPECTED = {"state.weight": torch.tensor([1.0, 2.0]), "eval": torch.tensor([3.0]), "train": torch.tensor([4.0])}


def test_the_page_is_made_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_results(page, render({name: read_results(name) for name in LEGS}))


@pytest.mark.parametrize("name", LEGS)
def test_no_recorded_result_is_different(name: str) -> None:
    found = read_results(name)
    assert worse(name, found["outcomes"], {}) == []
    assert found["attributes"] == [], "attributes that need a translation"
    torch_of_leg = next(item.partition("==")[2] for item in LEGS[name].requirements if item.startswith("torch=="))
    assert found["client"]["torch"].partition("+")[0] == torch_of_leg


def test_the_oldest_environment_has_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={LEGS['oldest'].python.removeprefix('python')}"
    pins = {item.partition("==")[0].lower(): item.partition("==")[2] for item in LEGS["oldest"].requirements}
    for requirement in map(Requirement, project["dependencies"]):
        lowest = next(item.version for item in requirement.specifier if item.operator == ">=")
        assert pins[requirement.name.lower()].startswith(lowest), requirement
        assert requirement.specifier.contains(pins[requirement.name.lower()])


def changed(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return EXPECTED | {name.replace("state_", "state."): value for name, value in tensors.items()}


def test_the_comparison_tells_results_apart() -> None:
    assert outcome(EXPECTED, EXPECTED, "") == {"status": "equal"}
    near = outcome(changed(eval=torch.tensor([3.0003])), EXPECTED, "")
    assert near["status"] == "close"
    assert near["difference"] == pytest.approx(1e-4, rel=0.01)
    for other in (
        changed(eval=torch.tensor([3.1])),
        changed(eval=torch.tensor([3])),
        changed(eval=torch.tensor([[3.0]])),
        changed(eval=torch.tensor([float("nan")])),
        {"eval": EXPECTED["eval"]},
    ):
        assert outcome(other, EXPECTED, "")["status"] == "different"
    assert outcome(None, EXPECTED, "no class") == {"status": "refused", "reason": "no class"}


def test_only_training_may_draw_other_random_numbers() -> None:
    drawn = {"random": torch.tensor(True)}
    assert outcome(changed(train=torch.tensor([9.0])) | drawn, EXPECTED | drawn, "")["status"] == "random"
    assert outcome(changed(eval=torch.tensor([9.0])) | drawn, EXPECTED | drawn, "")["status"] == "different"
    assert outcome(changed(state_weight=torch.tensor([9.0, 2])) | drawn, EXPECTED | drawn, "")["status"] == "different"


def test_a_new_refusal_is_worse() -> None:
    refused = {"trained": {"nn/Linear-0": {"status": "refused", "reason": "no class"}}}
    assert worse("oldest", refused, refused) == []
    assert worse("oldest", refused, {"trained": {"nn/Linear-0": {"status": "close", "difference": 0.0}}}) == [
        "oldest: nn/Linear-0 trained: refused: no class"
    ]
    different = {"trained": {"nn/Linear-0": {"status": "different", "reason": "eval"}}}
    assert worse("oldest", different, different) == ["oldest: nn/Linear-0 trained: different: eval"]
