"""A soak test: many clients of all kinds on a real server for a given time, and the resources of the server after that.

Clients build anew, ask for what is built, download, describe, give up, and come back over new connections, by a seeded
random choice. Every answer is checked. A process of its own asks the health service all the time. Once a second the
server's memory, descriptors, processes and staged files are sampled.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from blake3 import blake3
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_factory.v1 import blob_pb2, build_pb2, service_pb2_grpc
from support.server import ServerProcess, descendants

SERVER_FLAGS = ("--max-rpcs", "100000", "--max-rpcs-per-client", "100000", "--max-queue-per-client", "1024")
SAMPLE_SECONDS = 1.0
PROBE_SECONDS = 0.05
SETTLE_SECONDS = 15.0
_CALL_SECONDS = 300.0
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each client, not one for all
_KNOWN = 4

_BUILDS = 8  # asked for anew at the same time: each takes a processor for a good part of a second, and the rest do not

# What a client does next: weight and name. One that would build when enough others do asks for what is built.
_MIX = ((50, "hit"), (30, "download"), (10, "describe"), (6, "reconnect"), (3, "build"), (1, "give up"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the server has at one moment."""

    seconds: float
    """Since the start."""
    rss_mib: float
    """Resident memory of the server's process."""
    descriptors: int
    """Open in it."""
    processes: int
    """Below it."""
    staged: int
    """Files in the store that are being written and have content."""
    stored: int
    """Blobs and records in the store."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a soak."""

    samples: list[Sample] = field(default_factory=list)
    """Through the run; the last one after all clients have gone."""
    latencies: dict[str, list[float]] = field(default_factory=dict)
    """Seconds that each call took, by what it was."""
    probes: list[float] = field(default_factory=list)
    """Seconds that each health check took."""
    probe_errors: list[str] = field(default_factory=list)
    """Health checks that failed or said something else than SERVING."""
    errors: list[str] = field(default_factory=list)
    """Calls that failed, and answers that were wrong."""
    counts: Counter[str] = field(default_factory=Counter)
    """Calls that were answered, by method, as the clients count them."""
    handled: dict[str, float] = field(default_factory=dict)
    """The same as the server's metrics count them."""
    server_ms: dict[str, float] = field(default_factory=dict)
    """Mean time from a call's arrival at the server to its end there, by method: without the clients' own waiting."""
    bytes: int = 0
    """Downloaded."""

    def summary(self) -> dict[str, Any]:
        """The figures, for people and for comparison."""
        first, last = self.samples[0], self.samples[-1]
        return {
            "calls": {
                name: {"count": len(times), **_quantiles(times)} for name, times in sorted(self.latencies.items())
            },
            "server_mean_ms": self.server_ms,
            "health": {"count": len(self.probes), "failed": len(self.probe_errors), **_quantiles(self.probes)},
            "downloaded_mib": round(self.bytes / 2**20, 1),
            "errors": len(self.errors),
            "first": asdict(first),
            "most": {
                name: max(getattr(sample, name) for sample in self.samples)
                for name in ("rss_mib", "descriptors", "processes", "staged", "stored")
            },
            "last": asdict(last),
            "growth_mib": round(self.memory_growth(), 2),
        }

    def memory_growth(self) -> float:
        """MiB by which the median of the last quarter of the run is above that of its second quarter."""
        memory = [sample.rss_mib for sample in self.samples[:-1]]
        quarter = max(1, len(memory) // 4)
        return statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter] or memory)

    def faults(self, *, health_seconds: float, growth_mib: float) -> list[str]:
        """Everything that is not as it should be; empty if all is well."""
        first, last = self.samples[0], self.samples[-1]
        found = [*self.errors[:5], *self.probe_errors[:5]]
        if not self.probes or max(self.probes) > health_seconds:
            found.append(f"a health check took {max(self.probes, default=0.0):.3f} s")
        if last.descriptors > first.descriptors:
            found.append(f"{first.descriptors} descriptors at first, {last.descriptors} at last")
        if last.processes > first.processes:
            found.append(f"{first.processes} processes at first, {last.processes} at last")
        if last.staged:
            found.append(f"{last.staged} files are still staged")
        if self.memory_growth() > growth_mib:
            found.append(f"memory has grown by {self.memory_growth():.1f} MiB")
        found += [
            f"clients had {count} answers of {method}, the server counts {self.handled.get(method)}"
            for method, count in self.counts.items()
            if count != self.handled.get(method)
        ]
        return found


