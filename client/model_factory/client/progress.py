"""Progress of long builds and downloads: bars on terminals and in notebooks, else lines of the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from model_factory.environment import shows_progress
from model_factory.store import Holder
from model_factory.wording import printable, shortened

log = logging.getLogger(__name__)

SHOW_AFTER_SECONDS = 1.0

_MAX_SHOWN_CHARS = 200
_KERNEL = "ipykernel"  # imported in every notebook


@contextmanager
def building(names: list[str]) -> Iterator[Callable[[str, str], None]]:
    """Show the stage of each component; call the value with a component and a stage."""
    started = time.monotonic()
    with _bar(total=len(names), desc="build", unit="model") as bar:

        def report(component: str, stage: str) -> None:
            bar.set_postfix_str(_shown(f"{component}: {stage}"), refresh=False)
            bar.update(1 if stage == "done" else 0)
            seconds = time.monotonic() - started
            if seconds >= SHOW_AFTER_SECONDS:  # refresh() ignores the delay of the bar
                bar.refresh()
                _log_without_bar(bar, "%s: %s after %.0f s", _shown(component), _shown(stage), seconds)

        yield report


@contextmanager
def downloading(name: str, size: int) -> Iterator[Download]:
    """Show the bytes transferred, or the other process with the transfer."""
    started = time.monotonic()
    with _bar(total=size, desc=_shown(name), unit="B", unit_scale=True) as bar:
        yield Download(name, bar)
        seconds = time.monotonic() - started
        if seconds >= SHOW_AFTER_SECONDS:  # before the bar is closed: a closed bar seems to be hidden
            _log_without_bar(bar, "%s: weights of %d bytes after %.0f s", _shown(name), size, seconds)


class Download:
    """Progress of one download."""

    def __init__(self, name: str, bar: tqdm[Any]) -> None:
        self._name = name
        self._bar = bar

    def received(self, count: int) -> None:
        """Add ``count`` bytes."""
        self._bar.update(count)

    def waiting(self, holder: Holder | None) -> None:
        """Report that another process transfers the blob."""
        text = _shown(f"waits for {holder or 'another process'}")
        log.info("%s: %s", _shown(self._name), text)
        self._bar.set_postfix_str(text)


def _shown(text: str) -> str:
    return printable(shortened(text, _MAX_SHOWN_CHARS))


def _bar(**options: Any) -> tqdm[Any]:
    """Create a bar on standard error; hidden in the first second, and where no person looks.

    Bars are for terminals and notebooks, and for the first rank of a job.
    """
    is_seen = sys.stderr.isatty() or _KERNEL in sys.modules
    return tqdm(disable=not (is_seen and shows_progress()), leave=False, delay=SHOW_AFTER_SECONDS, **options)


def _log_without_bar(bar: tqdm[Any], message: str, *values: object) -> None:
    """Write a line to the log of the first rank where no bar is shown."""
    if bar.disable and shows_progress():
        log.info(message, *values)
