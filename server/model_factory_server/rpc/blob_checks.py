"""Hashes blobs that clients report as damaged: a disk can change bytes without a trace in the times of a file."""

from __future__ import annotations

import asyncio
import logging
import time

from model_factory.store import Blob, Store
from model_factory_server.builds.fair_shares import Claim, FairShares
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import current_rpc

log = logging.getLogger(__name__)

SOUND_SECONDS = 600.0
"""Time during which a blob that was found sound is not hashed again: a client may report any blob at any time."""

_MAX_WAITING = 2
"""Checks of one client that wait or run."""

_MAX_REMEMBERED = 4096


class BlobChecks:
    """Hashes one blob at a time, each sound blob at most once in ``SOUND_SECONDS``; removes damaged blobs.

    The clients of RPCs take turns, so the many reports of one client do not keep out the report of another client.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._turns = FairShares(1, 1)
        self._claims: dict[Blob, Claim] = {}
        self._running: dict[Blob, asyncio.Task[None]] = {}
        self._sound_at: dict[Blob, float] = {}

    async def check(self, blob: Blob) -> None:
        """Hash a blob, and remove a damaged file.

        Nothing is done for a recent check, or where too many checks of the client wait.
        """
        if time.monotonic() - self._sound_at.get(blob, -SOUND_SECONDS) < SOUND_SECONDS:
            return
        client = current_rpc().client
        running = self._running.get(blob)
        if running is None:
            if sum(client == claim.clients[0] for claim in self._claims.values()) >= _MAX_WAITING:
                return
            claim = self._claims[blob] = Claim(client)
            # A task of its own: a hash whose client has left goes on, and counts.
            running = self._running[blob] = asyncio.create_task(self._hash(blob, claim))
            running.add_done_callback(lambda _task: self._forget(blob))
        elif client not in self._claims[blob].clients:
            self._claims[blob].join(client)
        await asyncio.shield(running)

    def _forget(self, blob: Blob) -> None:
        del self._running[blob], self._claims[blob]

    async def _hash(self, blob: Blob, claim: Claim) -> None:
        async with self._turns.hold(claim):
            if await asyncio.to_thread(self._store.find, blob) is None:
                return
            if await asyncio.to_thread(self._store.verify, blob.digest):
                self._sound_at[blob] = time.monotonic()
                while len(self._sound_at) > _MAX_REMEMBERED:
                    del self._sound_at[next(iter(self._sound_at))]
                return
            self._metrics.damaged_blobs.inc()
            log.error(
                "blob %s is damaged on this server's disk, and removed; the next request builds again", blob.digest
            )
