"""Through a server: what a trainer changes is followed or recorded anew, and what is not read asks nobody."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same
from support.folders import TEST_PLUGINS
from support.server import ServerProcess

CONFIG = {
    "config": {
        "schema_version": 1,
        "model": {"sequential": {"inputs": ["batch"], "layers": [{"_type_": "conditions.Policy"}]}},
    }
}
RECORDED = 'grpc_server_handled_total{grpc_code="OK",grpc_method="RecordProgram"'


@pytest.fixture
def server(start_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch) -> ServerProcess:
    monkeypatch.setenv("PYTHONPATH", str(TEST_PLUGINS), prepend=os.pathsep)
    monkeypatch.syspath_prepend(TEST_PLUGINS)
    return start_server(None, "--plugin", "conditions", "--metrics-listen", "127.0.0.1:0", "--log-level", "info")


def recorded(server: ServerProcess) -> int:
    """How many programs the server has recorded for calls."""
    lines = [line for line in server.metrics_page().splitlines() if line.startswith(RECORDED)]
    return sum(round(float(line.rpartition(" ")[2])) for line in lines)


def test_rates_widths_texts_and_counters(server: ServerProcess, tmp_path: Path) -> None:
    remote = RemoteModelFactory(server.address, seed=3, cache_dir=tmp_path / "cache", share_values=True).build(CONFIG)
    local = PolicyConstructorModelFactory(seed=3, plugins=["conditions"]).build(CONFIG)
    pair: list[nn.Module] = [local, remote]

    def check(step: int) -> None:
        results = []
        for module in pair:
            torch.manual_seed(step)
            results.append(
                module({"obs": torch.ones(2 + step, 6), "task": [f"task {step}"] * (2 + step), "episode": step})
            )
        assert_same(results[1], results[0])

    for step in range(25):
        check(step)
    assert recorded(server) == 1, "texts and counters that nobody reads"
    for rate in (0.1, 0.3, 0.1):
        for module in pair:
            module.graph_modules["layer0"].drop.p = rate
        check(1)
    assert recorded(server) == 3, "each rate once"
    for module in pair:
        torch.manual_seed(9)
        module.graph_modules["layer0"].head = nn.Linear(6, 20)
    check(2)
    assert recorded(server) == 3, "a width is read where the program runs"
