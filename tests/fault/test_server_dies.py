"""Servers that die in the middle of something: a clear error, no half file, and a way on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from torch import nn

from model_factory import (
    BuildError,
    CallSignatureError,
    RemoteModelFactory,
    ServerError,
    UnavailableError,
)
from model_factory.client import retry
from model_factory.client.connection import RETRY_ATTEMPTS, Connection
from model_factory.digest import digest_of_file
from model_factory.v1 import build_pb2
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state
from support.hostile_server import HostileServer
from support.proxy import Proxy
from support.server import ServerProcess, descendants, wait_gone

pytestmark = pytest.mark.usefixtures("less_patience")

MIB = 1024 * 1024
WIDTH = 2100
LARGE = {
    "schema_version": 1,
    "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH}] * 2}},
}
LARGE_BYTES = 2 * WIDTH * WIDTH * 4
SMALL = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "mlp", "dims": [9, 9, 2]}]}}}


class Line:
    """One store, and one server on it after the other: what a test leaves dead, the next one replaces."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._last: ServerProcess | None = None

    def living(self) -> ServerProcess:
        """The server that runs, or a new one."""
        if self._last is None or not self._last.alive:
            self._last = ServerProcess(self.store)
        return self._last

    def end(self) -> None:
        """Have none run; the last one ends cleanly if it does."""
        if self._last is not None and self._last.alive:
            assert self._last.stop() == 0


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    made = Line(tmp_path_factory.mktemp("line") / "store")
    yield made
    made.end()


def eventually(build: Callable[[], Any], seconds: float = 5.0) -> Any:
    """What a trainer's own retry would do; gives up after some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return build()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise


def files(root: Path, folder: str) -> list[Path]:
    return [path for path in (root / folder).rglob("*") if path.is_file()]


def check_no_half_files(root: Path) -> None:
    """What counts as a blob is one, and nothing is left over."""
    for path in files(root, "blobs"):
        assert digest_of_file(path) == path.name, path
    assert files(root, "staging") == []


@pytest.fixture(scope="module")
def expected() -> nn.Module:
    return PolicyConstructorModelFactory(seed=7).build({"config": LARGE})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def in_background() -> Any:
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def wait_for_worker(server: ServerProcess, build: Future[Any]) -> int:
    while True:
        workers = server.workers()
        if workers:
            return workers.pop()
        assert not build.done(), build.result()


@pytest.mark.slow
def test_killed_during_a_build(line: Line, cache: Path, in_background: Any, expected: nn.Module) -> None:
    server = line.living()
    small = RemoteModelFactory(server.address, seed=7, cache_dir=cache.with_name("small")).build({"config": SMALL})
    factory = RemoteModelFactory(server.address, seed=7, cache_dir=cache)
    build = in_background(factory.build, {"config": LARGE})
    wait_for_worker(server, build)
    below = descendants(server.pid)
    server.kill()
    with pytest.raises(UnavailableError, match=server.address):
        build.result(60)
    with pytest.raises(CallSignatureError, match="Remedy"):  # a form of call that the server would have to record
        small.graph_modules["layer0"](torch.zeros(1, 2, 2, 9))
    assert wait_gone(below), "the dead server's processes live on"
    assert files(cache, "blobs") == []
    again = line.living()
    assert_same_state(RemoteModelFactory(again.address, seed=7, cache_dir=cache).build({"config": LARGE}), expected)
    check_no_half_files(line.store)
    check_no_half_files(cache)


@pytest.mark.slow
def test_a_build_that_was_cut_off_is_asked_for_again(
    line: Line,
    make_proxy: Callable[[ServerProcess], Proxy],
    cache: Path,
    in_background: Any,
    expected: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once there is a server at the same address again."""
    monkeypatch.setattr(retry, "RESUME_SECONDS", 60.0)
    server = line.living()
    shutil.rmtree(line.store)  # there was a build of it
    line.end()
    server = line.living()
    proxy = make_proxy(server)
    build = in_background(RemoteModelFactory(proxy.address, seed=7, cache_dir=cache).build, {"config": LARGE})
    wait_for_worker(server, build)
    server.kill()
    proxy.target = line.living().address
    assert_same_state(build.result(120), expected)
    check_no_half_files(cache)


