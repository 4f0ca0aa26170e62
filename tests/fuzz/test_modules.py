"""Stock modules with hostile attributes and tensors, for the whole life of a module on a trainer."""

from __future__ import annotations

from fuzz.harness import assert_safe


def test_modules() -> None:
    assert_safe("fuzz.modules:case", 100)
