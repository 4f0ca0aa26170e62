"""The page on portable modules is equal to the result of the matrix."""

from __future__ import annotations

from matrix.page import PAGE, render


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "write it again: python tests/matrix/page.py"
