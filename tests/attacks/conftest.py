"""A server with tight bounds and blocks that misbehave, and canaries that must be seen nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from model_factory import RemoteModelFactory
from support.configs import layers
from support.guarded import BOUNDS, CANARY, PLUGINS
from support.server import ServerProcess, running_server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
        patch.setenv("CANARY_SECRET", CANARY)
        patch.setenv("ALLOWED_VARIABLE", "seen")
        arguments = [item for pair in BOUNDS.items() for item in pair]
        arguments += ["--plugin", "hostile_blocks", "--allow-import", "allowed_blocks"]
        arguments += ["--worker-variable", "ALLOWED_VARIABLE", "--metrics-listen", "127.0.0.1:0"]
        with running_server(tmp_path_factory.mktemp("guarded") / "store", *arguments) as process:
            yield process


@pytest.fixture
def attacked(guarded: ServerProcess, make_remote: Callable[..., RemoteModelFactory]) -> Iterator[RemoteModelFactory]:
    """A client of it; afterwards the same server has no worker, no half file, and still builds."""
    factory = make_remote(guarded.address)
    yield factory
    model = factory.build({"config": layers({"_type_": "nn.PReLU"})})
    assert sum(item.numel() for item in model.parameters()) == 1
    assert guarded.alive
    assert guarded.workers() == set()
    assert not list((guarded.store / "staging").iterdir())
