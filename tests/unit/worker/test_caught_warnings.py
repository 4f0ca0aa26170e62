"""Warnings of the operator's code: caught once, in order, bounded, whatever the logger does."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from model_factory.limits import MAX_WARNING_CHARS, MAX_WARNINGS
from model_factory_server.worker.jobs.caught_warnings import caught_warnings

pytestmark = pytest.mark.filterwarnings("default")


def test_warnings_and_records_are_caught_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("a library")
    logger.propagate = False
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    texts: list[str] = []
    with caught_warnings(texts):
        for width in (3, 3, 5):
            logger.warning("a width of %d", width)
        logger.error("no file %s", Path("/home/operator/models/table.json"))
        logger.warning("%d widths", "no number")
        warnings.warn("slow", stacklevel=1)
    place = Path(__file__).name
    assert texts[:4] == [
        "a library: a width of 3",
        "a library: a width of 5",
        "a library: no file .../table.json",
        "a library: %d widths",
    ]
    assert texts[4].startswith(f"{place}:")
    assert texts[4].endswith(": UserWarning: slow")
    assert capfd.readouterr() == ("", "")
    logger.warning("afterwards")
    assert capfd.readouterr().err == "afterwards\n"
    logger.removeHandler(handler)


def test_other_records_go_their_way(caplog: pytest.LogCaptureFixture) -> None:
    texts: list[str] = []
    with caught_warnings(texts), caplog.at_level(logging.INFO):
        logging.getLogger("blocks").info("a width of 3")
    assert texts == []
    assert caplog.messages == ["a width of 3"]


def test_texts_are_kept_where_the_code_fails() -> None:
    texts: list[str] = []

    def fail() -> None:
        warnings.warn("slow", stacklevel=1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), caught_warnings(texts):
        fail()
    assert len(texts) == 1


def test_number_and_length_are_bounded() -> None:
    texts: list[str] = []
    with caught_warnings(texts):
        for number in range(2 * MAX_WARNINGS):
            logging.getLogger("blocks").warning("%d %s\x1b[2J", number, "x" * 2 * MAX_WARNING_CHARS)
    assert len(texts) == MAX_WARNINGS
    assert all("\x1b" not in text and len(text) < MAX_WARNING_CHARS + 50 for text in texts)
