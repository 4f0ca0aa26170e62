"""Progress bars on long builds and downloads, where a person is watching."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from model_factory.store import Holder

log = logging.getLogger(__name__)

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
def downloading(name: str, size: int) -> Iterator[Download]:
    """Show bytes transferred, or whose transfer is waited for."""
    with _bar(total=size, desc=name, unit="B", unit_scale=True) as bar:
        yield Download(name, bar)


class Download:
    """What is told of a blob on its way."""

    def __init__(self, name: str, bar: tqdm[Any]) -> None:
        self._name = name
        self._bar = bar

    def received(self, count: int) -> None:
        """So many more bytes are here."""
        self._bar.update(count)

    def waiting(self, holder: Holder | None) -> None:
        """Another process transfers it."""
        text = f"waits for {holder or 'another process'}"
        log.info("%s: %s", self._name, text)
        self._bar.set_postfix_str(text)


def _bar(**options: Any) -> tqdm[Any]:
    """Make a bar on standard error; silent unless that is a terminal, and until the work has taken a while."""
    return tqdm(disable=not sys.stderr.isatty(), leave=False, delay=SHOW_AFTER_SECONDS, **options)
