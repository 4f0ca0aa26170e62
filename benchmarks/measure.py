"""Samples, rows of the table, and contenders in alternating rounds."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model_factory.memory import give_back_memory

DISCARD_SECONDS_PER_GIB = 2.0  # after a flush; a disk does not report the end of a discard

Contender = Callable[[], float]
"""Does the work once, checks the result outside the measured time, and returns the seconds of the work."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Repeated measurements of a contender."""

    values: tuple[float, ...]
    """In the order of the rounds."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """Minimum and maximum, relative to the median."""
        if not self.median:
            return ""
        return f"{min(self.values) / self.median - 1:+.0%} {max(self.values) / self.median - 1:+.0%}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a figure, or a ratio with a target."""

    what: str
    """Description for people."""
    value: float
    """The median."""
    unit: str
    """Unit of the value; ``x`` is a ratio."""
    spread: str = ""
    """Spread of the samples."""
    target: float | None = None
    """Target of the value, if set."""
    at_least: bool = False
    """Whether the target is a minimum; otherwise the target is a maximum."""
    note: str = ""
    """Further figures."""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if (self.value >= self.target if self.at_least else self.value <= self.target) else "MISSED"


@dataclass(kw_only=True)
class Report:
    """Results of a run."""

    rows: list[Row] = field(default_factory=list)
    """Rows in the order of the table."""
    missing: list[str] = field(default_factory=list)
    """Contenders without a measurement, with the reason."""
    bars: dict[str, dict[str, Sample]] = field(default_factory=dict)
    """For the plots: title with unit -> contender -> sample."""

    def add(self, what: str, sample: Sample, unit: str = "x", **others: Any) -> None:
        """Add the row of a sample; ``others`` are further fields of :class:`Row`."""
        self.rows.append(Row(what=what, value=sample.median, unit=unit, spread=sample.spread, **others))


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of ``work`` in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(contenders: Mapping[str, Contender], repeats: int, *, memory: int = 0, disk: int = 0) -> dict[str, Sample]:
    """Measure all contenders in each of ``repeats`` rounds, so that a slow phase of the machine affects all contenders.

    The first round is a warm-up and does not count. Every second round runs backwards.

    Args:
        contenders: Work by name.
        repeats: Number of rounds.
        memory: Bytes that are free before each turn; see :func:`provide_memory`.
        disk: Bytes that a turn writes and deletes; see :func:`await_disk`.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats + 1):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            if disk:
                await_disk(disk)
            if memory:
                provide_memory(memory)
            taken = contenders[name]()
            if number:
                values[name].append(taken)
    return {name: Sample(values=tuple(taken)) for name, taken in values.items()}


def await_disk(size: int) -> None:
    """Wait until the disk has discarded ``size`` bytes that an earlier turn wrote and deleted.

    On disks that discard blocks at once, a deletion keeps the disk busy after the return of the call. The next transfer
    ran at half speed, so the result depended on the previous turn.
    """
    os.sync()
    time.sleep(DISCARD_SECONDS_PER_GIB * size / (1 << 30))


def provide_memory(size: int) -> None:
    """Allocate and free ``size`` bytes, at most half of the free memory, so that the kernel has the pages ready.

    A virtual machine may return free memory to the host after seconds. The next allocation is then several times
    slower, and a result would depend on the previous turn. Memory that malloc kept from an earlier turn is freed first,
    since a trainer or a worker starts without.
    """
    give_back_memory()
    size = min(size, os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)


def ratio(of: Sample, to: Sample) -> Sample:
    """Return the ratio of two samples, round by round."""
    return Sample(values=tuple(a / b for a, b in zip(of.values, to.values, strict=True)))


def rates(sample: Sample, size: int) -> Sample:
    """Return the rates in GB/s for transfers of ``size`` bytes."""
    return Sample(values=tuple(size / value / 1e9 for value in sample.values))
