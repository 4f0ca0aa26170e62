"""A wall clock of a process's own that can jump while it runs: libfaketime, preloaded. The machine's stays as it is.

Only the wall clock jumps, as one does that somebody sets: the monotonic one, which timeouts go by, goes on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

_LIBRARY = Path("vendor", "libfaketime", "src", "libfaketime.so.1")

VARIABLES = ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC")
"""That a process has to be started with."""


class Clock:
    """What the processes that are started with its variables take for the time of day."""

    def __init__(self, path: Path) -> None:
        """Start with the right time; ``path`` is a file for it.

        Raises:
            FileNotFoundError: libfaketime is not installed, which is among the packages for development.
        """
        self._path = path
        found = importlib.util.find_spec("libfaketime")
        if found is None or found.origin is None:
            raise FileNotFoundError("libfaketime is not installed. Remedy: pip install -e '.[dev]'")
        self._library = Path(found.origin).parent / _LIBRARY
        self._library.stat()
        self.jump(0)

    @property
    def variables(self) -> Mapping[str, str]:
        """For the environment of processes; they read the file whenever they ask for the time."""
        return dict(zip(VARIABLES, (str(self._library), str(self._path), "1", "1"), strict=True))

    def jump(self, seconds: int) -> None:
        """Be so many seconds off from now on."""
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(f"{seconds:+d}", encoding="ascii")
        beside.replace(self._path)
