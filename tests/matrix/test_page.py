"""The page on what travels is what the matrix says."""

from __future__ import annotations

from matrix.page import PAGE, render


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "write it again: python tests/matrix/page.py"
