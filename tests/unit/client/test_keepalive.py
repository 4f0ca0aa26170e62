"""The pings of client and server, computed from the values in use; no test waits for an idle hour.

The rules are from gRPC's guide on keepalive. tests/attacks/test_connections.py sends pings with shorter intervals over
real connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from model_factory.client import connection
from model_factory_server import app
from model_factory_server.command import OPTIONS
from model_factory_server.settings.server_settings import ConnectionSettings

CLIENT: dict[str, Any] = {str(name): value for name, value in connection._OPTIONS}
SERVER: dict[str, Any] = dict(app._keepalive_options(ConnectionSettings()))

MINUTE = 60_000
# Defaults of a server: an earlier ping than this is a strike, and the third strike ends the connection.
GRPC_DEFAULTS = {
    "grpc.http2.min_ping_interval_without_data_ms": 5 * MINUTE,
    "grpc.http2.max_ping_strikes": 2,
    "grpc.keepalive_permit_without_calls": 0,
}
WITHOUT_CALLS = 120 * MINUTE  # shortest time between pings without calls, unless such pings are permitted
# Load balancers drop idle connections by default: Azure after 4 minutes, AWS after 350 s, Google after 10 minutes.
SHORTEST_IDLE = 4 * MINUTE
JITTER = 5_000  # difference between the delays of two pings


def is_cut_off(client: Mapping[str, Any], server: Mapping[str, Any], hours: float, *, calls: bool) -> bool:
    """Whether the server treats the client's pings as a flood during hours without data."""
    enforced = GRPC_DEFAULTS | dict(server)
    if not calls and not client.get("grpc.keepalive_permit_without_calls", 0):
        return False  # the client sends no pings
    least = enforced["grpc.http2.min_ping_interval_without_data_ms"]
    if not calls and not enforced["grpc.keepalive_permit_without_calls"]:
        least = WITHOUT_CALLS
    every = client["grpc.keepalive_time_ms"]
    pings = int(hours * 60 * MINUTE) // every
    strikes = (pings - 1) * (every - JITTER < least)
    return bool(strikes > enforced["grpc.http2.max_ping_strikes"] > 0)


@pytest.mark.parametrize("calls", [True, False], ids=["a long call", "no call"])
def test_idle_hours_do_not_look_like_a_flood(calls: bool) -> None:
    assert not is_cut_off(CLIENT, SERVER, 24, calls=calls)
    assert is_cut_off(CLIENT, {}, 1, calls=calls), "gRPC's own defaults would have cut them off"
    (option,) = (option for option in OPTIONS if option.name == "min_ping_interval")
    assert option.maximum is not None
    strictest = dict(app._keepalive_options(ConnectionSettings(min_ping_interval=option.maximum)))
    assert not is_cut_off(CLIENT, strictest, 24, calls=calls), "a server can be set up to cut off our own clients"
    hasty = CLIENT | {"grpc.keepalive_time_ms": SERVER["grpc.http2.min_ping_interval_without_data_ms"]}
    assert is_cut_off(hasty, SERVER, 1, calls=calls)


def test_both_sides_ping_before_what_is_between_forgets_them() -> None:
    for name, side in (("client", CLIENT), ("server", SERVER)):
        assert side["grpc.keepalive_permit_without_calls"] == 1, f"{name}: idle connections are not kept"
        assert side["grpc.http2.max_pings_without_data"] == 0, f"{name}: pings stop after a few without data"
        assert 2 * side["grpc.keepalive_time_ms"] <= SHORTEST_IDLE, f"{name}: one lost ping, and it is forgotten"


def test_a_side_that_vanished_is_noticed_in_time() -> None:
    for side in (CLIENT, SERVER):
        assert side["grpc.keepalive_timeout_ms"] == side["grpc.http2.ping_timeout_ms"], "the longer of the two counts"
        assert side["grpc.keepalive_time_ms"] + side["grpc.keepalive_timeout_ms"] <= 2 * MINUTE
    # A stalled stream is cancelled later than the detection of a dead connection.
    assert CLIENT["grpc.keepalive_timeout_ms"] < connection.STALL_SECONDS * 1000
