"""Processes to measure against: our server as operators run it, and the peers'."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class OurServer:
    """A running ``model-factory serve``."""

    address: str
    """``HOST:PORT``."""
    pid: int
    """Of its gRPC process."""


@contextmanager
def our_server(store: Path, *options: str) -> Iterator[OurServer]:
    """Run ``model-factory serve`` on a free loopback port."""
    command = ["-m", "model_factory", "serve", "--listen", "127.0.0.1:0", "--store", str(store), *options]
    with _process(*command) as process:
        yield OurServer(address=_line(process).removeprefix("listening on "), pid=process.pid)


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
