"""Pairs of the same model, built remotely and in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from model_factory import RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES, Case
from support.server import ServerProcess

PAIR_SEED = 7

MakePair = Callable[[Case | str], tuple[nn.Module, nn.Module]]


@pytest.fixture(scope="session")
def pair_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs") / "cache"


@pytest.fixture
def make_pair(server: ServerProcess, pair_cache: Path) -> Iterator[MakePair]:
    """Build a small model twice, both fresh: from the server and in this process."""
    remote = RemoteModelFactory(server.address, seed=PAIR_SEED, cache_dir=pair_cache)
    local = PolicyConstructorModelFactory(seed=PAIR_SEED)

    def make(case: Case | str) -> tuple[nn.Module, nn.Module]:
        case = CASES[case] if isinstance(case, str) else case
        pair = [factory.build({case.name: case.config}) for factory in (remote, local)]
        return pair[0][case.name], pair[1][case.name]

    yield make
    remote.close()
