"""Client processes by the dozen, to be killed: forks of one process that has everything imported and no thread yet."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PARENT_DIES = 1  # of prctl
_SOURCE = Path(__file__).resolve().parents[2]


class Ranks:
    """Starts ranks; each rank does a piece of work and writes the result to a file."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        """Start the process that ranks are forked from; returns before the process is ready.

        ``folder`` is for what they write, and ``variables`` are their environment's beside those of this process.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(_SOURCE), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from support.load.ranks import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | dict(variables or {}),
        )

    def start(self, work: str, **arguments: Any) -> Rank:
        """Start a rank that does ``work``, one of this module's."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        number = len(list(self._folder.iterdir()))
        result = self._folder / str(number)
        result.touch()
        self._process.stdin.write(json.dumps({"work": work, "result": str(result), "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return Rank(int(self._process.stdout.readline()), result)

    def close(self) -> None:
        """End all of them."""
        self._process.kill()
        self._process.communicate()


class Rank:
    """One client process."""

    def __init__(self, pid: int, result: Path) -> None:
        self.pid = pid
        self._result = result

    @property
    def said(self) -> str:
        """What it has written so far: whole lines."""
        return self._result.read_text(encoding="utf-8")

    @property
    def alive(self) -> bool:
        """Whether it has not ended; what has is waited for at once by the process that it is a fork of."""
        return Path(f"/proc/{self.pid}").exists()

    def kill(self) -> None:
        """Kill it; it must not have ended long ago, when its number may be another's."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        while self.alive:
            time.sleep(0.002)

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it has said something."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < deadline, f"it said only {self.said!r}"
            assert self.alive or text in self.said, f"it ended, having said {self.said!r}"
            time.sleep(0.005)


def main() -> None:
    """The process that ranks are forks of: reads what each is to do, and writes its number."""
    import model_factory.client.factory  # noqa: F401, PLC0415  with torch, once for all

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    parent = os.getpid()
    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_rank(parent, task)
        print(pid, flush=True)  # noqa: T201  the answer


def _be_rank(parent: int, task: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGKILL)
    with Path(task["result"]).open("a", encoding="utf-8", buffering=1) as said:
        try:
            if os.getppid() == parent:
                _WORK[task["work"]](lambda text: said.write(text + "\n"), **task["arguments"])
        except BaseException:  # noqa: BLE001  whoever looks at it decides
            said.write(traceback.format_exc())
        finally:
            said.flush()
            os._exit(0)


Say = Callable[[str], object]


def fetch(say: Say, *, address: str, cache: str, digest: str, size: int) -> None:
    """Fetch a blob into a node's cache and say the digest of what is there."""
    from model_factory.client.connection import Connection  # noqa: PLC0415
    from model_factory.client.fetch import fetch_blob  # noqa: PLC0415
    from model_factory.digest import digest_of_file  # noqa: PLC0415
    from model_factory.store import Blob, Store  # noqa: PLC0415

    connection = Connection(address, timeout=60)
    say("begins")
    with fetch_blob(connection, Store(Path(cache)), Blob(digest, size)) as file:
        say(f"has {digest_of_file(Path(f'/proc/self/fd/{file.fileno()}'))}")


def build(say: Say, *, address: str, cache: str, seed: int, config: dict[str, Any], times: int = 1) -> None:
    """Build a model, several times over with nothing remembered, and say so each time."""
    from model_factory import RemoteModelFactory  # noqa: PLC0415

    say("begins")
    for _ in range(times):
        factory = RemoteModelFactory(address, seed=seed, cache_dir=cache, timeout=60)
        module = factory.build({"config": config})
        say(f"built {sum(item.double().abs().sum().item() for item in module.state_dict().values())!r}")
        factory.close()


_WORK: dict[str, Callable[..., None]] = {"fetch": fetch, "build": build}
