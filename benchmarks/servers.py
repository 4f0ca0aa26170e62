"""Server processes: model-factory as operators run the server, and alternatives."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, kw_only=True)
class OurServer:
    """A running ``model-factory serve``."""

    address: str
    """``HOST:PORT``."""
    metrics: str
    """URL of the metrics."""

    def builds(self) -> int:
        """Return the number of finished builds."""
        with urllib.request.urlopen(self.metrics) as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = [sample for family in families for sample in family.samples]
        return round(
            sum(
                sample.value
                for sample in samples
                if sample.name == "model_factory_jobs_total" and sample.labels["kind"] == "build"
            )
        )


@contextmanager
def our_server(store: Path, *options: str) -> Iterator[OurServer]:
    """Run ``model-factory serve`` on a free loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    where = ("--listen", "127.0.0.1:0", "--metrics-listen", metrics, "--store", str(store))
    with _process("-m", "model_factory", "serve", *where, *options) as process:
        yield OurServer(address=_line(process).removeprefix("listening on "), metrics=f"http://{metrics}/metrics")


@contextmanager
def peer(kind: str, path: Path) -> Iterator[int]:
    """Serve a file with an alternative (see ``benchmarks.peers``); yield the port on the loopback interface."""
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