def soak(server: ServerProcess, *, seconds: float, clients: int, seed: int) -> Outcome:
    """Run one; the server must have been started with ``SERVER_FLAGS`` and metrics."""
    outcome = Outcome()
    before = _counters(server)
    started = time.monotonic()
    sampling = threading.Event()
    outcome.samples.append(_sample(server, started))
    sampler = threading.Thread(target=_keep_sampling, args=(server, started, outcome.samples, sampling))
    sampler.start()
    stop = _SPAWN.Event()
    # In processes of their own: nothing of the clients is left when they have ended, and no probe waits for them.
    load = _Apart(_drive, server.address, seconds, clients, seed)
    prober = _Apart(_probe, server.address, stop)
    try:
        outcome.latencies, outcome.errors, outcome.counts, outcome.bytes = load.result()
    finally:
        stop.set()
        outcome.probes, outcome.probe_errors = prober.result()
        sampling.set()
        sampler.join()
    outcome.samples.append(_settled(server, started, outcome.samples[0]))
    grown = {key: value - before.get(key, 0.0) for key, value in _counters(server).items()}
    outcome.handled = {method: value for (name, method), value in grown.items() if name == "handled"}
    outcome.server_ms = {
        method: round(1000 * value / max(1.0, grown["count", method]), 2)
        for (name, method), value in grown.items()
        if name == "sum"
    }
    return outcome


_SPAWN = multiprocessing.get_context("spawn")


