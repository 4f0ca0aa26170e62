"""The harness notices every way to fail, and continues after each."""

from __future__ import annotations

import pytest

from fuzz.harness import fuzz, guard_library


def test_every_way_to_fail_is_found() -> None:
    count, failures = fuzz("fuzz.failing_cases:case", 8, case_seconds=2)
    found = {failure.seed: failure for failure in failures}
    assert count == 8
    assert found.keys() - {1, 2} == {3, 4, 6}
    assert "processor time" in found[3].how
    assert "two\nlines" in found[4].how
    assert "SIGSEGV" in found[6].how
    assert "failing_cases.py" in found[6].output
    assert found[6].note == "way 6"


@pytest.mark.skipif(not guard_library(), reason="no C compiler")
def test_reads_and_writes_past_a_tensor_are_found() -> None:
    failures = [failure for seed in (1, 2, 8) for failure in fuzz("fuzz.failing_cases:case", 1, first=seed)[1]]
    assert [failure.how.rpartition(" ")[2] for failure in failures] == ["SIGSEGV", "SIGABRT", "SIGSEGV"]
