"""Clients, holders of locks, workers and servers killed at random moments leave no wrong, partial or leaked file."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_factory import BuildError, RemoteModelFactory, UnavailableError
from model_factory.digest import digest_of, digest_of_file
from model_factory.store import Store
from model_factory.store.named_locks import read_holder
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state
from support.load.ranks import Rank, Ranks
from support.proxy import Proxy
from support.server import ServerProcess, descendants, wait_gone
from support.wire import build_manifest

Start = Callable[..., ServerProcess]

WIDTH = 2500
LAYER = {"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH}
LARGE = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [LAYER]}}}}

RANKS = 4
"""Processes of a node that want the same blob."""


def check_whole(root: Path) -> None:
    """Once somebody opens it: every blob is what its name says, nothing is staged and nothing is locked."""
    store = Store(root)
    for entry in store.entries():
        assert digest_of_file(entry.path) == entry.digest
        assert not entry.in_use
    for folder in ("staging", "locks", "scratch"):
        assert list((root / folder).iterdir()) == [], folder


def test_clients(server: ServerProcess, ranks: Ranks, tmp_path: Path, chance: random.Random) -> None:
    RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "warm").build(LARGE)
    for number in range(5):
        cache = tmp_path / f"cache{number}"
        client = ranks.start("build", address=server.address, cache=str(cache), seed=7, config=LARGE["config"])
        client.wait_for("begins")
        time.sleep(chance.uniform(0.0, 0.2))
        client.kill()
        check_whole(cache)
        factory = RemoteModelFactory(server.address, seed=7, cache_dir=cache)
        factory.build(LARGE)
        factory.close()
        check_whole(cache)


def test_lock_holders(
    server: ServerProcess, ranks: Ranks, make_proxy: Callable[..., Proxy], tmp_path: Path, chance: random.Random
) -> None:
    """Who transfers for its node is killed, and who takes over, too; the others have the blob, and nothing is left."""
    weights = build_manifest(server.address, LARGE, seed=7)["model"].weights
    proxy = make_proxy(server)
    wanted = {"digest": weights.blake3, "size": weights.size_bytes}
    lock = digest_of(f"{weights.blake3} from {proxy.address}".encode())  # processes of one server wait for each other
    for number in range(5):
        cache = tmp_path / f"cache{number}"
        sure = number < 2  # that the kills are amid the bytes; else they are when they are
        waiting: list[Rank] = []
        for _ in range(2):
            if sure:
                proxy.hold_after(chance.randrange(weights.size_bytes // 8, weights.size_bytes - (4 << 20)))
            if not waiting:  # once bytes are held back: a transfer takes a few hundredths of a second
                start = {"address": proxy.address, "cache": str(cache), **wanted}
                waiting = [ranks.start("fetch", **start) for _ in range(RANKS)]
            holder = wait_for_holder(cache / "locks" / lock, waiting)
            if sure:
                assert proxy.held.wait(60)
            else:
                time.sleep(chance.uniform(0.0, 0.15))
            if holder is not None:
                assert not sure or "has" not in holder.said
                holder.kill()
                waiting.remove(holder)
            if sure:
                assert list((cache / "blobs").rglob("*/*")) == [], "what is not whole has a blob's name"
        proxy.release()
        for rank in waiting:
            rank.wait_for(f"has {weights.blake3}", 30)
        check_whole(cache)
        assert [entry.digest for entry in Store(cache).entries()] == [weights.blake3]


def wait_for_holder(lock: Path, ranks: list[Rank]) -> Rank | None:
    """Of ranks that live, the one that holds a lock; None if they are done before one is seen."""
    by_pid = {rank.pid: rank for rank in ranks}
    while not all("has" in rank.said for rank in ranks):
        holder = read_holder(lock)
        if holder is not None and holder.pid in by_pid and by_pid[holder.pid].alive:
            return by_pid[holder.pid]
        time.sleep(0.002)
    return None


@pytest.mark.slow
@pytest.mark.usefixtures("less_patience")
def test_workers_and_the_server(start_server: Start, tmp_path: Path, chance: random.Random) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    server = start_server(store)
    with ThreadPoolExecutor(1) as pool:
        for number in range(5):
            factory = RemoteModelFactory(server.address, seed=number, cache_dir=cache)
            build = pool.submit(factory.build, LARGE)
            if number < 4:
                kill_a_worker(server, chance.uniform(0.0, 0.3), build.done)
            else:
                time.sleep(chance.uniform(0.0, 0.3))
                below = descendants(server.pid)
                server.kill()
            error = build.exception(60)
            assert error is None or isinstance(error, BuildError | UnavailableError), repr(error)
            del build
            factory.close()
    assert wait_gone(below), "the dead server's processes live on"
    check_whole(store)
    check_whole(cache)
    again = start_server(store)
    factory = RemoteModelFactory(again.address, seed=3, cache_dir=cache)
    assert_same_state(factory.build(LARGE), PolicyConstructorModelFactory(seed=3).build(LARGE))
    assert again.stop() == 0
    check_whole(store)


def kill_a_worker(server: ServerProcess, after: float, done: Callable[[], bool]) -> None:
    """Kill the worker process some seconds after its start, unless the worker has ended."""
    while not (workers := server.workers()) and not done():
        time.sleep(0.005)
    time.sleep(after)
    for worker in workers:
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            continue
