"""Every public class of ``torch.nn``: a trainer's module equals the built module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from matrix.cases import CASES, NO_MODULES, REFUSED, SEED_OF_BUILD, Case
from matrix.portability import rebuilt_elsewhere
from matrix.same import assert_same_module, assert_same_runs
from model_factory.errors import NotPortableError

# Torch's own hints on single arguments, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")

ROWS = [
    pytest.param(name, item, id=f"{name}-{index}") for name, items in CASES.items() for index, item in enumerate(items)
]


def test_every_class_has_a_case() -> None:
    exported = {name for name in nn.modules.__all__ if name not in NO_MODULES}
    assert all(issubclass(getattr(nn, name), nn.Module) for name in exported)
    assert exported == set(CASES)


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_class_is_portable(name: str, case: Case) -> None:
    torch.manual_seed(SEED_OF_BUILD)
    original = case.build(name)
    assert type(original) is getattr(nn, name)
    rebuilt = rebuilt_elsewhere(original)
    assert_same_module(original, rebuilt)
    if case.inputs is None:
        return
    assert_same_runs(original, rebuilt, case.inputs)
    assert_same_module(original, rebuilt)  # also after a forward has given lazy modules their shapes


@pytest.mark.parametrize(("name", "case"), REFUSED.items())
def test_class_is_refused(name: str, case: Case) -> None:
    with pytest.raises(NotPortableError, match=name):
        rebuilt_elsewhere(case.build(name))


def _change_tensor(module: nn.Module) -> None:
    next(iter(module.state_dict().values())).view(-1)[0] += 1


def _change_flag(module: nn.Module) -> None:
    next(module.parameters()).requires_grad_(False)


def _rename(module: nn.Module) -> None:
    module._buffers["other"] = module._buffers.pop("running_var")


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "value": _change_tensor,
    "requires_grad": _change_flag,
    "name": _rename,
    "mode": lambda module: module.eval(),
    "attribute": lambda module: setattr(module, "eps", 1.0),
    "type": lambda module: setattr(module, "__class__", nn.BatchNorm2d),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_comparison_can_fail(change: Callable[[nn.Module], object]) -> None:
    original = nn.BatchNorm1d(3)
    rebuilt = rebuilt_elsewhere(original)
    change(rebuilt)
    with pytest.raises(AssertionError):
        assert_same_module(original, rebuilt)
