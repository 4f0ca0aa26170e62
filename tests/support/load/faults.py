"""A server under load, to which one bad thing after another happens."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from model_factory import ModelFactoryError, RemoteModelFactory, StoreError
from model_factory.digest import digest_of_file
from model_factory.store import Store
from model_factory_server import PolicyConstructorModelFactory
from support.clock import VARIABLES, Clock
from support.guarded import PLUGINS
from support.load.ranks import Ranks
from support.proxy import Proxy
from support.server import ServerProcess, descendants

CLIENTS = 3
WIDTHS = (3, 700)
SHORT_SECONDS = 30.0
DISK_MIB = 48
GIVE_UP_SECONDS = 2.0
"""In which the builds of a client that was killed end; a second is what an idle machine allows."""
_YEARS = 10 * 365 * 86400


def config(width: int) -> dict[str, Any]:
    layers = [
        {"_type_": "nn.Linear", "in_features": width, "out_features": width},
        {"_type_": "mlp", "dims": [width, 2]},
    ]
    return {"schema_version": 1, "model": {"sequential": {"layers": layers}}}


def fingerprint(module: nn.Module) -> float:
    return sum(item.double().abs().sum().item() for item in module.state_dict().values())


class Disk:
    """A small file system of its own for the store, which can be full and read-only.

    Where this user may not mount one (``is_own``), it is a folder: read-only by permissions, and never full.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True)
        self.is_own = self._mount("-t", "tmpfs", "-o", f"size={DISK_MIB}m", "faults")
        self._ballast = place / "ballast"
        self._other = place.with_name(f"{place.name}-read-only")
        self._other.mkdir()

    def fill(self) -> None:
        with suppress(OSError), self._ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def read_only(self, is_so: bool) -> None:
        if self.is_own and is_so:
            # As long as files are open for writing a remount is refused: so that of another mount of the same, which
            # nobody uses, and that one over the place.
            assert self._mount("--bind", str(self.place), at=self._other)
            assert self._mount("-o", "remount,bind,ro", at=self._other)
            assert self._mount("--bind", str(self._other))
            assert self._umount(self._other)
            return
        if self.is_own:
            assert self._umount()
            return
        for folder in [self.place, *(path for path in self.place.rglob("*") if path.is_dir())]:
            folder.chmod(0o555 if is_so else 0o755)

    def close(self) -> None:
        while self.is_own and self._umount():
            pass

    def _mount(self, *arguments: str, at: Path | None = None) -> bool:
        done = subprocess.run(["mount", *arguments, str(at or self.place)], check=False, capture_output=True)
        return done.returncode == 0

    def _umount(self, at: Path | None = None) -> bool:
        done = subprocess.run(["umount", "-l", str(at or self.place)], check=False, capture_output=True)
        return done.returncode == 0


