"""Thousands of jobs with every ending on a server, and the resources in use whenever the server is idle.

Builds, builds that fail, calls that are given up, descriptions, downloads left half way and workers that are killed, in
rounds. After a round all is waited for, so what is counted then is what the server keeps.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import grpc

from model_factory.v1 import blob_pb2, build_pb2, service_pb2_grpc
from support.server import ServerProcess, descendants

CLIENTS = 4
POOL_THREADS = 4
"""That a pool may start late."""
QUIET_SECONDS = 10.0
_CALL_SECONDS = 120.0
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each client, not one for all
_KILLED = "was ended by SIGKILL"

# How often each of them comes in a round; the order is by chance.
_MIX = {
    "build": 40,
    "new architecture": 4,
    "built before": 10,
    "bad argument": 12,
    "no such block": 4,
    "no config": 4,
    "given up": 10,
    "connection lost": 4,
    "describe": 6,
    "half a download": 4,
    "worker killed": 2,
}
ROUND = sum(_MIX.values())
"""Jobs in a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a server has at a quiet moment."""

    jobs: int
    """Asked for until then."""
    seconds: float
    """Since the start."""
    server_mib: float
    """Resident private memory of the server's process."""
    forks_mib: float
    """The same of the fork server."""
    descriptors: int
    """Open in the server's process."""
    fork_descriptors: int
    """Open in the fork server."""
    threads: int
    """Of the server's process."""
    processes: int
    """Below it, those that have ended and nobody has waited for included."""
    staged: int
    """Files and folders in the store's staging, locks and scratch."""
    stored: int
    """Blobs and records: they are there to stay."""


