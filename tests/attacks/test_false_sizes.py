"""A server that claims sizes: nothing leaves the node cache, and no disk is reserved, for bytes that never arrive."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from model_factory import IntegrityError, ModelFactoryError, RemoteModelFactory
from model_factory.client import fetch
from model_factory.client.connection import Connection
from model_factory.client.fetch import fetch_blob
from model_factory.describe.describe import describe
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor, encode_programs
from model_factory.store import Blob, Store
from model_factory.v1 import blob_pb2
from support.configs import layers
from support.hostile_server import HostileServer
from support.mounts import NAMESPACE

MIB = 1 << 20
IDENTITY = layers({"_type_": "nn.Identity"})

Send = Callable[[Any, int], Iterator[bytes]]
"""Sends the bytes of a blob, given the request and the size in the request."""


def nothing(_request: Any, _size: int) -> Iterator[bytes]:
    yield from ()


def a_part(request: Any, _size: int) -> Iterator[bytes]:
    if not request.offset_bytes:
        yield os.urandom(1000)


def other_bytes(_request: Any, size: int) -> Iterator[bytes]:
    for start in range(0, size, MIB):
        yield bytes(min(MIB, size - start))


class ClaimingServer(HostileServer):
    """Describes a large model truly, claims weights of the right size, and sends something else."""

    def __init__(self, model: nn.Module, send: Send) -> None:
        super().__init__(encode_descriptor(describe(model)), b"", encode_programs(()), {})
        self._send = send
        self._claimed = Architecture(decode_descriptor(self.descriptor)).bytes + 1000

    def BuildModels(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for answer in super().BuildModels(request, context):
            for item in answer.manifest.components:
                item.weights.size_bytes = self._claimed
                item.weights.blake3 = "ab" * 32
            yield answer

    def ReadBlob(self, request: Any, context: Any) -> Iterator[blob_pb2.ReadBlobResponse]:  # noqa: N802
        if request.digest.blake3 != "ab" * 32:
            yield from super().ReadBlob(request, context)
            return
        for data in self._send(request, request.digest.size_bytes):
            yield blob_pb2.ReadBlobResponse(data=data)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[nn.Module, Send], ClaimingServer]]:
    monkeypatch.setattr("model_factory.client.retry.RESUME_SECONDS", 0.3)
    started: list[ClaimingServer] = []

    def serve(model: nn.Module, send: Send) -> ClaimingServer:
        started.append(ClaimingServer(model, send))
        return started[-1]

    yield serve
    for server in started:
        server.close()


@pytest.mark.parametrize("send", [nothing, a_part, other_bytes], ids=lambda send: send.__name__)
@pytest.mark.parametrize("components", [1, 5])
def test_weights_of_a_size_within_the_bound_make_nothing_go(
    send: Send, components: int, start: Callable[[nn.Module, Send], ClaimingServer], tmp_path: Path
) -> None:
    model = nn.Linear(1 << 10, 1 << 10, device="meta")
    server = start(model, send)
    bound = 5 * MIB  # the claimed weights fit after the eviction of everything else
    cache = Store(tmp_path, bound)
    kept = [cache.put(os.urandom(MIB // 2)) for _ in range(6)]
    factory = RemoteModelFactory(server.address, cache_dir=tmp_path, cache_bytes=bound)
    with pytest.raises(ModelFactoryError):
        factory.build({f"component{number}": IDENTITY for number in range(components)})
    factory.close()
    assert all(cache.find(blob) for blob in kept)
    assert not list((tmp_path / "staging").iterdir())


def test_a_stream_that_never_ends_makes_nothing_go_and_keeps_no_honest_server_waiting(
    start: Callable[[nn.Module, Send], ClaimingServer], tmp_path: Path
) -> None:
    ended, begun = threading.Event(), threading.Event()
    data = os.urandom(MIB)
    blob = Blob("ab" * 32, 4 * MIB)

    def drip(_request: Any, _size: int) -> Iterator[bytes]:
        begun.set()
        while not ended.wait(0.05):
            yield b"x"

    slow, honest = start(nn.Linear(2, 2), drip), start(nn.Linear(2, 2), lambda _request, _size: iter([data]))
    cache = Store(tmp_path, 5 * MIB)
    kept = [cache.put(os.urandom(MIB // 2)) for _ in range(6)]

    def wait() -> None:
        with pytest.raises(ModelFactoryError):
            fetch_blob(Connection(slow.address), cache, blob)

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        assert begun.wait(10)
        with pytest.raises(IntegrityError):  # not the blob of this digest; the point is that the answer comes
            fetch_blob(Connection(honest.address), cache, Blob(blob.digest, MIB))
        assert all(cache.find(item) for item in kept)
        assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "staging").iterdir()) < MIB
    finally:
        ended.set()
        waiting.join()


def test_the_bound_holds_after_concurrent_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {Blob.of(data): data for data in (os.urandom(MIB) for _ in range(6))}
    together = threading.Barrier(len(contents))

    def read_blob(_connection: Connection, request: blob_pb2.ReadBlobRequest) -> Iterator[memoryview]:
        together.wait(30)
        yield memoryview(contents[Blob(request.digest.blake3, request.digest.size_bytes)])

    monkeypatch.setattr(Connection, "read_blob", read_blob)
    bound = 2 * MIB

    def download(blob: Blob) -> None:
        fetch.fetch_blob(Connection("127.0.0.1:1"), Store(tmp_path, bound), blob).close()

    threads = [threading.Thread(target=download, args=(blob,)) for blob in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Store(tmp_path, bound).keep_bound()
    assert 0 < sum(entry.size for entry in Store(tmp_path).entries()) <= bound


FULL_DISK = """
import os, sys
from pathlib import Path
from model_factory import IntegrityError
from model_factory.client.connection import Connection
from model_factory.client.fetch import fetch_blob
from model_factory.store import Blob, Store

disk = Path(sys.argv[1])
cache = Store(disk / "cache", 1 << 30)
old = [cache.put(os.urandom(200 << 10)) for _ in range(8)]  # of a disk of 2 MiB
new = os.urandom(1 << 20)
sent = []
Connection.read_blob = lambda _connection, _request: iter([memoryview(data) for data in sent])
from model_factory.client import retry
retry.RESUME_SECONDS = 0.1
try:
    fetch_blob(Connection("127.0.0.1:1"), cache, Blob.of(new))
except Exception as error:
    print(type(error).__name__)
print(sum(cache.find(blob) is not None for blob in old))
sent[:] = [new[start:start + (64 << 10)] for start in range(0, len(new), 64 << 10)]
with fetch_blob(Connection("127.0.0.1:1"), cache, Blob.of(new)) as file:
    print(file.read() == new)
print(sum(cache.find(blob) is not None for blob in old))
"""


def test_on_a_full_disk_only_bytes_that_arrive_make_others_go(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=2m none {tmp_path}"
    inside = [*NAMESPACE, "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may mount nothing")
    command = f'{mount} && exec "{sys.executable}" -c "$0" {tmp_path}'
    done = subprocess.run([*inside, command, FULL_DISK], capture_output=True, text=True, check=False, timeout=100)
    said = done.stdout.split()
    assert said[:3] == ["UnavailableError", "8", "True"], done.stderr
    assert 2 <= int(said[3]) <= 5
