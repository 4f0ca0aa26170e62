"""What a server has left of many jobs, done, failed, given up and killed."""

from __future__ import annotations

import random

import pytest

from support.load.leaks import Leaks, table
from support.server import ServerProcess

SHARE = 0.5
"""Of a round of the command; three of them are some 150 jobs."""


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a killed or crashed job can make the next one wait
def test_nothing_is_left_of_jobs_of_every_ending(server: ServerProcess, chance: random.Random) -> None:
    leaks = Leaks(server, chance.getrandbits(32))
    for _ in range(3):
        leaks.round(SHARE)
    print(table(leaks.figures), dict(leaks.endings))  # noqa: T201  shown by pytest when it fails
    # What is allocated once, in pools and caches, is not all there after a round of fifty: a leak would be larger.
    assert leaks.faults(1, server_mib=8.0, forks_mib=1.0) == []
    assert server.alive
