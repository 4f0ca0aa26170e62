"""A server with a plug-in of the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.folders import TEST_PLUGINS
from support.server import ServerProcess, running_server


@contextmanager
def running_with_plugin(store: Path, plugin: str) -> Iterator[ServerProcess]:
    """Run a server with a plug-in from ``support/plugins``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TEST_PLUGINS), prepend=os.pathsep)
        with running_server(store, "--plugin", plugin) as process:
            yield process
