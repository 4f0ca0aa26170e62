"""Pairs of the same model, built remotely and in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from model_factory import RemoteModelFactory
from support.cases import CASES, Case
from support.folders import EXAMPLE_PLUGINS, TEST_PLUGINS
from support.server import ServerProcess, running_server

if TYPE_CHECKING:
    from model_factory_server import PolicyConstructorModelFactory

PAIR_SEED = 7
PLUGINS = {
    "policies": EXAMPLE_PLUGINS,
    "transformers_models": EXAMPLE_PLUGINS,
    "branching": TEST_PLUGINS,
}
"""Plug-in -> where it lies."""

MakePair = Callable[[Case | str], tuple[nn.Module, nn.Module]]


def in_process(**arguments: Any) -> PolicyConstructorModelFactory:
    """Return the in-process factory; the oldest client has no server package."""
    from model_factory_server import PolicyConstructorModelFactory  # noqa: PLC0415

    return PolicyConstructorModelFactory(seed=PAIR_SEED, **arguments)


@pytest.fixture(scope="session")
def pair_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs") / "cache"


@pytest.fixture
def make_pair(server: ServerProcess, pair_cache: Path) -> Iterator[MakePair]:
    """Build a small model twice, both fresh: from the server and in this process."""
    remote = RemoteModelFactory(server.address, seed=PAIR_SEED, cache_dir=pair_cache)
    local = in_process()

    def make(case: Case | str) -> tuple[nn.Module, nn.Module]:
        case = CASES[case] if isinstance(case, str) else case
        pair = [factory.build({case.name: case.config}) for factory in (remote, local)]
        return pair[0][case.name], pair[1][case.name]

    yield make
    remote.close()


@pytest.fixture(scope="session")
def plugin_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the plug-ins; the session's own has none, as most have."""
    arguments = [argument for name in PLUGINS for argument in ("--plugin", name)]
    with pytest.MonkeyPatch.context() as patch:
        for folder in dict.fromkeys(PLUGINS.values()):
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        with running_server(tmp_path_factory.mktemp("plugins") / "store", *arguments) as process:
            yield process


@pytest.fixture
def local_with_plugins(monkeypatch: pytest.MonkeyPatch) -> PolicyConstructorModelFactory:
    """The in-process factory with the plug-ins."""
    for folder in dict.fromkeys(PLUGINS.values()):
        monkeypatch.syspath_prepend(folder)
    return in_process(plugins=list(PLUGINS))
