"""The benchmarks run with a small payload in one round; the benchmarks compare all received bytes themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import wire
from benchmarks.architectures import nested_programs
from benchmarks.measure import Report, Row
from benchmarks.page import table, write_page
from support.server import ServerProcess


def test_the_wire(server: ServerProcess, tmp_path: Path) -> None:
    report = Report()
    servers = wire.Servers(store=server.store, quiet=server.address)
    wire.measure_wire(report, tmp_path, servers, size=2 << 20, repeats=1)
    measured = {row.what: row.value for row in report.rows}
    assert {wire.MEMCPY, wire.RAW, wire.OURS, wire.HTTP, wire.TORCH, wire.MAPPED} <= measured.keys()
    ratios = {wire.RAW, wire.RAW_SAME, wire.HTTP, wire.TORCH}
    for name in ratios:  # of one round, so exact
        of_both = measured[wire.OURS] / measured[name]
        assert measured[f"blob over TCP, verified, into the cache ÷ {name}"] == pytest.approx(of_both)
    assert {row.unit for row in report.rows if row.what in ratios} == {"GB/s"}
    named = " ".join([*measured, *report.missing])
    assert "Flight" in named
    assert "tensorizer" in named
    assert list(tmp_path.iterdir()) == [], "the benchmark left files behind"


def test_nested_programs() -> None:
    report = Report()
    nested_programs(report, 1, depth=2)  # compares the losses
    assert [row.unit for row in report.rows] == ["x", "x"]


def test_the_page(tmp_path: Path) -> None:
    rows = [
        Row(what="fast enough", value=0.9, unit="x", target=1.0),
        Row(what="too slow", value=0.8, unit="x", target=0.9, at_least=True),
    ]
    report = Report(rows=rows, missing=["nothing"])
    lines = table(report).splitlines()
    assert "met" in lines[2]
    assert "MISSED" in lines[3]
    write_page(report, "2 cores", tmp_path / "page")
    assert "Missing: nothing" in (tmp_path / "page" / "table.md").read_text()