def test_a_build_that_ends_servers_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few of them."""
    monkeypatch.setattr(retry, "RESUME_SECONDS", 60.0)
    asked = []

    class Ends(HostileServer):
        def BuildModels(self, request: Any, context: Any) -> Any:  # noqa: N802
            asked.append(request)
            yield build_pb2.BuildModelsResponse(progress=build_pb2.BuildProgress(component="model"))
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    server = Ends(b"", b"", b"", {})
    try:
        with pytest.raises(UnavailableError, match="gone"):
            RemoteModelFactory(server.address, seed=7, cache_dir=cache).build({"config": SMALL})
    finally:
        server.close()
    assert len(asked) == RETRY_ATTEMPTS


def test_a_worker_process_that_dies(line: Line, cache: Path, in_background: Any) -> None:
    """As the kernel kills it when memory is short; the server lives on and builds."""
    server = line.living()
    factory = RemoteModelFactory(server.address, seed=8, cache_dir=cache)
    build = in_background(factory.build, {"config": LARGE})
    os.kill(wait_for_worker(server, build), signal.SIGKILL)
    with pytest.raises(BuildError, match="worker process"):
        build.result(60)
    assert_same_state(factory.build({"config": LARGE}), PolicyConstructorModelFactory(seed=8).build({"config": LARGE}))
    check_no_half_files(line.store)


@pytest.mark.slow
def test_killed_during_a_download(
    line: Line,
    make_proxy: Callable[[ServerProcess], Proxy],
    cache: Path,
    in_background: Any,
    chance: random.Random,
    expected: nn.Module,
) -> None:
    server = line.living()
    proxy = make_proxy(server)
    factory = RemoteModelFactory(proxy.address, seed=7, cache_dir=cache)
    proxy.hold_after(chance.randrange(2 * MIB, LARGE_BYTES - 2 * MIB))
    build = in_background(factory.build, {"config": LARGE})
    assert proxy.held.wait(60)
    server.kill()
    proxy.release()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        build.result(120)
    assert [path for path in files(cache, "blobs") if path.stat().st_size > MIB] == []
    check_no_half_files(cache)

    proxy.target = line.living().address
    assert_same_state(eventually(lambda: factory.build({"config": LARGE})), expected)
    check_no_half_files(cache)


def test_restarted_during_a_download_which_goes_on_where_it_was(
    line: Line,
    make_proxy: Callable[[ServerProcess], Proxy],
    cache: Path,
    in_background: Any,
    chance: random.Random,
    expected: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = line.living()
    proxy = make_proxy(server)
    factory = RemoteModelFactory(proxy.address, seed=7, cache_dir=cache)
    asked: list[tuple[int, int]] = []
    delivered = 0
    read_blob = Connection.read_blob

    def counting(connection: Connection, request: Any) -> Any:
        nonlocal delivered
        asked.append((request.offset_bytes, delivered))
        for data in read_blob(connection, request):
            delivered += len(data)
            yield data

    monkeypatch.setattr(Connection, "read_blob", counting)
    monkeypatch.setattr(retry, "RESUME_SECONDS", 60.0)  # a server takes its time to start on a busy machine
    arrived = chance.randrange(LARGE_BYTES // 2, LARGE_BYTES - 4 * MIB)
    proxy.hold_after(arrived)
    build = in_background(factory.build, {"config": LARGE})
    assert proxy.held.wait(60)
    server.kill()
    proxy.target = line.living().address
    before = proxy.received
    proxy.release()
    proxy.cut()
    assert_same_state(build.result(120), expected)
    # Whole chunks that the trainer has are not sent again: of what it has, at most a part of one chunk.
    assert len(asked) > 1
    assert all(offset == before for offset, before in asked)
    assert delivered < LARGE_BYTES + MIB
    # Some of what had arrived at the proxy was still on its way to the trainer.
    assert proxy.received - before < LARGE_BYTES - arrived + 8 * MIB, "the download began anew"
    check_no_half_files(cache)


def test_a_connection_that_breaks_again_and_again(
    line: Line,
    make_proxy: Callable[[ServerProcess], Proxy],
    cache: Path,
    in_background: Any,
    chance: random.Random,
    expected: nn.Module,
) -> None:
    server = line.living()
    proxy = make_proxy(server)
    factory = RemoteModelFactory(proxy.address, seed=7, cache_dir=cache)
    RemoteModelFactory(server.address, seed=7, cache_dir=cache.with_name("warm")).build({"config": LARGE})
    breaks = 4
    proxy.hold_after(chance.randrange(MIB, 6 * MIB))
    build = in_background(factory.build, {"config": LARGE})
    for _ in range(breaks):
        assert proxy.held.wait(60)
        proxy.cut()
        proxy.hold_after(chance.randrange(3 * MIB, 6 * MIB))
    proxy.release()
    assert_same_state(build.result(120), expected)
    assert proxy.received < 2 * LARGE_BYTES
    check_no_half_files(cache)


def test_no_answer_in_time(line: Line, cache: Path) -> None:
    """A server that is stopped in its tracks, as by a debugger or a stuck disk."""
    server = line.living()
    factory = RemoteModelFactory(server.address, seed=7, cache_dir=cache, timeout=1.5)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError, match=r"in time|cannot be reached"):
            factory.build({"config": LARGE})
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_damaged_store_heals(line: Line, cache: Path) -> None:
    """Blobs and records that something wrote to are set aside, and what they held is built again."""
    server, config = line.living(), {"config": SMALL}
    for path in [*files(line.store, "blobs"), *files(line.store, "records")]:
        path.unlink()
    expected = RemoteModelFactory(server.address, seed=7, cache_dir=cache.with_name("warm")).build(config)
    assert_same_state(expected, PolicyConstructorModelFactory(seed=7).build(config))
    blobs = sorted(files(line.store, "blobs"), key=lambda path: path.stat().st_size, reverse=True)
    records = files(line.store, "records")
    assert len(blobs) >= 3
    assert records
    harms = [(path, path.read_bytes()[:100]) for path in blobs] + [(path, b"") for path in blobs]
    harms += [(path, data) for path in records for data in (b"", b"{", b'{"weights": 3}', b"[]", b"\x00" * 50)]
    for number, (victim, data) in enumerate(harms):
        victim.write_bytes(data)
        factory = RemoteModelFactory(server.address, seed=7, cache_dir=cache.with_name(f"cache{number}"))
        assert_same_state(factory.build(config), expected)
        factory.close()
        check_no_half_files(cache.with_name(f"cache{number}"))
        shutil.rmtree(cache.with_name(f"cache{number}"))
    check_no_half_files(line.store)


def test_a_store_that_vanished(line: Line, cache: Path, expected: nn.Module) -> None:
    """Blobs removed under a running server, by someone who needed the space, are built again."""
    server = line.living()
    factory = RemoteModelFactory(server.address, seed=7, cache_dir=cache)
    factory.build({"config": LARGE})
    for path in files(line.store, "blobs"):
        path.unlink()
    other = RemoteModelFactory(server.address, seed=7, cache_dir=cache.with_name("other"))
    assert_same_state(other.build({"config": LARGE}), expected)


def test_many_clients_and_a_server_that_is_told_to_stop(line: Line, tmp_path: Path, in_background: Any) -> None:
    server = line.living()
    begun = threading.Barrier(4)

    def build(index: int) -> Exception | None:
        factory = RemoteModelFactory(server.address, seed=100 + index, cache_dir=tmp_path / f"cache{index}")
        begun.wait()
        try:
            factory.build({"config": LARGE})
        except ServerError as error:
            return error
        return None

    clients = [in_background(build, index) for index in range(3)]
    begun.wait()
    assert server.stop() == 0
    for index, client in enumerate(clients):
        error = client.result(60)
        assert error is None or isinstance(error, UnavailableError), repr(error)
        if (tmp_path / f"cache{index}").exists():
            check_no_half_files(tmp_path / f"cache{index}")
