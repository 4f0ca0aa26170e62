"""The pattern of a JSON string is the same with and without Python 3.11's possessive repetition."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_factory.documents import JSON_STRING

POSSESSIVE = r'"(?:[^"\\]|\\.)*+"?'
PLAIN = r'"[^"\\]*(?:\\.[^"\\]*)*"?'


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no possessive repetition")
@given(st.text(alphabet='"\\a[\n', max_size=30))
def test_both_patterns_find_the_same_strings(text: str) -> None:
    assert JSON_STRING == POSSESSIVE
    assert re.findall(POSSESSIVE, text, re.DOTALL) == re.findall(PLAIN, text, re.DOTALL)
