"""Samples, rows of the table, and contenders measured in turns."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model_factory.memory import give_back_memory

DISCARD_SECONDS_PER_GIB = 2.0  # after a flush; nothing tells when a disk has discarded

Contender = Callable[[], float]
"""Does its work once, checks what came of it outside the time, and returns the seconds that the work took."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One thing, measured some times."""

    values: tuple[float, ...]
    """In the order in which they were measured."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """Smallest and largest, by the median."""
        if not self.median:
            return ""
        return f"{min(self.values) / self.median - 1:+.0%} {max(self.values) / self.median - 1:+.0%}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a figure, or a ratio with its target."""

    what: str
    """For people."""
    value: float
    """The median."""
    unit: str
    """Of the value; ``x`` is a ratio."""
    spread: str = ""
    """Of the samples behind it."""
    target: float | None = None
    """What it should reach, if something was set."""
    at_least: bool = False
    """Whether more is better; otherwise less is."""
    note: str = ""
    """What else to know."""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if (self.value >= self.target if self.at_least else self.value <= self.target) else "MISSED"


@dataclass(kw_only=True)
class Report:
    """What a run found."""

    rows: list[Row] = field(default_factory=list)
    """In the order of the table."""
    missing: list[str] = field(default_factory=list)
    """What could not be measured here, and why."""
    bars: dict[str, dict[str, Sample]] = field(default_factory=dict)
    """For the plots: title with unit -> what -> sample."""

    def add(self, what: str, sample: Sample, unit: str = "x", **others: Any) -> None:
        """Add the row of a sample; ``others`` are further fields of :class:`Row`."""
        self.rows.append(Row(what=what, value=sample.median, unit=unit, spread=sample.spread, **others))


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(contenders: Mapping[str, Contender], repeats: int, *, memory: int = 0, disk: int = 0) -> dict[str, Sample]:
    """Measure all contenders in each of ``repeats`` rounds, so that what slows the machine down slows all of them.

    One round before is not counted: it fills caches and pools. Every second round goes backwards. With ``memory``, each
    contender finds that many bytes free, and none of them in its own heap (see :func:`provide_memory`). With ``disk``,
    each finds it done with what a turn writes and deletes, which is that many bytes (see :func:`await_disk`).
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
    """Have the disk done with ``size`` bytes that an earlier turn wrote and deleted.

    Where blocks are discarded at once, deleting a file keeps the disk busy after the file is gone: transfers ran at
    half their speed then, and whose turn it was before decided which.
    """
    os.sync()
    time.sleep(DISCARD_SECONDS_PER_GIB * size / (1 << 30))


def provide_memory(size: int) -> None:
    """Have the kernel find so many bytes of memory, but at most half of what is free, and give them back to it.

    A virtual machine may return free memory to its host after seconds, and then the first to need it pays several times
    what it costs otherwise: who that is must not depend on whose turn it was before. Nor on what malloc has kept of
    another turn, which no trainer that builds once, and no worker, finds in its process: that is given back first.
    """
    give_back_memory()
    size = min(size, os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)


def ratio(of: Sample, to: Sample) -> Sample:
    """The ratio of two samples, round by round."""
    return Sample(values=tuple(a / b for a, b in zip(of.values, to.values, strict=True)))


def rates(sample: Sample, size: int) -> Sample:
    """Seconds for ``size`` bytes as GB/s."""
    return Sample(values=tuple(size / value / 1e9 for value in sample.values))
