"""Closes connections of stalled clients, and excess connections. gRPC's Python API has no functions for this."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from model_factory_server.access.networks import network_of

_CHECK_SECONDS = 1.0

log = logging.getLogger(__name__)


def start_stall_timer(peer: str, seconds: float) -> asyncio.TimerHandle:
    """Close the peer's connection after ``seconds``, unless the timer is cancelled; call in the task of an RPC.

    Without a TCP connection, the task is cancelled.
    """
    task = asyncio.current_task()
    assert task is not None

    def close() -> None:
        log.warning("%s has received nothing for %g seconds: closing its connection", peer, seconds)
        if not close_peer_connection(peer):
            task.cancel()

    return asyncio.get_running_loop().call_later(seconds, close)


@contextmanager
def stall_timer(peer: str, seconds: float) -> Iterator[None]:
    """Close the peer's connection if the body, the sending of a message, takes longer than ``seconds``."""
    timer = start_stall_timer(peer, seconds)
    try:
        yield
    finally:
        timer.cancel()


def close_peer_connection(peer: str) -> bool:
    """Shut down the connection of a peer, in gRPC's notation of addresses; False without a TCP connection.

    Shutting down frees the unsent messages. Cancelling the sending task would free nothing: gRPC keeps a
    message until the client receives it or disconnects.
    """
    wanted = _parse_peer(peer)
    if wanted is None:
        return False
    for connection in _connections():
        if _remote_address(connection) == wanted:
            _shut_down(connection)
            return True
    return False


async def close_excess_connections(port: int, most: int) -> None:
    """Keep at most ``most`` connections to ``port`` from one network, checked every second, until cancelled.

    A network is an IPv4 address, or a /64 network of IPv6.
    """
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        for address, count in (await asyncio.to_thread(_close_excess, port, most)).items():
            log.warning(
                "closed %d connections of %s: --max-connections-per-address allows %d connections", count, address, most
            )


def _close_excess(port: int, most: int) -> dict[str, int]:
    """Close excess connections; return the number of closed connections by address."""
    found: Counter[str] = Counter()
    for connection in _connections():
        if connection.getsockname()[1] == port:
            address = network_of(connection.getpeername()[0])
            found[address] += 1
            if found[address] > most:
                _shut_down(connection)
    return {address: count - most for address, count in found.items() if count > most}


def _connections() -> Iterator[socket.socket]:
    """Yield the connected internet sockets of this process, in the order of their descriptors."""
    for number in sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
        with suppress(OSError), _borrowed_socket(number) as connection:  # most descriptors are not sockets
            if connection.family in {socket.AF_INET, socket.AF_INET6}:
                connection.getpeername()
                yield connection


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # the peer was first
        connection.shutdown(socket.SHUT_RDWR)


def _remote_address(connection: socket.socket) -> tuple[str, int]:
    host, port, *_ = connection.getpeername()
    return _canonical_host(host), port


@contextmanager
def _borrowed_socket(descriptor: int) -> Iterator[socket.socket]:
    """Yield a descriptor as a socket, without closing the descriptor."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _parse_peer(peer: str) -> tuple[str, int] | None:
    family, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdigit():
        return None
    return _canonical_host(host.strip("[]")), int(port)


def _canonical_host(host: str) -> str:
    """Return one spelling of an address; an IPv4 address mapped into IPv6 becomes the IPv4 address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
