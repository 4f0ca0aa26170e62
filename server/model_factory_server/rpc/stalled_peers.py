"""Ending a connection from this side, which gRPC has no call for."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote


def close_peer_connection(peer: str) -> bool:
    """Shut the connection of a peer, as gRPC writes it; False if it has none over TCP.

    What waits to be sent on it is freed at once. Ending the task that sends would free nothing: gRPC keeps the message
    until somebody takes it, or goes.
    """
    wanted = _address(peer)
    if wanted is None:
        return False
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError), _borrowed(int(entry.name)) as connection:  # most are no connections
            is_internet = connection.family in {socket.AF_INET, socket.AF_INET6}
            if is_internet and _peer_of(connection) == wanted:
                connection.shutdown(socket.SHUT_RDWR)
                return True
    return False


def _peer_of(connection: socket.socket) -> tuple[str, int]:
    host, port, *_ = connection.getpeername()
    return _plain(host), port


@contextmanager
def _borrowed(number: int) -> Iterator[socket.socket]:
    """A descriptor as a socket; it stays its owner's to close."""
    connection = socket.socket(fileno=number)
    try:
        yield connection
    finally:
        connection.detach()


def _address(peer: str) -> tuple[str, int] | None:
    family, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdigit():
        return None
    return _plain(host.strip("[]")), int(port)


def _plain(host: str) -> str:
    """One spelling of an address, an IPv4 one also where it comes as IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
