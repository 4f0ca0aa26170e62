"""Ctrl-C is one line: at any time of a command, and for every process of a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from model_factory import RemoteModelFactory
from support.cases import CASES
from support.configs import layers
from support.server import READY_SECONDS, descendants

INTERRUPTED = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a process in the background
from model_factory.cli.main import main
original, (where, *arguments) = builtins.__import__, sys.argv[1:]

def interrupted(name, *args, **kwargs):
    if name == where:
        builtins.__import__ = original
        os.kill(os.getpid(), signal.SIGINT)
    return original(name, *args, **kwargs)

builtins.__import__ = interrupted
sys.exit(main(arguments))
"""


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("argparse", ["validate"]),
        ("yaml", ["validate"]),
        ("model_factory_server.settings", ["blocks"]),
        ("torch", ["build"]),
        ("grpc", ["build"]),
        ("grpc", ["doctor"]),
        ("torch", ["lock"]),
    ],
)
def test_an_interrupt_during_an_import_is_one_line(module: str, command: list[str]) -> None:
    config = [] if command[0] in {"doctor", "blocks"} else [str(CASES["mlp"].config)]
    server = [] if command[0] == "validate" else ["--server", "127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, *command, *config, *server],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


class Serving:
    """A server in a group of its own, as the command of a terminal."""

    def __init__(self, store: Path) -> None:
        command = [sys.executable, "-m", "model_factory", "serve", "--listen", "127.0.0.1:0", "--store", store]
        self.log = store.with_name("log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )

    def interrupt(self) -> str:
        """Send what a terminal sends for Ctrl-C; return the log."""
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(READY_SECONDS) == 0
        return self.log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """End what is left."""
        below = descendants(self.process.pid)
        with self.process:  # closes the pipe
            self.process.kill()
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    server = Serving(tmp_path / "store")
    yield server
    server.kill()


def test_an_interrupt_while_the_server_starts(serving: Serving) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not descendants(serving.process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # the fork server imports this package
    log = serving.interrupt()
    assert "Traceback" not in log
    assert "ERROR" not in log
    assert "stopping: RPCs in progress have" in log


def test_an_interrupt_of_a_server_with_all_its_processes(serving: Serving, tmp_path: Path) -> None:
    """The fork server, and a process that parses large configs."""
    assert serving.process.stdout is not None
    address = serving.process.stdout.readline().rpartition(" ")[2].strip()
    large = layers(*({"_type_": "nn.Linear", "in_features": 2, "out_features": 2} for _ in range(100)))
    RemoteModelFactory(address, cache_dir=tmp_path / "cache").build({"config": large})
    assert len(descendants(serving.process.pid)) >= 2
    log = serving.interrupt()
    assert "Traceback" not in log
    assert "ERROR" not in log
