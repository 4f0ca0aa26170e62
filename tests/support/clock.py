"""A wall clock for a process that can jump at run time: libfaketime, preloaded. The clock of the machine is unchanged.

Only the wall clock jumps, as one does that somebody sets: the monotonic one, which timeouts go by, goes on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

_LIBRARY = Path("vendor", "libfaketime", "src", "libfaketime.so.1")

VARIABLES = ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC")
"""Library to preload."""


class Clock:
    """The time of day of processes started with ``variables``."""

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
        """Environment variables for processes; every read of the time reads the file."""
        return dict(zip(VARIABLES, (str(self._library), str(self._path), "1", "1"), strict=True))

    def jump(self, seconds: int) -> None:
        """Set the offset from the real time, in seconds."""
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(f"{seconds:+d}", encoding="ascii")
        beside.replace(self._path)
