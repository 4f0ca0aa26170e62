"""Processes to measure against: our server as operators run it, and the peers'."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def our_server(store: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``model-factory serve``; its ``HOST:PORT`` is the process's ``address``."""
    command = ["-m", "model_factory", "serve", "--listen", "127.0.0.1:0", "--store", str(store), *options]
    with _process(*command) as process:
        process.address = _line(process).removeprefix("listening on ")  # type: ignore[attr-defined]
        yield process


@contextmanager
def peer(kind: str, path: Path) -> Iterator[int]:
    """Run a peer's server (see ``benchmarks.peers``) for a file and yield its port on the loopback interface."""
    with _process("-m", "benchmarks.peers", kind, str(path)) as process:
        yield int(_line(process))


@contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{process.args} ended before it could serve")
    return line
