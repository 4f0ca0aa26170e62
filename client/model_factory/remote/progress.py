"""A progress bar on long builds and downloads, where a person is watching."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

SHOW_AFTER_SECONDS = 1.0


class Progress:
    """Says on standard error what is going on, if that is a terminal; otherwise silent."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()

    @contextmanager
    def build(self, names: list[str]) -> Iterator[BuildBar]:
        """Show the stage each component is at."""
        with tqdm(total=len(names), desc="build", unit="model", disable=not self._watched, leave=False, delay=SHOW_AFTER_SECONDS) as bar:
            yield BuildBar(bar)

    @contextmanager
    def download(self, name: str, size: int) -> Iterator[tqdm[None]]:
        """Show bytes transferred."""
        with tqdm(
            total=size,
            desc=name,
            unit="B",
            unit_scale=True,
            disable=not self._watched,
            leave=False,
            delay=SHOW_AFTER_SECONDS,
        ) as bar:
            yield bar


class BuildBar:
    """The bar of one build request."""

    def __init__(self, bar: tqdm[None]) -> None:
        self._bar = bar
        self._started = time.monotonic()

    def update(self, component: str, stage: str) -> None:
        """Note that a component reached a stage."""
        self._bar.set_postfix_str(f"{component}: {stage}", refresh=False)
        if stage == "done":
            self._bar.update(1)
        self._bar.refresh()
