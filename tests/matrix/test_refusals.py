"""Modules that are not portable are refused with the module, the reason and the remedy; nothing is lost in silence."""

from __future__ import annotations

import importlib

import pytest

from matrix.portability import rebuilt_with_programs
from matrix.refusals import REFUSALS, Refusal
from model_factory.describe.refusals import REFUSED_CLASSES
from model_factory.errors import NotPortableError


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refused_by_name(refusal: Refusal) -> None:
    with pytest.raises(NotPortableError) as caught:
        rebuilt_with_programs(refusal.make())
    for part in (*refusal.names, refusal.remedy):
        assert part in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED_CLASSES)
def test_refused_classes_are_torch_s(name: str) -> None:
    home, _, cls = name.rpartition(".")
    found = getattr(importlib.import_module(home), cls)
    assert f"{found.__module__}.{found.__qualname__}" == name
