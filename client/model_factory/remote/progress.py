"""Progress bars on long builds and downloads, where a person is watching."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SHOW_AFTER_SECONDS = 1.0


@contextmanager
def building(names: list[str]) -> Iterator[Callable[[str, str], None]]:
    """Show the stage each component is at; call the value with a component and its stage."""
    started = time.monotonic()
    with _bar(total=len(names), desc="build", unit="model") as bar:

        def report(component: str, stage: str) -> None:
            bar.set_postfix_str(f"{component}: {stage}", refresh=False)
            bar.update(1 if stage == "done" else 0)
            if time.monotonic() - started >= SHOW_AFTER_SECONDS:  # a refresh does not heed the bar's own delay
                bar.refresh()

        yield report


@contextmanager
def downloading(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show bytes transferred; call the value with the size of each chunk."""
    with _bar(total=size, desc=name, unit="B", unit_scale=True) as bar:

        def report(count: int) -> None:
            bar.update(count)

        yield report


def _bar(**options: Any) -> tqdm[Any]:
    """Make a bar on standard error; silent unless that is a terminal, and until the work has taken a while."""
    return tqdm(disable=not sys.stderr.isatty(), leave=False, delay=SHOW_AFTER_SECONDS, **options)
