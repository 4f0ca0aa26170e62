"""Transfer of a blob to a node: limits of the machine, model-factory, and alternatives."""

from __future__ import annotations

import importlib.util
import mmap
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from benchmarks.measure import Contender, Report, in_turns, rates, ratio, seconds
from benchmarks.payload import Payload, land, make_payload
from benchmarks.peers import CHUNK_BYTES
from benchmarks.servers import peer
from model_factory.client.connection import Connection
from model_factory.client.fetch import fetch_blob
from model_factory.descriptor.weights import map_weights
from model_factory.memory import reusing_memory
from model_factory.store import Store
from model_factory.store.hashing_writer import HashingWriter
from model_factory.v1 import blob_pb2, wire

RAW = "raw TCP into a file, flushed"
RAW_SAME = "raw TCP into a file, hashed and written like model-factory"
OURS = "model-factory: TCP, verified, into the node cache"
OURS_DROPPED = "model-factory: TCP, received and dropped"
FLIGHT = "Arrow Flight into a file, flushed"
FLIGHT_SAME = "Arrow Flight into a file, hashed and written like model-factory"
HTTP = "HTTP file server into a file, flushed"
TENSORIZER = "tensorizer over HTTP into memory"
TORCH = "torch.save and torch.load, shared folder"
SHARED = "model-factory: shared file of the server, verified, linked"
MAPPED = "model-factory: in the node cache, mapped and every page read"
MEMCPY = "memcpy into fresh pages"
MEMCPY_WARM = "memcpy into warm pages"
MMAP = "mmap of a file, every page read"

