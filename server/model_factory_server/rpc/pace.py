"""The pace of large messages: they take time of the event loop, in which small requests of other clients wait."""

from __future__ import annotations

import asyncio
import time

from model_factory.limits import BLOB_CHUNK_BYTES, KIB, MIB
from model_factory_server.builds.fair_shares import Claim, FairShares

SHARED_CHUNK_BYTES = 256 * KIB
"""Data in a message of a blob stream while another client has requests."""

_SHARED_SECONDS = 0.2  # from the beginning of a request; the next requests of the client follow in this time
_LARGE_BYTES = 64 * KIB
_BYTES_PER_SECOND = 128 * MIB  # of the requests of one client
_PACED_CLIENTS = 64


class Pace:
    """Slows the large messages of a client while another client has requests; a client alone has the full speed.

    Example:
        >>> pace = Pace()
        >>> pace.note("first client")
        >>> pace.chunk_bytes("first client") == BLOB_CHUNK_BYTES, pace.chunk_bytes("second client")
        (True, 262144)
    """

    def __init__(self) -> None:
        self._latest = ("", 0.0)
        self._latest_other = ("", 0.0)
        self._chunks = FairShares(1, 1)
        self._requests = FairShares(_PACED_CLIENTS, 1)

    def note(self, client: str) -> None:
        """Note that a client has begun a request."""
        if client != self._latest[0]:
            self._latest_other = self._latest
        self._latest = (client, time.monotonic())

    def chunk_bytes(self, client: str) -> int:
        """Return the size of the next message of a client's blob stream."""
        return SHARED_CHUNK_BYTES if self._is_shared(client) else BLOB_CHUNK_BYTES

    async def chunk(self, client: str) -> None:
        """Wait before a message of a blob stream: at most one message in each round of the event loop."""
        if self._is_shared(client):
            async with self._chunks.hold(Claim(client)):
                await asyncio.sleep(0)

    async def request(self, client: str, size: int) -> None:
        """Wait after a request, for a time in proportion to its size."""
        if size > _LARGE_BYTES and self._is_shared(client):
            async with self._requests.hold(Claim(client)):
                await asyncio.sleep(size / _BYTES_PER_SECOND)

    def _is_shared(self, client: str) -> bool:
        other, begun = self._latest if self._latest[0] != client else self._latest_other
        return bool(other) and time.monotonic() - begun < _SHARED_SECONDS
