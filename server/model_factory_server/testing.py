"""A local server for the duration of a block of code: for examples, notebooks and integration tests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from model_factory.errors import ServerError

STOP_SECONDS = 30.0
_READY = "listening on "


@contextmanager
def local_server(*options: str, store: Path | None = None) -> Iterator[str]:
    """Run ``model-factory serve`` on a free loopback port and yield the address ``HOST:PORT``.

    >>> from model_factory import RemoteModelFactory
    >>> from model_factory_server import local_server
    >>> with local_server("--workers", "1") as address, RemoteModelFactory(address) as factory:
    ...     any(block.name == "nn.Linear" for block in factory.blocks())
    True

    Args:
        options: More options of the command, for example ``"--workers", "1"``.
        store: Folder of the server's store; by default a temporary folder.

    Raises:
        ServerError: the server does not start; the message contains the server's output.
    """
    with tempfile.TemporaryDirectory(prefix="model-factory-") as folder, tempfile.TemporaryFile("w+") as log:
        store_folder = Path(folder) / "store" if store is None else store
        command = [
            sys.executable,
            "-m",
            "model_factory",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--store",
            str(store_folder),
        ]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True) as process:  # noqa: S603
            try:
                yield _address(process, log)
            finally:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def _address(process: subprocess.Popen[str], log: IO[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(_READY):
            return line.removeprefix(_READY).strip()
    log.seek(0)
    raise ServerError(f"the local server exited before it was ready:\n{log.read()}")