class _Apart:
    """A function in a process of its own, which gets a connection to send its result to before its arguments."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self._receiver, sender = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=function, args=(sender, *arguments))
        self._process.start()
        sender.close()  # so that its end is seen here if it dies

    def result(self) -> Any:
        """Wait for it; EOFError if it died."""
        with self._receiver:
            result = self._receiver.recv()
        self._process.join()
        return result


def _drive(sender: Connection, address: str, seconds: float, clients: int, seed: int) -> None:
    outcome = Outcome()
    asyncio.run(_Load(address, outcome, seed).run(seconds, clients))
    sender.send((outcome.latencies, outcome.errors, outcome.counts, outcome.bytes))


class _Load:
    """All clients, in one event loop."""

    def __init__(self, address: str, outcome: Outcome, seed: int) -> None:
        self._address = address
        self._outcome = outcome
        self._random = random.Random(seed)
        self._seed = self._random.getrandbits(48)
        self._configs = [_config(width) for width in (64, 128, 256, 512)[:_KNOWN]]
        self._known: list[build_pb2.BuiltComponent] = []
        self._builds = 0

    async def run(self, seconds: float, clients: int) -> None:
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
            for config in self._configs:
                self._known.append(await self._build(stub, config, 0))
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(self._client(deadline) for _ in range(clients)))

    async def _client(self, deadline: float) -> None:
        choose = random.Random(self._random.getrandbits(64))
        while time.monotonic() < deadline:
            async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
                stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
                while time.monotonic() < deadline:
                    (what,) = choose.choices([name for _, name in _MIX], [weight for weight, _ in _MIX])
                    if what == "reconnect":
                        break
                    if what == "build" and self._builds >= _BUILDS:
                        what = "hit"
                    await self._timed(what, self._acts[what], stub, choose)
                    await asyncio.sleep(choose.random() * 0.2)

    async def _timed(self, what: str, act: Callable[..., Awaitable[None]], stub: Any, choose: random.Random) -> None:
        started = time.monotonic()
        try:
            await act(self, stub, choose)
        except grpc.RpcError as error:
            self._outcome.errors.append(f"{what}: {error.code().name}: {error.details()}")
        except AssertionError as error:
            self._outcome.errors.append(f"{what}: wrong: {error}")
        self._outcome.latencies.setdefault(what, []).append(time.monotonic() - started)

    async def _hit(self, stub: Any, choose: random.Random) -> None:
        index = choose.randrange(_KNOWN)
        built = await self._build(stub, self._configs[index], 0)
        known = self._known[index]
        assert (built.build_key, built.weights) == (known.build_key, known.weights), "another build for the same key"
        assert not built.built_now, "built again"

    async def _new(self, stub: Any, choose: random.Random) -> None:
        self._seed += 1
        index = choose.randrange(_KNOWN)
        self._builds += 1
        try:
            built = await self._build(stub, self._configs[index], self._seed)
        finally:
            self._builds -= 1
        assert built.built_now, "another seed, and yet it was there"
        assert built.descriptor == self._known[index].descriptor, "another architecture under another seed"
        await self._read(stub, built.weights)

    async def _download(self, stub: Any, choose: random.Random) -> None:
        await self._read(stub, choose.choice(self._known).weights)

    async def _describe(self, stub: Any, choose: random.Random) -> None:
        index = choose.randrange(_KNOWN)
        request = build_pb2.DescribeModelsRequest(
            components=[build_pb2.Component(name="m", config_json=self._configs[index])]
        )
        answer = await stub.DescribeModels(request, timeout=_CALL_SECONDS)
        self._outcome.counts["DescribeModels"] += 1
        assert blake3(answer.components[0].descriptor_json).hexdigest() == self._known[index].descriptor.blake3

    async def _give_up(self, stub: Any, choose: random.Random) -> None:
        """Ask for a new build and leave before it can be done."""
        self._seed += 1
        call = stub.BuildModels(_request(choose.choice(self._configs), self._seed), timeout=_CALL_SECONDS)
        await asyncio.sleep(choose.random() * 0.1)
        call.cancel()
        await call.code()  # without it the channel may stay open

    async def _build(self, stub: Any, config: bytes, seed: int) -> Any:
        manifest = None
        async for event in stub.BuildModels(_request(config, seed), timeout=_CALL_SECONDS):
            manifest = event.manifest
        self._outcome.counts["BuildModels"] += 1
        assert manifest is not None, "no manifest"
        return manifest.components[0]

    async def _read(self, stub: Any, digest: blob_pb2.Digest) -> None:
        hasher, size = blake3(), 0
        async for chunk in stub.ReadBlob(blob_pb2.ReadBlobRequest(digest=digest), timeout=_CALL_SECONDS):
            hasher.update(chunk.data)
            size += len(chunk.data)
        self._outcome.counts["ReadBlob"] += 1
        self._outcome.bytes += size
        assert (hasher.hexdigest(), size) == (digest.blake3, digest.size_bytes), "other bytes than their digest"

    _acts: dict[str, Any] = {  # noqa: RUF012  a table
        "hit": _hit, "download": _download, "describe": _describe, "build": _new, "give up": _give_up
    }  # fmt: skip


def _config(width: int) -> bytes:
    layers = [{"_type_": "mlp", "dims": [width, width, width]}, {"_type_": "nn.LayerNorm", "normalized_shape": width}]
    return json.dumps({"schema_version": 1, "model": {"sequential": {"layers": layers}}}).encode()


def _request(config: bytes, seed: int) -> build_pb2.BuildModelsRequest:
    return build_pb2.BuildModelsRequest(components=[build_pb2.Component(name="m", config_json=config)], seed=seed)


def _probe(sender: Connection, address: str, stop: Any) -> None:
    """Ask the health service until told to stop."""
    took: list[float] = []
    errors: list[str] = []
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while not stop.wait(PROBE_SECONDS):
            started = time.monotonic()
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
                status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            except grpc.RpcError as error:
                status = str(error.code())
            took.append(time.monotonic() - started)
            if status != "SERVING":
                errors.append(f"health: {status}")
    sender.send((took, errors))


def _keep_sampling(server: ServerProcess, started: float, samples: list[Sample], stop: threading.Event) -> None:
    while not stop.wait(SAMPLE_SECONDS):
        samples.append(_sample(server, started))


def _sample(server: ServerProcess, started: float) -> Sample:
    process = Path(f"/proc/{server.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Sample(
        seconds=round(time.monotonic() - started, 2),
        rss_mib=int(status["VmRSS"].split()[0]) / 1024,
        descriptors=len(list((process / "fd").iterdir())),
        processes=len(descendants(server.pid)),
        staged=sum(_has_content(path) for path in (server.store / "staging").iterdir()),
        stored=sum(1 for name in ("blobs", "records") for _ in (server.store / name).glob("*/*")),
    )


def _has_content(path: Path) -> bool:
    """Whether it is a file with something in it; the server keeps a folder of its own there."""
    try:
        return path.is_file() and path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _settled(server: ServerProcess, started: float, first: Sample) -> Sample:
    """Sample once the server has given back what it will, or is given no more time."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        sample = _sample(server, started)
        left = sample.descriptors > first.descriptors or sample.processes > first.processes or sample.staged
        if not left or time.monotonic() > deadline:
            return sample
        time.sleep(0.2)


def _metrics(server: ServerProcess) -> list[Any]:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    return [sample for family in text_string_to_metric_families(server.metrics_page()) for sample in family.samples]


def _counters(server: ServerProcess) -> dict[tuple[str, str], float]:
    """Of the server, by method: calls ``handled`` with OK; ``count`` and ``sum`` of the seconds of all."""
    return {
        (sample.name.rpartition("_")[2].replace("total", "handled"), sample.labels["grpc_method"]): sample.value
        for sample in _metrics(server)
        if sample.name in {"grpc_server_handling_seconds_count", "grpc_server_handling_seconds_sum"}
        or (sample.name == "grpc_server_handled_total" and sample.labels["grpc_code"] == "OK")
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2)

    return {"p50_ms": at(0.5), "p99_ms": at(0.99), "worst_ms": at(1.0)}
