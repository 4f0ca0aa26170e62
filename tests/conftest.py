"""One real server for the session, and an environment in which nothing of this machine's user is left."""

from __future__ import annotations

import os

# Before torch is imported anywhere: many small processes share few cores here.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_factory import RemoteModelFactory
from model_factory.client import retry
from support.server import ServerProcess, running_server

MakeRemote = Callable[..., RemoteModelFactory]
SEED = 7

_SCRUBBED = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy")


@pytest.fixture(scope="session", autouse=True)
def _scrubbed_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.lower() in _SCRUBBED or name.startswith(("MODEL_FACTORY_", "GRPC_")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home / "inductor"))
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The session's server. Tests that kill or fill a server start their own."""
    with running_server(tmp_path_factory.mktemp("server") / "store") as process:
        yield process


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers of a test's own; what still runs at its end is stopped."""
    started: list[ServerProcess] = []

    def start(store: Path | None = None, *arguments: str) -> ServerProcess:
        started.append(ServerProcess(store or tmp_path / "store", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def make_remote(server: ServerProcess, tmp_path: Path) -> Iterator[MakeRemote]:
    """Make remote factories that share the test's own cache."""
    made: list[RemoteModelFactory] = []

    def make(address: str | None = None, **arguments: Any) -> RemoteModelFactory:
        arguments = {"seed": SEED, "cache_dir": tmp_path / "cache"} | arguments
        made.append(RemoteModelFactory(address or server.address, **arguments))
        return made[-1]

    yield make
    for factory in made:
        factory.close()


@pytest.fixture
def less_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients in this process give up soon on a server that is gone."""
    monkeypatch.setattr(retry, "RESUME_SECONDS", 0.5)
