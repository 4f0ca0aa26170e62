"""Clients that hold connections instead of using them: half open, silent, slow, flooding."""

from __future__ import annotations

import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attacks.test_builds_out_of_bounds import gone, in_progress, wait_for
from model_factory import BusyError, IntegrityError, RemoteModelFactory, ServerError
from model_factory.client import connection, fetch, retry
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2, build_pb2, service_pb2_grpc, wire
from support.configs import layers
from support.proxy import Proxy
from support.server import ServerProcess, running_server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, PING, GOAWAY = 1, 4, 6, 7
END_STREAM, END_HEADERS = 1, 4
MAX_CONCURRENT_STREAMS = 3


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def healthy(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def until(what: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def open_files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def test_a_flood_of_pings(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    """Cut off with GOAWAY, too many pings, after a handful."""
    with connect(guarded.address) as client:
        client.sendall(PREFACE + frame(SETTINGS))
        received = b""
        with pytest.raises((ConnectionError, TimeoutError, StopIteration)):  # noqa: PT012  whichever end is first
            for _ in range(2000):
                client.sendall(frame(PING, b"12345678") * 10)
                client.settimeout(0.02)
                try:
                    data = client.recv(65536)
                except TimeoutError:
                    continue
                received += data
                if not data or b"too_many_pings" in received:
                    raise StopIteration
    assert b"too_many_pings" in received or received == b""
    assert healthy(guarded.address)


def test_connections_that_say_nothing(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    """Two hundred that never finish their greeting, some half way through it: others are served meanwhile."""
    before = open_files(guarded.pid)
    clients = [connect(guarded.address) for _ in range(200)]
    try:
        for index, client in enumerate(clients):
            client.sendall((PREFACE + frame(SETTINGS))[: index % 40])
        assert healthy(guarded.address)
        assert attacked.blocks()
    finally:
        for client in clients:
            client.close()
    assert until(lambda: open_files(guarded.pid) < before + 20, 10.0)


def test_a_greeting_that_never_ends(guarded: ServerProcess) -> None:
    """Is not waited for longer than an answer to a ping is."""
    with connect(guarded.address) as client:
        client.sendall(PREFACE[:7])
        started = time.monotonic()
        while client.recv(65536):
            pass
        assert 1.0 < time.monotonic() - started < 10.0


def test_connections_have_a_bound(make_remote: Callable[..., RemoteModelFactory], tmp_path: Path) -> None:
    """One too many is closed at once, those that are open go on, and when one goes there is room again."""
    few = ("--max-connections", "3", "--metrics-listen", "127.0.0.1:0", "--log-level", "info")

    def greets(client: socket.socket) -> bool:
        client.sendall(PREFACE + frame(SETTINGS))
        return client.recv(9) != b""

    with running_server(tmp_path / "store", *few) as server:
        factory = make_remote(server.address, timeout=20)
        assert factory.blocks()  # over the first
        others = [connect(server.address) for _ in range(2)]
        try:
            assert all(greets(client) for client in others)
            assert "model_factory_connections 3.0" in server.metrics_page()
            assert "model_factory_max_connections 3.0" in server.metrics_page()
            for _ in range(50):
                with connect(server.address) as client, suppress(ConnectionError):
                    assert not greets(client), "a connection beyond the bound is served"
            assert factory.blocks()
        finally:
            for client in others:
                client.close()
        assert until(lambda: "model_factory_connections 1.0" in server.metrics_page(), 5.0)
        assert healthy(server.address)


@pytest.mark.slow
def test_the_server_may_open_as_many_files_as_its_bounds_need(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # what a server starts with
    try:
        with running_server(tmp_path / "few", "--max-connections", "1000") as server:
            allowed, _ = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            assert "limit of open files" not in server.log
        with running_server(tmp_path / "many", "--max-connections", str(hard)) as server:
            most, _ = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            assert f"this process may open {hard} files; --max-connections" in server.log
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 1000 + 512 < allowed < 2000
    assert most == hard


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE + b"\xff" * 9000,
        PREFACE + frame(SETTINGS) + frame(1, b"\xff" * 100, 4, 1),
        PREFACE + frame(SETTINGS) + struct.pack(">I", 0xFFFFFF)[1:] + b"\x00\x00" + struct.pack(">I", 1),
    ],
    ids=["zeros", "HTTP/1.1", "bad frames", "bad headers", "huge frame"],
)
def test_noise_instead_of_a_protocol(noise: bytes, guarded: ServerProcess) -> None:
    with connect(guarded.address) as client:
        client.sendall(noise)
        client.settimeout(5)
        try:
            while client.recv(65536):
                pass
        except (TimeoutError, ConnectionError):
            pass
    assert healthy(guarded.address)


def test_a_client_that_vanishes(attacked: RemoteModelFactory, guarded: ServerProcess, tmp_path: Path) -> None:
    """Without a word, as when its machine loses power: pings notice, and its build ends."""
    notes = tmp_path / "begun"
    proxy = Proxy(guarded.address)
    try:
        call = in_progress(proxy.address, layers({"_type_": "hostile.Sleeps", "notes": str(notes)}))
        (worker,) = wait_for(notes)
        proxy.freeze()
        assert gone([worker], 15.0), "the build goes on for nobody"
        call.cancel()
    finally:
        proxy.close()


def test_readers_that_do_not_read(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    """A stream that takes nothing is cut off; its file is closed, and its place is free again."""
    wide = layers({"_type_": "nn.Linear", "in_features": 250, "out_features": 1000})
    attacked.build({"config": wide})
    largest = max((guarded.store / "blobs").rglob("*/*"), key=lambda path: path.stat().st_size)
    request = blob_pb2.ReadBlobRequest(digest=blob_pb2.Digest(blake3=largest.name, size_bytes=largest.stat().st_size))
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
    channels = [
        grpc.insecure_channel(guarded.address, [*options, ("grpc.use_local_subchannel_pool", 1)]) for _ in "1234"
    ]
    streams: list[Any] = []

    def reading() -> int:
        files = (path for path in Path(f"/proc/{guarded.pid}/fd").iterdir())
        return sum(1 for path in files if path.exists() and path.resolve() == largest)

    try:
        for channel in channels:
            streams += [service_pb2_grpc.ModelFactoryServiceStub(channel).ReadBlob(request) for _ in "1"]
        assert until(lambda: reading() == len(streams), 5.0), "nothing to show: all was sent at once"
        assert healthy(guarded.address)
        assert until(lambda: reading() == 0, 20.0), "streams to nobody are kept"
    finally:
        for channel in channels:
            channel.close()
    assert attacked.blocks()


def test_answers_that_nobody_takes(make_remote: Callable[..., RemoteModelFactory], tmp_path: Path) -> None:
    """They count among the calls in progress until they are sent; who takes nothing is cut off, and nothing is kept."""
    config = layers(*[{"_type_": "nn.Linear", "in_features": 2, "out_features": 2}] * 3000)
    components = [build_pb2.Component(name=f"m{index}", config_json=json.dumps(config).encode()) for index in range(3)]
    request = build_pb2.DescribeModelsRequest(components=components)  # for an answer of some MiB
    few = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    with running_server(tmp_path / "store", "--max-rpcs", "4", "--stall-timeout", "2") as server:
        factory = make_remote(server.address)
        channels = [grpc.insecure_channel(server.address, options=few) for _ in range(4)]

        def is_full() -> bool:
            try:
                factory.blocks()
            except BusyError as error:
                assert "RPCs are in progress" in str(error)  # noqa: PT017  at any of many tries
                return True
            return False

        try:
            calls = [
                channel.unary_stream(
                    "/model_factory.v1.ModelFactoryService/DescribeModels",
                    request_serializer=build_pb2.DescribeModelsRequest.SerializeToString,
                )(request)
                for channel in channels
            ]
            assert until(lambda: server.log.count("DescribeModels OK") == 4, 30.0)  # all have their answers
            assert is_full(), "an answer on its way counts for nothing"
            assert healthy(server.address)
            assert until(lambda: not any(call.is_active() for call in calls), 20.0), "answers to nobody are kept"
            assert not is_full()
        finally:
            for channel in channels:
                channel.close()
        assert server.log.count("has received nothing for 2 seconds") == 4
        assert "ExecuteBatchError" not in server.log


def test_streams_of_one_connection_have_a_bound(guarded: ServerProcess) -> None:
    """Each may hold a request that never ends, which is counted among the calls only when it is whole."""
    with connect(guarded.address) as client:
        client.sendall(PREFACE + frame(SETTINGS))
        head = client.recv(9, socket.MSG_WAITALL)
        length, kind = int.from_bytes(head[:3], "big"), head[3]
        payload = client.recv(length, socket.MSG_WAITALL)
    assert kind == SETTINGS
    settings = dict(struct.unpack_from(">HI", payload, start) for start in range(0, length, 6))
    assert settings[MAX_CONCURRENT_STREAMS] == 128 + 32


def test_a_request_without_a_token_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    """Nobody holds what an unknown client uploads."""
    (tmp_path / "tokens").touch()

    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    head = {b":method": b"POST", b":scheme": b"http", b":path": b"/model_factory.v1.ModelFactoryService/BuildModels",
            b":authority": b"localhost", b"te": b"trailers", b"content-type": b"application/grpc"}  # fmt: skip
    begin = frame(HEADERS, b"".join(literal(*entry) for entry in head.items()), END_HEADERS, stream=1)
    with (
        running_server(tmp_path / "store", "--tokens", str(tmp_path / "tokens")) as server,
        connect(server.address) as client,
    ):
        client.sendall(PREFACE + frame(SETTINGS) + begin)  # and not a byte of the request
        ended = False
        while not ended:
            start = client.recv(9, socket.MSG_WAITALL)
            assert len(start) == 9, "the connection was closed"
            client.recv(int.from_bytes(start[:3], "big"), socket.MSG_WAITALL)
            ended = start[3] == HEADERS and bool(start[4] & END_STREAM)
        assert until(lambda: "BuildModels UNAUTHENTICATED" in server.log, 5.0)


def test_idle_connections_stay_usable(
    guarded: ServerProcess, make_remote: Callable[..., RemoteModelFactory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings of both sides go through: no strike for the client's, and the same connection afterwards."""
    fast = {"grpc.keepalive_time_ms": 600}
    monkeypatch.setattr(connection, "_OPTIONS", [*(dict(connection._OPTIONS) | fast).items()])
    proxy = Proxy(guarded.address)
    try:
        factory = make_remote(proxy.address)
        factory.blocks()
        opened, received = proxy.connections, proxy.received
        time.sleep(3)
        assert proxy.received > received, "no pings: nothing between would know the connection is alive"
        factory.blocks()
        assert proxy.connections == opened
    finally:
        proxy.close()


def test_a_connection_that_something_between_forgot(
    guarded: ServerProcess, make_remote: Callable[..., RemoteModelFactory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As load balancers do after idle hours: noticed by pings, and the next call has a new one."""
    fast = {"grpc.keepalive_time_ms": 600, "grpc.keepalive_timeout_ms": 1000, "grpc.http2.ping_timeout_ms": 1000}
    monkeypatch.setattr(connection, "_OPTIONS", [*(dict(connection._OPTIONS) | fast).items()])
    proxy = Proxy(guarded.address)
    try:
        factory = make_remote(proxy.address, timeout=30)
        factory.blocks()
        opened = proxy.connections
        proxy.freeze()  # what is open now; new connections pass
        started = time.monotonic()
        factory.blocks()
        assert time.monotonic() - started < 15
        assert proxy.connections > opened
    finally:
        proxy.close()


def test_a_server_that_lies_in_its_stream(tmp_path: Path) -> None:
    """Endless, too long, too short, other bytes, or not a message: an error, and nothing in the cache."""
    data = b"d" * 300_000
    blob = Blob.of(data)
    sent = threading.Event()
    answers: dict[str, Any] = {
        "endless": lambda: iter(lambda: wire.chunk_prefix(65536) + b"e" * 65536, None),
        "too long": lambda: iter([wire.chunk_prefix(len(data)) + data, wire.chunk_prefix(1) + b"!"]),
        "other bytes": lambda: iter([wire.chunk_prefix(len(data)) + b"x" * len(data)]),
        "not a message": lambda: iter([b"\x12\x03abc"]),
        "lying length": lambda: iter([b"\x0a\xff\xff\xff\x7f" + b"abc"]),
        "ended at once": lambda: iter([]),
        "nothing, often": lambda: iter(lambda: b"", None),
        "nothing, for ever": lambda: (time.sleep(3) for _ in "1"),
    }
    behaviour: list[Any] = []

    def read_blob(_request: Any, _context: Any) -> Any:
        sent.set()
        return behaviour[0]()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    service, _, method = wire.READ_BLOB.lstrip("/").partition("/")
    handler = grpc.unary_stream_rpc_method_handler(read_blob)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retry, "RESUME_SECONDS", 0.3)
            patch.setattr(connection, "STALL_SECONDS", 0.3)
            for name, answer in answers.items():
                behaviour[:] = [answer]
                store = Store(tmp_path / name)
                link = connection.Connection(f"127.0.0.1:{port}", timeout=20)
                with pytest.raises((IntegrityError, ServerError)):
                    fetch.fetch_blob(link, store, blob, lambda _count: None)
                link.close()
                assert not list((store.root / "staging").iterdir()), name
                assert not list((store.root / "blobs").rglob("*/*")), name
    finally:
        server.stop(None)
    assert sent.is_set()
