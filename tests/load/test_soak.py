"""A soak of some seconds: what the command does for an hour, with the same checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from support.server import ServerProcess
from support.soak import SERVER_FLAGS, soak

SECONDS = 6.0
CLIENTS = 100
SEED = 20261123
HEALTH_SECONDS = 2.0  # for a machine on which everything shares two cores
GROWTH_MIB = 32.0


def test_many_clients_of_all_kinds(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = start_server(tmp_path / "store", "--metrics-listen", "127.0.0.1:0", *SERVER_FLAGS)
    found = re.search(r"metrics on (http://\S+)", server.log)
    assert found is not None
    outcome = soak(server, found[1], seconds=SECONDS, clients=CLIENTS, seed=SEED)
    assert not outcome.faults(health_seconds=HEALTH_SECONDS, growth_mib=GROWTH_MIB), outcome.summary()
    assert {"hit", "download", "describe", "build", "give up"} <= set(outcome.latencies)
    assert len(outcome.probes) > SECONDS
    assert max(sample.descriptors for sample in outcome.samples) > CLIENTS / 2, "were there that many connections?"
    assert server.stop() == 0
