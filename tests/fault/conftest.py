"""Seeds for what is random here: printed, so that a failure can be had again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from support.load.ranks import Ranks
from support.proxy import Proxy
from support.server import ServerProcess


@pytest.fixture
def chance() -> random.Random:
    """Randomness of this test; ``FAULT_SEED`` repeats a run."""
    seed = int(os.environ.get("FAULT_SEED") or random.randrange(1 << 32))
    print(f"FAULT_SEED={seed}")  # noqa: T201  shown by pytest when the test fails
    return random.Random(seed)


@pytest.fixture
def make_proxy() -> Iterator[type[Proxy]]:
    """Put proxies in front of servers."""
    made: list[Proxy] = []

    def make(server: ServerProcess) -> Proxy:
        made.append(Proxy(server.address))
        return made[-1]

    yield make  # type: ignore[misc]
    for proxy in made:
        proxy.close()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Starts client processes, to be killed."""
    made = Ranks(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()
