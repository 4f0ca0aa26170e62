"""A server as operators run the server: the real command in a separate process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

COMMAND = Path(os.environ.get("SERVER_COMMAND", Path(sys.executable).with_name("model-factory")))
"""The console script of this environment, or of the server's where a client has its own (`make test-oldest-suites`)."""

READY_SECONDS = 90.0
STOP_SECONDS = 60.0
_LISTENING = "listening on "


class ServerProcess:
    """``model-factory serve`` on a free port of the loopback interface.

    The server does not share the store, so that blobs cross the wire as between two machines.
    """

    def __init__(self, store: Path, *arguments: str) -> None:
        store.parent.mkdir(parents=True, exist_ok=True)
        self.store = store
        command = [COMMAND, "serve", "--listen", "127.0.0.1:0", "--store", store, "--no-share-store"]
        command += arguments
        self._log = store.with_name(f"{store.name}.log").open("ab")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        try:
            self.address = self._read_address()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @cached_property
    def _metrics_url(self) -> str:
        found = re.findall(r'metrics on (http://[^\s"]+)', self.log)  # an earlier server on the same store comes first
        assert found, "start it with --metrics-listen and --log-level info"
        return str(found[-1])

    def metrics_page(self) -> str:
        """Return the page of metrics."""
        with urllib.request.urlopen(self._metrics_url, timeout=30) as answer:
            page: str = answer.read().decode()
        return page

    def workers(self) -> set[int]:
        """The workers: children of the fork server, a child of the server."""
        children = _children()
        return {worker for child in children.get(self.pid, ()) for worker in children.get(child, ())}

    def stop(self) -> int:
        """Send SIGTERM and return the exit status after all processes below have ended."""
        below = descendants(self.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_SECONDS)
        finally:
            self.kill()
        assert wait_gone(below), f"processes of the server outlived it: {below}"
        return status

    def kill(self) -> None:
        """Send SIGKILL, as the kernel does without free memory."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _read_address(self) -> str:
        assert self._process.stdout is not None
        watchdog = threading.Timer(READY_SECONDS, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line.startswith(_LISTENING), f"the server said {line!r}; its log:\n{self.log}"
        return line.removeprefix(_LISTENING).rstrip("\n")


@contextmanager
def running_server(store: Path, *arguments: str) -> Iterator[ServerProcess]:
    """Run a server; an exit status other than 0 is an error."""
    process = ServerProcess(store, *arguments)
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    status = process.stop()
    assert status == 0, f"the server ended with {status}; its log:\n{process.log}"


def descendants(pid: int) -> set[tuple[int, str]]:
    """Return the processes below a process with start times, so that a reused number is recognised."""
    children = _children()
    found: set[int] = set()
    pending = [pid]
    while pending:
        below = children.get(pending.pop(), ())
        pending.extend(set(below) - found)
        found.update(below)
    return {(child, started) for child in found if (started := _started(child))}


def wait_gone(processes: set[tuple[int, str]], seconds: float = 10.0) -> bool:
    """Whether all processes end within ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(_started(pid) == started for pid, started in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    return children


def _started(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state on; empty if the process has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return []
