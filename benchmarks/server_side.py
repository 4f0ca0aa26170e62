"""The server: builds, repeated requests, and many clients at the same time."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load_file

from benchmarks.experiment import COMPONENTS, CONFIGS, SEED
from benchmarks.measure import Report, Sample, in_turns, ratio
from benchmarks.payload import digest_of_tensors
from benchmarks.servers import OurServer
from model_factory.client.connection import Connection
from model_factory.config.request import read_request
from model_factory.limits import MAX_MESSAGE_BYTES
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, service_pb2_grpc
from model_factory_server import PolicyConstructorModelFactory

CLIENTS = 64
MEMORY_BYTES = 2 << 30  # the experiment twice, and the file
DISK_BYTES = 1 << 30
_CALLS = 200
_OPTIONS = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1)]
_seeds = itertools.count(1000)


def measure_server(report: Report, store: Path, server: OurServer, repeats: int) -> None:
    """Add the rows of the server."""
    connection = Connection(server.address)
    manifest_of(connection.stub, SEED)  # the architecture is known from here on
    _builds(report, Store(store), connection.stub, repeats)
    _repeated_requests(report, connection.stub, health_pb2_grpc.HealthStub(connection.channel))
    connection.close()
    _crowd(report, server, repeats)


def request_of(seed: int, names: tuple[str, ...] = tuple(COMPONENTS)) -> build_pb2.BuildModelsRequest:
    """Return the request for these components."""
    configs = read_request({name: COMPONENTS[name] for name in names}, CONFIGS, {}).components
    components = [build_pb2.Component(name=item.name, config_json=item.config.wire) for item in configs]
    return build_pb2.BuildModelsRequest(components=components, seed=seed)


def manifest_of(stub: Any, seed: int, names: tuple[str, ...] = tuple(COMPONENTS)) -> build_pb2.Manifest:
    """Build and return the manifest."""
    *_, last = stub.BuildModels(request_of(seed, names))
    manifest: build_pb2.Manifest = last.manifest
    return manifest


def _builds(report: Report, store: Store, stub: Any, repeats: int) -> None:
    local_seeds, remote_seeds = itertools.tee(itertools.islice(_seeds, repeats + 1))
    found: dict[int, dict[str, str]] = {}

    def check(seed: int, digests: dict[str, str]) -> None:
        assert found.setdefault(seed, digests) == digests, (
            "the weights of the server differ from the weights in process"
        )

    def local() -> float:
        seed = next(local_seeds)
        factory = PolicyConstructorModelFactory(seed=seed, base_dir=CONFIGS)
        started = time.perf_counter()
        models: Any = factory.build(COMPONENTS)
        taken = time.perf_counter() - started
        check(seed, {name: digest_of_tensors(model.state_dict()) for name, model in models.items()})
        return taken

    def remote() -> float:
        seed = next(remote_seeds)
        started = time.perf_counter()
        manifest = manifest_of(stub, seed)
        taken = time.perf_counter() - started
        digests = {}
        for built in manifest.components:
            assert built.built_now, "the model was built before"
            path = store.find(Blob(built.weights.blake3, built.weights.size_bytes))
            assert path is not None
            digests[built.name] = digest_of_tensors(load_file(path))
            path.unlink()
        check(seed, digests)
        return taken

    samples = in_turns({"in process": local, "server": remote}, repeats, memory=MEMORY_BYTES, disk=DISK_BYTES)
    for name, sample in samples.items():
        report.add(f"example experiment, another seed, {name}", sample, "s")
    against = ratio(samples["server"], samples["in process"])
    report.add("server: build plus durable blob ÷ in-process construction", against, target=1.6)


def _repeated_requests(report: Report, stub: Any, health: Any) -> None:
    """Requests with results in the store, and a bare call on the same connection, in alternating rounds."""
    name = ("prior",)
    build = request_of(SEED, name)
    describe = build_pb2.DescribeModelsRequest(components=build.components)
    first = stub.DescribeModels(describe)
    *_, last = stub.BuildModels(build)
    inline = {item.digest.blake3: item.data for item in last.manifest.inline_blobs}
    built = last.manifest.components[0].descriptor.blake3
    assert first.components[0].descriptor_json == inline[built], "description and build give different models"
    calls: dict[str, Callable[[], Any]] = {
        "bare": lambda: health.Check(health_pb2.HealthCheckRequest()),
        "describe": lambda: stub.DescribeModels(describe),
        "build": lambda: list(stub.BuildModels(build)),
    }

    def timed(call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    samples = in_turns({key: lambda call=call: timed(call) for key, call in calls.items()}, _CALLS)
    assert stub.DescribeModels(describe) == first
    for key in ("describe", "build"):
        value = Sample(values=(samples[key].median / samples["bare"].median,))
        note = f"{samples[key].median * 1000:.2f} ms, bare {samples['bare'].median * 1000:.2f} ms"
        report.add(f"p50 of a repeated {key} request ÷ bare unary gRPC", value, target=2.0, note=note)


def _crowd(report: Report, server: OurServer, repeats: int) -> None:
    """64 clients with separate connections request the same model, which is not in the store."""
    ratios, spans = [], []
    for _ in range(min(repeats, 3)):
        before = server.builds()
        first, last, digests = _ask_together(server.address, next(_seeds))
        assert len(digests) == 1, "clients got different models"
        assert server.builds() == before + 1, f"{server.builds() - before} builds ran"
        ratios.append(last / first)
        spans.append(last)
    report.add(
        f"{CLIENTS} clients, a model outside the store, one build: last response ÷ first",
        Sample(values=tuple(ratios)),
        target=1.3,
        note=f"last after {max(spans):.2f} s",
    )


def _ask_together(address: str, seed: int) -> tuple[float, float, set[str]]:
    """Return seconds until the first and the last response, and the digests of the weights."""
    begin = threading.Barrier(CLIENTS)
    begun: list[float] = []

    def ask(_index: int) -> tuple[float, str]:
        with grpc.insecure_channel(address, options=_OPTIONS) as channel:
            grpc.channel_ready_future(channel).result(60)
            stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
            begin.wait()
            begun.append(time.perf_counter())
            manifest = manifest_of(stub, seed, ("posterior",))
            return time.perf_counter(), manifest.components[0].weights.blake3

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS)))
    ended = [at - min(begun) for at, _ in answers]
    return min(ended), max(ended), {digest for _, digest in answers}
