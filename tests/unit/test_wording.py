"""The one function that escapes foreign text."""

from __future__ import annotations

import sys
import time
import unicodedata

import pytest

from model_factory.wording import MAX_MARKS, is_printable, printable, printable_lines, quoted, shortened

REAL = [
    "编码器",
    "кодировщик",
    "מקודד",
    "エンコーダ",
    "mã hóa",
    "हिन्दी",
    "ไทยนี้",
    "café",
    "e\u0301",
    "😀",
    "❤️",
    "👩‍🔬",
    "👍🏽",
    "🇩🇪",
    "a b",
    "~`'\"\\",
]


@pytest.mark.parametrize("text", REAL)
def test_real_text_stays(text: str) -> None:
    assert printable(text) == text
    assert is_printable(text)


def test_every_invisible_character_of_unicode_is_escaped() -> None:
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        if char != " " and unicodedata.category(char) in hidden:
            shown = printable(f"a{char}b")
            assert shown.isascii(), hex(number)
            assert len(shown) > 3, hex(number)


@pytest.mark.parametrize("char", "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u180b\ufe00\ufe0f\U000e0100\u200d\u00ad")
def test_characters_without_ink_are_escaped(char: str) -> None:
    for text in (char, f"a{char}", f"{char}a", f"a{char}b"):
        assert char not in printable(text)


def test_marks_have_a_letter_and_an_end() -> None:
    assert printable("\u0301") == r"\u0301"
    assert printable("x\n\u0301").endswith(r"\u0301") or printable("\n\u0301").startswith(r"\n")
    covered = printable("e" + "\u0301" * 500)
    assert covered.count("\u0301") == MAX_MARKS
    assert covered.count(r"\u0301") == 500 - MAX_MARKS


def test_an_escaped_text_stays() -> None:
    for text in [*REAL, "\x1b[2J\r\t\n\x85\u2028\u202e", "a\n    b\n\tc\r\nd\x0c", "\ud800"]:
        assert printable(printable(text)) == printable(text)
        assert printable_lines(printable_lines(text)) == printable_lines(text)


def test_lines_after_the_first_are_indented() -> None:
    text = printable_lines("one\ntwo\r\n\tthree\x0bfour\u2028five\x85six\x1cseven\rerror: forged")
    assert text == "one\n    two\n    three\\x0bfour\\u2028five\\x85six\\x1cseven\\rerror: forged"


def test_long_texts_take_little_time() -> None:
    started = time.monotonic()
    for unit in ("\x1b", "é", "\u0301", "\n", " \n", "\t", "👩\u200d", "\ufe0f"):
        printable_lines(unit * 200_000)
    assert time.monotonic() - started < 30
    assert len(shortened("x" * 10_000_000)) == 10_000


def test_quoted_values_are_printable() -> None:
    assert quoted("\u3164" * 80) == "'" + r"\u3164" * 60 + "'..."
    assert quoted(["\u115f"]) == r"['\u115f']"
