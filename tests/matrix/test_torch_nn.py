"""Every public class of ``torch.nn``: what arrives at a trainer is what was built."""

from __future__ import annotations

import pytest
import torch
from matrix.cases import CASES, NO_MODULES, REFUSED, SEED_OF_BUILD, Case
from matrix.same import assert_same_module, assert_same_runs
from matrix.travel import travel
from torch import nn

from model_factory.errors import NotPortableError

# Torch's own hints on single arguments, the same for the original.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")

ROWS = [pytest.param(name, item, id=f"{name}-{index}") for name, items in CASES.items() for index, item in enumerate(items)]


def test_every_class_has_a_case() -> None:
    exported = {name for name in nn.modules.__all__ if name not in NO_MODULES}
    assert all(issubclass(getattr(nn, name), nn.Module) for name in exported)
    assert exported == set(CASES)


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_class_travels(name: str, case: Case) -> None:
    torch.manual_seed(SEED_OF_BUILD)
    original = case.build(name)
    assert type(original) is getattr(nn, name)
    rebuilt = travel(original)
    assert_same_module(original, rebuilt)
    if case.inputs is None:
        return
    assert_same_runs(original, rebuilt, case.inputs)
    assert_same_module(original, rebuilt)  # also what a forward makes of lazy modules


@pytest.mark.parametrize(("name", "case"), REFUSED.items())
def test_class_is_refused(name: str, case: Case) -> None:
    with pytest.raises(NotPortableError, match=name):
        travel(case.build(name))


@pytest.mark.parametrize("name", CASES)
def test_comparison_notices_a_changed_tensor(name: str) -> None:
    original = CASES[name][0].build(name)
    rebuilt = travel(original)
    tensors = [item for item in rebuilt.state_dict().values() if not nn.parameter.is_lazy(item)]
    if not tensors:
        pytest.skip("no tensors")
    tensors[-1].view(-1)[-1] += 1
    with pytest.raises(AssertionError):
        assert_same_module(original, rebuilt)