Take = Callable[[Any], object]
"""Receives a chunk of bytes."""


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Servers of the same store."""

    store: Path
    """Folder of the store."""
    quiet: str
    """``HOST:PORT`` of a server that does not share the store, so that blobs cross the wire."""
    sharing: str = ""
    """``HOST:PORT`` of a server that shares the store; empty if there is no such server."""


def measure_wire(report: Report, folder: Path, servers: Servers, size: int, repeats: int) -> None:
    """Add the rows of the transfers to the report."""
    store = Store(servers.store)
    payload = make_payload(store, size)
    with ExitStack() as stack:
        contenders = _limits(payload)
        port = stack.enter_context(peer("tcp", payload.path))
        contenders[RAW] = lambda: _landed(payload, folder, lambda file: _from_tcp(port, file.write))
        contenders[RAW_SAME] = lambda: _landed(
            payload, folder, lambda file: _same_way(payload, file, lambda take: _from_tcp(port, take))
        )
        contenders[OURS] = stack.enter_context(_ours(payload, servers.quiet, folder, transferred=payload.blob.size))
        contenders[OURS_DROPPED] = stack.enter_context(_dropped(payload, servers.quiet))
        contenders |= _peers(stack, payload, folder, report)
        if servers.sharing:
            contenders[SHARED] = stack.enter_context(_ours(payload, servers.sharing, folder, transferred=0))
        contenders[MAPPED] = lambda: _mapped(payload, store)
        contenders[TORCH] = lambda: _torch(payload, folder)
        samples = in_turns(contenders, repeats, memory=5 * payload.blob.size // 2, disk=payload.blob.size)
    speeds = {name: rates(sample, payload.blob.size) for name, sample in samples.items()}
    report.bars[f"{payload.blob.size / (1 << 20):.0f} MiB, GB/s"] = speeds
    for name, speed in speeds.items():
        report.add(name, speed, "GB/s")
    targets = {RAW: 0.9, RAW_SAME: 0.9, FLIGHT: 1.0, FLIGHT_SAME: 1.0, TENSORIZER: 1.0, HTTP: None, TORCH: None}
    for name, target in targets.items():
        if name in speeds:
            against = ratio(speeds[OURS], speeds[name])
            what = f"blob over TCP, verified, into the cache ÷ {name}"
            report.add(what, against, target=target, at_least=True)
    payload.path.unlink()


def _limits(payload: Payload) -> dict[str, Contender]:
    source = torch.cat(list(payload.tensors.values()))
    warm = source.clone()

    def into_warm() -> float:
        taken = seconds(lambda: warm.copy_(source))
        assert torch.equal(warm, source)
        return taken

    def into_fresh() -> float:
        fresh = torch.empty_like(source)
        taken = seconds(lambda: fresh.copy_(source))
        assert torch.equal(fresh, source)
        return taken

    def mapped() -> float:
        with payload.path.open("rb") as file:
            return seconds(lambda: _touch(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))

    return {MEMCPY_WARM: into_warm, MEMCPY: into_fresh, MMAP: mapped}


def _touch(mapping: mmap.mmap) -> int:
    return sum(mapping[:: mmap.PAGESIZE])


def _landed(payload: Payload, folder: Path, receive: object) -> float:
    path = folder / "landed"
    taken = seconds(lambda: land(path, receive))  # type: ignore[arg-type]
    payload.check_file(path)
    path.unlink()
    return taken


def _same_way(payload: Payload, file: BinaryIO, receive: Callable[[Take], None]) -> None:
    """Write like the client: hash every chunk, and start write-back during the transfer."""
    writer = HashingWriter(file)
    receive(writer.write)
    assert writer.digest() == payload.blob.digest, "the received bytes differ from the payload"


def _from_tcp(port: int, take: Take) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while count := connection.recv_into(buffer):
            take(buffer[:count])


@contextmanager
def _ours(payload: Payload, address: str, folder: Path, transferred: int) -> Iterator[Contender]:
    connection = Connection(address)

    def fetch() -> float:
        cache = Store(folder / "cache")
        connection.capabilities()
        counts: list[int] = []
        taken = seconds(lambda: fetch_blob(connection, cache, payload.blob, counts.append).close())
        assert sum(counts) == transferred, f"{sum(counts)} bytes were transferred"
        path = cache.find(payload.blob)
        assert path is not None
        payload.check_file(path)
        shutil.rmtree(cache.root)
        return taken

    yield fetch
    connection.close()


@contextmanager
def _dropped(payload: Payload, address: str) -> Iterator[Contender]:
    """Receive without file and digest: the limit of gRPC in Python."""
    connection = Connection(address)
    request = blob_pb2.ReadBlobRequest(digest=wire.to_digest(payload.blob))

    def receive() -> float:
        connection.capabilities()
        counts: list[int] = []
        with reusing_memory():
            taken = seconds(lambda: counts.extend(map(len, connection.read_blob(request))))
        assert sum(counts) == payload.blob.size, f"{sum(counts)} bytes were received"
        return taken

    yield receive
    connection.close()


def _mapped(payload: Payload, store: Store) -> float:
    def build() -> None:
        with store.open(payload.blob) as file:  # type: ignore[union-attr]
            tensors.update(map_weights(file))
        for tensor in tensors.values():
            tensor[:: mmap.PAGESIZE // 4].sum()

    tensors: dict[str, torch.Tensor] = {}
    taken = seconds(build)
    payload.check_tensors(tensors)
    return taken


def _torch(payload: Payload, folder: Path) -> float:
    def save_and_load() -> None:
        with path.open("wb") as file:
            torch.save(payload.tensors, file)
        loaded.update(torch.load(path))

    path = folder / "tensors.pt"
    loaded: dict[str, torch.Tensor] = {}
    taken = seconds(save_and_load)
    payload.check_tensors(loaded)
    path.unlink()
    return taken


def _peers(stack: ExitStack, payload: Payload, folder: Path, report: Report) -> dict[str, Contender]:
    http = stack.enter_context(peer("http", payload.path))
    contenders: dict[str, Contender] = {
        HTTP: lambda: _landed(payload, folder, lambda file: _from_http(http, payload.path.name, file))
    }
    if importlib.util.find_spec("pyarrow") is None:
        report.missing.append("pyarrow (Flight) is not installed")
    else:
        flight = stack.enter_context(peer("flight", payload.path))
        contenders[FLIGHT] = lambda: _landed(payload, folder, lambda file: _from_flight(flight, file.write))
        contenders[FLIGHT_SAME] = lambda: _landed(
            payload, folder, lambda file: _same_way(payload, file, lambda take: _from_flight(flight, take))
        )
    if importlib.util.find_spec("tensorizer") is None or shutil.which("curl") is None:
        report.missing.append("tensorizer, or the curl command that it needs, is not installed")
    else:
        contenders[TENSORIZER] = stack.enter_context(_tensorizer(payload, folder))
    return contenders


def _from_http(port: int, name: str, file: BinaryIO) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}") as response:
        shutil.copyfileobj(response, file, CHUNK_BYTES)


def _from_flight(port: int, take: Take) -> None:
    from pyarrow import flight  # noqa: PLC0415  optional

    with flight.connect(f"grpc://127.0.0.1:{port}") as client:
        for chunk in client.do_get(flight.Ticket(b"")):
            take(chunk.data.column(0).buffers()[1])


@contextmanager
def _tensorizer(payload: Payload, folder: Path) -> Iterator[Contender]:
    from tensorizer import TensorDeserializer, TensorSerializer, stream_io  # noqa: PLC0415  optional

    path = folder / "payload.tensors"
    serializer = TensorSerializer(str(path))
    serializer.write_state_dict(payload.tensors)
    serializer.close()
    with peer("http", path) as port:

        def load() -> float:
            url = f"http://127.0.0.1:{port}/{path.name}"
            loaded: dict[str, torch.Tensor] = {}

            def work() -> None:
                with TensorDeserializer(stream_io.open_stream(url), device="cpu") as source:
                    loaded.update(source.items())

            taken = seconds(work)
            payload.check_tensors({name: tensor.data for name, tensor in loaded.items()})
            return taken

        yield load
    path.unlink()
