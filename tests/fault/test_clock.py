"""A server whose clock jumps while it runs, by days and years, forwards and back."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from attacks.test_builds_out_of_bounds import wait_for
from model_factory import AccessError, Credentials, RemoteModelFactory
from support.clock import VARIABLES, Clock
from support.configs import layers
from support.guarded import PLUGINS
from support.proxy import Proxy
from support.server import ServerProcess

DAY = 86400
WIDTH = 1500
WIDE = layers({"_type_": "nn.Linear", "in_features": WIDTH, "out_features": WIDTH})


@pytest.mark.slow
def test_nothing_but_dates_follows_it(
    start_server: Callable[..., ServerProcess],
    make_proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    clock = Clock(tmp_path / "clock")
    for name, value in clock.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS), prepend=":")
    tokens = tmp_path / "tokens"
    (tmp_path / "token").write_text("of-the-trainer", encoding="ascii")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
    tokens.write_text(f"trainer {hashlib.sha256(b'of-the-trainer').hexdigest()} {tomorrow}\n", encoding="ascii")
    flags = ["--plugin", "hostile_blocks", "--tokens", str(tokens), "--build-timeout", "20", "--plan-timeout", "10"]
    for name in VARIABLES:
        flags += ["--worker-variable", name]
    server = start_server(None, *flags)
    for name in VARIABLES:
        monkeypatch.delenv(name)
    proxy = make_proxy(server)
    made = iter(range(100))

    def trainer(seed: int) -> RemoteModelFactory:
        cache = tmp_path / f"cache{next(made)}"
        credentials = Credentials(token_file=tmp_path / "token")
        return RemoteModelFactory(proxy.address, seed=seed, cache_dir=cache, credentials=credentials, timeout=30)

    open_before = trainer(1)
    expected = fingerprint(open_before.build({"config": WIDE}))
    connections = proxy.connections
    # In the middle of a build, and of a download. Backwards first: the token is good until tomorrow.
    for number, jump in enumerate((-5 * 365 * DAY, -3600, 0)):
        with ThreadPoolExecutor(2) as pool:
            notes, go = tmp_path / f"begun{number}", tmp_path / f"go{number}"
            held = layers({"_type_": "hostile.FailsFor", "notes": str(notes), "go": str(go), "cause": "/none"})
            building = pool.submit(trainer(2).build, {"config": held})
            wait_for(notes)
            clock.jump(jump)
            time.sleep(0.3)
            assert not building.done(), building.result()
            go.touch()
            assert building.result(20) is not None
            proxy.hold_after(WIDTH * WIDTH)
            reading = pool.submit(trainer(1).build, {"config": WIDE})
            assert proxy.held.wait(20)
            clock.jump(jump - DAY)
            proxy.release()
            assert fingerprint(reading.result(20)) == expected
    # Dates do follow it: a token ends when its day comes, and is good again when the clock is set right.
    clock.jump(2 * DAY)
    with pytest.raises(AccessError, match="has expired"):
        trainer(1).describe({"config": WIDE})
    clock.jump(0)
    assert fingerprint(trainer(1).build({"config": WIDE})) == expected
    # What was open through all of it is open still.
    opened = proxy.connections
    assert open_before.blocks()
    assert proxy.connections == opened > connections
    years = {int(year) for year in re.findall(r"^(\d{4})-\d\d-\d\d ", server.log, re.MULTILINE)}
    assert max(years) - min(years) >= 4, "the server's clock has not jumped"
    assert server.stop() == 0


def fingerprint(module: Any) -> float:
    return float(sum(item.double().abs().sum().item() for item in module.state_dict().values()))