class Leaks:
    """Rounds of jobs against a server, and the figures after each."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._seed = self._chance.getrandbits(40)
        self._width = 1
        self._started = time.monotonic()
        self._jobs = 0
        self.endings: Counter[str] = Counter()
        """How jobs ended, by what they were."""
        self.wrong: list[str] = []
        """Those that should have ended otherwise."""
        self.figures: list[Figures] = []
        """After each round."""

    def round(self, share: float = 1.0) -> Figures:
        """Do a round of jobs, or a share of one, and count."""
        jobs = [name for name, times in _MIX.items() for _ in range(max(1, round(times * share)))]
        self._chance.shuffle(jobs)
        work = [(name, random.Random(self._chance.getrandbits(64)), self._next_seed(), self._next_width(name))
                for name in jobs]  # fmt: skip
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda item: self._do(*item), work))
        self._jobs += len(jobs)
        self.figures.append(self._quiet())
        return self.figures[-1]

    def faults(self, warm: int, *, server_mib: float, forks_mib: float) -> list[str]:
        """Return everything that has grown since round ``warm``; empty without leaks.

        Memory may grow by this much, and pools of threads may fill up.
        """
        first = self.figures[warm - 1]
        found = self.wrong[:5]
        for name, most in {"server_mib": server_mib, "forks_mib": forks_mib, "descriptors": 0, "fork_descriptors": 0,
                           "threads": POOL_THREADS, "processes": 0, "staged": 0}.items():  # fmt: skip
            before, later = getattr(first, name), [getattr(item, name) for item in self.figures[warm:]]
            if max(later) > before + most:
                found.append(f"{name}: {before:g} after {first.jobs} jobs, up to {max(later):g} after that")
        return found

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed

    def _next_width(self, name: str) -> int:
        self._width += name in {"new architecture", "describe"}
        return self._width

    def _do(self, name: str, chance: random.Random, seed: int, width: int) -> None:
        ending = details = ""
        with _connected(self._server.address) as stub:
            try:
                _JOBS[name](self, stub, chance, seed, width)
                ending = "done"
            except grpc.RpcError as error:
                ending, details = error.code().name, error.details()
                if _KILLED in details:
                    ending = "killed"
        self.endings[f"{name}: {ending}"] += 1
        if ending not in (_ENDINGS.get(name, "done"), "killed"):
            self.wrong.append(f"{name} with seed {seed}: {ending} {details}")

    def _build(self, stub: Any, _chance: random.Random, seed: int, _width: int) -> None:
        _built(stub, _layers(8), seed)

    def _new(self, stub: Any, _chance: random.Random, seed: int, width: int) -> None:
        _built(stub, _layers(width), seed)

    def _known(self, stub: Any, _chance: random.Random, _seed: int, _width: int) -> None:
        _built(stub, _layers(8), 0)

    def _bad(self, stub: Any, _chance: random.Random, seed: int, _width: int) -> None:
        _built(stub, [{"_type_": "nn.Linear", "in_features": 4, "out_features": -1}], seed)

    def _unknown(self, stub: Any, _chance: random.Random, seed: int, _width: int) -> None:
        _built(stub, [{"_type_": f"no.such.Block{seed}"}], seed)

    def _no_config(self, stub: Any, _chance: random.Random, seed: int, _width: int) -> None:
        component = build_pb2.Component(name="m", config_json=b'{"model": %d' % seed)
        list(stub.BuildModels(build_pb2.BuildModelsRequest(components=[component]), timeout=_CALL_SECONDS))

    def _give_up(self, stub: Any, chance: random.Random, seed: int, _width: int) -> None:
        call = stub.BuildModels(_request(_layers(8), seed), timeout=_CALL_SECONDS)
        time.sleep(chance.uniform(0.0, 0.15))
        call.cancel()

    def _lose(self, stub: Any, chance: random.Random, seed: int, _width: int) -> None:
        next(iter(stub.BuildModels(_request(_layers(8), seed), timeout=_CALL_SECONDS)))
        time.sleep(chance.uniform(0.0, 0.15))  # and then the channel closes

    def _describe(self, stub: Any, _chance: random.Random, _seed: int, width: int) -> None:
        component = build_pb2.Component(name="m", config_json=_json([{"_type_": "nn.PReLU", "num_parameters": width}]))
        stub.DescribeModels(build_pb2.DescribeModelsRequest(components=[component]), timeout=_CALL_SECONDS)

    def _leave_download(self, stub: Any, _chance: random.Random, _seed: int, _width: int) -> None:
        manifest = _built(stub, [{"_type_": "nn.Linear", "in_features": 1500, "out_features": 1500}], 0)
        request = blob_pb2.ReadBlobRequest(digest=manifest.components[0].weights)
        call = stub.ReadBlob(request, timeout=_CALL_SECONDS)
        next(iter(call))
        call.cancel()

    def _kill(self, _stub: Any, chance: random.Random, _seed: int, _width: int) -> None:
        time.sleep(chance.uniform(0.0, 0.15))
        for worker in self._server.workers():
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def _quiet(self) -> Figures:
        """Count once nothing is at work any more, or after some seconds in which it did not end."""
        deadline = time.monotonic() + QUIET_SECONDS
        calm = self._count()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            before, calm = calm, self._count()
            if not self._server.workers() and _counts(before) == _counts(calm):
                break
        return calm

    def _count(self) -> Figures:
        store, pid = self._server.store, self._server.pid
        below = descendants(pid)
        forks = max((child for child, _ in below), key=_private_mib)  # the other one tracks resources
        return Figures(
            jobs=self._jobs,
            seconds=round(time.monotonic() - self._started, 1),
            server_mib=_private_mib(pid),
            forks_mib=_private_mib(forks),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208  counted, not used
            fork_descriptors=len(os.listdir(f"/proc/{forks}/fd")),  # noqa: PTH208
            threads=int(_status(pid)["Threads"]),
            processes=len(below),
            staged=sum(1 for name in ("staging", "locks", "scratch") for _ in (store / name).iterdir()),
            stored=sum(1 for name in ("blobs", "records") for _ in (store / name).glob("*/*")),
        )


_JOBS: dict[str, Callable[..., None]] = {
    "build": Leaks._build,
    "new architecture": Leaks._new,
    "built before": Leaks._known,
    "bad argument": Leaks._bad,
    "no such block": Leaks._unknown,
    "no config": Leaks._no_config,
    "given up": Leaks._give_up,
    "connection lost": Leaks._lose,
    "describe": Leaks._describe,
    "half a download": Leaks._leave_download,
    "worker killed": Leaks._kill,
}
_ENDINGS = {
    "bad argument": "FAILED_PRECONDITION",
    "no such block": "INVALID_ARGUMENT",
    "no config": "INVALID_ARGUMENT",
}
"""Where it is not that all is done."""


def table(figures: list[Figures], rows: int = 16) -> str:
    """Figures over time, as text; at most so many rows, the first and the last among them."""
    names = [item.name for item in fields(Figures)]
    step = max(1, (len(figures) - 1) // (rows - 1))
    shown = [*figures[:-1:step], figures[-1]]
    lines = ["  ".join(names)]
    lines += ["  ".join(f"{getattr(item, name):>{len(name)}.6g}" for name in names) for item in shown]
    return "\n".join(lines)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        yield service_pb2_grpc.ModelFactoryServiceStub(channel)


def _layers(width: int) -> list[dict[str, Any]]:
    return [{"_type_": "mlp", "dims": [width, width, 4]}, {"_type_": "nn.LayerNorm", "normalized_shape": 4}]


def _json(layers: list[dict[str, Any]]) -> bytes:
    return json.dumps({"schema_version": 1, "model": {"sequential": {"layers": layers}}}).encode()


def _request(layers: list[dict[str, Any]], seed: int) -> build_pb2.BuildModelsRequest:
    return build_pb2.BuildModelsRequest(
        components=[build_pb2.Component(name="m", config_json=_json(layers))], seed=seed
    )


def _built(stub: Any, layers: list[dict[str, Any]], seed: int) -> build_pb2.Manifest:
    *_, last = stub.BuildModels(_request(layers, seed), timeout=_CALL_SECONDS)
    manifest: build_pb2.Manifest = last.manifest
    assert len(manifest.components) == 1
    return manifest


def _counts(figures: Figures) -> tuple[int, ...]:
    return figures.descriptors, figures.fork_descriptors, figures.threads, figures.processes, figures.staged


def _private_mib(pid: int) -> float:
    """Memory that is a process's own: what it has mapped of files goes by itself when others need the room."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(_status(pid).get("RssAnon", "0").split()[0]) / 1024
    return 0.0


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
