"""Clients, builders and servers killed at random moments leave no wrong, partial or leaked file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model_factory import BuildError, RemoteModelFactory, UnavailableError
from model_factory.digest import digest_of_file
from model_factory.store import Store
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same_state
from support.server import ServerProcess, descendants, wait_gone

Start = Callable[..., ServerProcess]

WIDTH = 2500
LAYER = {"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH}
LARGE = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [LAYER]}}}}

CLIENT = """
import sys
from model_factory import RemoteModelFactory
layer = {"_type_": "nn.Linear", "in_features": int(sys.argv[4]), "out_features": int(sys.argv[4])}
config = {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}}
factory = RemoteModelFactory(sys.argv[1], seed=7, cache_dir=sys.argv[2])
factory.describe(config)
print("ready", flush=True)
for index in range(100):
    RemoteModelFactory(sys.argv[1], seed=7, cache_dir=f"{sys.argv[3]}/{index}").build(config)
"""


def check_whole(root: Path) -> None:
    """Once somebody opens it: every blob is what its name says, nothing is staged and nothing is locked."""
    store = Store(root)
    for entry in store.entries():
        assert digest_of_file(entry.path) == entry.digest
        assert not entry.in_use
    for folder in ("staging", "locks", "scratch"):
        assert list((root / folder).iterdir()) == [], folder


def test_clients(server: ServerProcess, tmp_path: Path, chance: random.Random) -> None:
    RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "warm").build(LARGE)
    for number in range(2):
        caches = tmp_path / f"caches{number}"
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, server.address, tmp_path / "warm", caches, str(WIDTH)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with client:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.4))
            client.kill()
        for cache in caches.iterdir() if caches.exists() else ():
            check_whole(cache)
            RemoteModelFactory(server.address, seed=7, cache_dir=cache).build(LARGE)
            check_whole(cache)


def test_builders_and_the_server(start_server: Start, tmp_path: Path, chance: random.Random) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    server = start_server(store)
    with ThreadPoolExecutor(1) as pool:
        for number in range(5):
            factory = RemoteModelFactory(server.address, seed=number, cache_dir=cache)
            build = pool.submit(factory.build, LARGE)
            if number < 4:
                kill_a_builder(server, chance.uniform(0.0, 0.3), build.done)
            else:
                time.sleep(chance.uniform(0.0, 0.3))
                below = descendants(server.pid)
                server.kill()
            error = build.exception(60)
            assert error is None or isinstance(error, BuildError | UnavailableError), repr(error)
            del build
            factory.close()
    assert wait_gone(below), "the dead server's processes live on"
    assert list((store / "scratch").iterdir()), "the dead server's own folder is there until the store is used again"
    check_whole(store)
    check_whole(cache)
    again = start_server(store)
    factory = RemoteModelFactory(again.address, seed=3, cache_dir=cache)
    assert_same_state(factory.build(LARGE), PolicyConstructorModelFactory(seed=3).build(LARGE))
    assert again.stop() == 0
    check_whole(store)


def kill_a_builder(server: ServerProcess, after: float, done: Callable[[], bool]) -> None:
    """Kill the builder process some seconds after it appears, if it is still there."""
    while not (workers := server.workers()) and not done():
        time.sleep(0.005)
    time.sleep(after)
    for worker in workers:
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            continue