class Ordeal:
    """The server, its clients, and what happens to them; everything random comes from one seed."""

    def __init__(self, folder: Path, chance: random.Random, seconds: float) -> None:
        self._chance = chance
        self._seconds = seconds
        self._seeds = 2 if seconds < SHORT_SECONDS else 6
        self._folder = folder
        self.disk = Disk(folder / "store")
        self._local = {
            (width, seed): fingerprint(_one(PolicyConstructorModelFactory(seed=seed).build({"m": config(width)})))
            for width in WIDTHS
            for seed in range(self._seeds)
        }
        self._clock = Clock(folder / "clock")
        self._ranks = Ranks(folder / "ranks", self._clock.variables)
        self._killed = 0
        self.server = self._served()
        self.proxy = Proxy(self.server.address)
        self.outcomes: Counter[str] = Counter()
        self.longest: defaultdict[str, float] = defaultdict(float)
        """Seconds that each kind of fault took at most: to start a server again, say."""
        self.said: dict[str, str] = {}
        """An error of each kind."""
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._done = threading.Event()
        self._kinds: list[Callable[[], None]] = [
            self.kill_a_worker,
            self.stop_for_a_moment,
            self.cut_connections,
            self.hold_connections,
            self.freeze_connections,
            self.empty_the_store,
            self.read_only_store,
            self.kill_a_client,
            self.jump_the_clock,
        ]
        if self.disk.is_own:
            self._kinds.append(self.full_disk)
        if seconds >= SHORT_SECONDS:  # each of them takes as long as a short run
            self._kinds += [self.restart, self.kill_the_server, self.kill_the_fork_server]

    @property
    def _store(self) -> Path:
        return self.disk.place  # and its log beside it, where it can be written to whatever happens to the disk

    def run(self) -> None:
        """Let things happen, each kind as often as any other, with all clients at work."""
        threads = [threading.Thread(target=self._client, args=(index,)) for index in range(CLIENTS)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + self._seconds
        try:
            while time.monotonic() < deadline:
                for fault in self._chance.sample(self._kinds, len(self._kinds)):
                    time.sleep(self._chance.uniform(0.05, 0.6))
                    self.faults[fault.__name__] += 1
                    begun = time.monotonic()
                    fault()
                    self.longest[fault.__name__] = max(self.longest[fault.__name__], time.monotonic() - begun)
                    if time.monotonic() > deadline:
                        break
        finally:
            self._done.set()
            for thread in threads:
                thread.join(180)
        assert not any(thread.is_alive() for thread in threads), "a client hangs"

    def check_disk(self) -> None:
        """With a full disk and with a read-only store, what was built is served and what was not is a clear error."""
        calm = iter(range(100))

        def build(seed: int) -> float:
            cache = self._folder / f"disk-cache{next(calm)}"
            factory = RemoteModelFactory(self.server.address, seed=seed, cache_dir=cache, timeout=60)
            try:
                return fingerprint(_one(factory.build({"m": config(WIDTHS[-1])})))
            finally:
                factory.close()

        before = build(0)
        assert before == self._local[WIDTHS[-1], 0]
        harms = {"read-only": (lambda: self.disk.read_only(True), lambda: self.disk.read_only(False))}
        if self.disk.is_own:
            harms["full"] = (self.disk.fill, self.disk.free)
        for seed, (name, (harm, mend)) in enumerate(harms.items(), 1000):
            harm()
            try:
                assert build(0) == before, name
                with pytest.raises(StoreError, match=r"store cannot be read or written.*\(request [0-9a-f]{32}\)"):
                    build(seed)
            finally:
                mend()
            again = build(seed)
            assert again not in {0.0, before}, name
            assert again == build(seed), name
            self.faults[name] += 1

    def check_after(self) -> None:
        """In calm weather everything is right, and nothing is left of what went wrong."""
        self._clock.jump(0)
        assert self.wrong == []
        assert self.outcomes["right"], self.outcomes
        factory = RemoteModelFactory(self.server.address, seed=0, cache_dir=self._folder / "calm", timeout=60)
        for (width, seed), expected in self._local.items():
            factory._seed = seed
            assert fingerprint(_one(factory.build({"m": config(width)}))) == expected
        factory.close()
        assert self.server.workers() == set()
        for root in [self._store, *self._folder.glob("cache*"), self._folder / "calm"]:
            Store(root)  # as its next user does: what processes that died left is swept
            left = [path for name in ("staging", "locks", "scratch") for path in (root / name).iterdir()]
            assert left == []
            for path in (root / "blobs").rglob("*/*"):
                assert digest_of_file(path) == path.name, path
        assert "Segmentation" not in self.server.log
        self.proxy.close()
        below = descendants(self.server.pid)
        assert len(below) <= 3, "processes are left"
        assert self.server.stop() == 0

    def close(self) -> None:
        self._ranks.close()
        self.server.kill()
        self.proxy.close()
        self.disk.close()

    def _client(self, index: int) -> None:
        own = random.Random(index)
        cache = self._folder / f"cache{index % 2}"
        factory = RemoteModelFactory(self.proxy.address, seed=0, cache_dir=cache, timeout=20)
        while not self._done.is_set():
            width, seed = own.choice(WIDTHS), own.randrange(self._seeds)
            factory._seed = seed
            try:
                found = fingerprint(_one(factory.build({"m": config(width)})))
            except ModelFactoryError as error:
                self.outcomes[type(error).__name__] += 1
                self.said.setdefault(type(error).__name__, str(error))
                if not str(error) or "Traceback" in str(error):
                    self.wrong.append(repr(error))
                time.sleep(0.05)
            except Exception as error:  # noqa: BLE001  anything else is what this looks for
                self.wrong.append(repr(error))
            else:
                self.outcomes["right"] += 1
                if found != self._local[width, seed]:
                    self.wrong.append(f"width {width}, seed {seed}: {found}")
            if own.random() < 0.3:
                _empty(cache)
        factory.close()

    def kill_a_worker(self) -> None:
        for worker in self.server.workers():
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def kill_a_client(self) -> None:
        """A process of its own that shares its cache with others: amid a build, a download or a rebuild."""
        self._killed += 1
        notes = self._folder / f"begun{self._killed}"
        endless = {"_type_": "hostile.FailsFor", "notes": str(notes), "go": "/none", "cause": "/none"}
        builds = self._chance.random() < 0.5
        rank = self._ranks.start(
            "build",
            address=self.proxy.address,
            cache=str(self._folder / f"cache{self._chance.randrange(2)}"),
            seed=self._chance.randrange(self._seeds),
            config={"schema_version": 1, "model": {"sequential": {"layers": [endless]}}} if builds else config(700),
            times=1 if builds else 100,
        )
        rank.wait_for("begins")
        time.sleep(self._chance.uniform(0.0, 0.8))
        rank.kill()
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while (workers := self.server.workers()) and notes.exists():
            if not workers & {int(line) for line in notes.read_text(encoding="ascii").split()}:
                break
            if time.monotonic() > deadline:
                self.wrong.append("a build goes on although its client was killed")
                break
            time.sleep(0.02)

    def jump_the_clock(self) -> None:
        """Of server, workers and client processes, by years, forwards or back; it may stay so for a while."""
        self._clock.jump(self._chance.randrange(-_YEARS, _YEARS))
        time.sleep(self._chance.uniform(0.1, 0.8))
        if self._chance.random() < 0.5:
            self._clock.jump(0)

    def kill_the_fork_server(self) -> None:
        with suppress(OSError, ProcessLookupError, IndexError):
            below = sorted(descendants(self.server.pid))
            os.kill(self._chance.choice(below)[0], signal.SIGKILL)

    def stop_for_a_moment(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.1, 1.5))
        os.kill(self.server.pid, signal.SIGCONT)

    def cut_connections(self) -> None:
        self.proxy.cut()

    def hold_connections(self) -> None:
        self.proxy.hold_after(self._chance.randrange(3_000_000))
        time.sleep(self._chance.uniform(0.1, 1.0))
        self.proxy.cut()
        self.proxy.release()

    def freeze_connections(self) -> None:
        self.proxy.freeze()
        time.sleep(self._chance.uniform(0.1, 1.0))
        self.proxy.cut()

    def restart(self) -> None:
        self.server.stop()
        self._start()

    def kill_the_server(self) -> None:
        self.server.kill()
        self._start()

    def empty_the_store(self) -> None:
        _empty(self._store)

    def full_disk(self) -> None:
        self.disk.fill()
        time.sleep(self._chance.uniform(0.3, 1.5))
        self.disk.free()

    def read_only_store(self) -> None:
        self.disk.read_only(True)
        time.sleep(self._chance.uniform(0.3, 1.5))
        self.disk.read_only(False)

    def _start(self) -> None:
        self.server = self._served()
        self.proxy.target = self.server.address

    def _served(self) -> ServerProcess:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
            for name, value in self._clock.variables.items():
                patch.setenv(name, value)
            seen = [argument for name in VARIABLES for argument in ("--worker-variable", name)]
            return ServerProcess(self._store, "--plugin", "hostile_blocks", *seen)


def _one(built: Any) -> nn.Module:
    module = built["m"]
    assert isinstance(module, nn.Module)
    return module


def _empty(store: Path) -> None:
    for path in (store / "blobs").rglob("*/*"):
        path.unlink(missing_ok=True)
