"""No op of the table crashes, hangs or takes all memory, whatever its arguments are."""

from __future__ import annotations

from fuzz.harness import assert_safe


def test_ops() -> None:
    assert_safe("fuzz.ops:case", 150, room_bytes=1 << 30)
