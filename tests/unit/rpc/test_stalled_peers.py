"""The server closes the connection of one peer, and no other connection."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from model_factory_server.rpc.stalled_peers import close_peer_connection


@pytest.mark.parametrize(
    ("family", "address", "peer"),
    [
        (socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1:{port}"),
        (socket.AF_INET6, "::1", "ipv6:%5B::1%5D:{port}"),
        (socket.AF_INET6, "::1", "ipv6:[::1]:{port}"),
    ],
)
def test_closes_the_connection_of_the_peer_only(family: int, address: str, peer: str) -> None:
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError:
        pytest.skip(f"this machine has no {address}")
    with (
        socket.create_server((address, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
        socket.create_connection(listener.getsockname()[:2]) as other,
    ):
        accepted = [listener.accept()[0] for _ in range(2)]
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert close_peer_connection(peer.format(port=client.getsockname()[1]))
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        client.settimeout(5)
        assert client.recv(1) == b""
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize("peer", ["", "unix:", "unix:/run/x", "ipv4:127.0.0.1:1", "ipv4:127.0.0.1:x"])
def test_a_peer_without_a_connection(peer: str) -> None:
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        socket.socket(socket.AF_UNIX),
    ):  # other kinds of addresses
        assert not close_peer_connection(peer)
