"""Admission of RPCs and builds: a queue for workers, and a share for each client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from model_factory.errors import BusyError
from model_factory_server.settings.server_settings import LimitSettings


@dataclass(slots=True)
class _Share:
    """The RPCs and builds of a client."""

    slots: asyncio.Semaphore
    """A slot for each build of the client at the same time."""
    users: int = 0
    """RPCs and builds with this share; an unused share is removed."""
    rpcs: int = 0
    """RPCs in progress."""
    waiting: int = 0
    """Builds of the client waiting for a worker."""


@dataclass(slots=True)
class Admission:
    """Admits RPCs and builds; for use in a single event loop.

    Example:
        >>> admission = Admission(LimitSettings(max_rpcs=1), workers=1)
        >>> with admission.rpc("first client"), admission.rpc("second client"):
        ...     pass
        Traceback (most recent call last):
        model_factory.errors.BusyError: 1 RPCs are in progress; this server allows 1 RPCs. Remedy: try again later
    """

    limits: LimitSettings
    """The operator's bounds."""
    workers: int
    """Number of builds at the same time."""
    waiting: int = 0
    """Builds of all clients waiting for a worker."""
    rpcs: int = 0
    """RPCs in progress, except health checks and ``GetCapabilities``."""
    _slots: asyncio.Semaphore = field(init=False)
    _shares: dict[str, _Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.workers)

    @contextmanager
    def rpc(self, client: str) -> Iterator[None]:
        """Count an RPC of a client while the RPC is in progress.

        Raises:
            BusyError: too many RPCs are in progress already.
        """
        with self._share(client) as share:
            if share.rpcs >= self.limits.max_rpcs_per_client:
                raise BusyError(
                    f"this client has {share.rpcs} RPCs in progress; this server allows "
                    f"{self.limits.max_rpcs_per_client} RPCs per client. Remedy: try again when an RPC has ended"
                )
            if self.rpcs >= self.limits.max_rpcs:
                raise BusyError(
                    f"{self.rpcs} RPCs are in progress; this server allows {self.limits.max_rpcs} RPCs. "
                    "Remedy: try again later"
                )
            share.rpcs += 1
            self.rpcs += 1
            try:
                yield
            finally:
                share.rpcs -= 1
                self.rpcs -= 1

    @asynccontextmanager
    async def worker(self, client: str) -> AsyncIterator[None]:
        """Wait for a worker, and hold the worker inside the block.

        The client's own slot is acquired first, and a build waiting for this slot takes no worker from other clients.

        Raises:
            BusyError: too many builds wait already.
        """
        with self._share(client) as share:
            async with self._slot(share):
                yield

    @asynccontextmanager
    async def _slot(self, share: _Share) -> AsyncIterator[None]:
        if share.slots.locked() or self._slots.locked():
            self._check_queue(share)
        share.waiting += 1
        self.waiting += 1
        try:
            await share.slots.acquire()
            try:
                await self._slots.acquire()
            except BaseException:
                share.slots.release()
                raise
        finally:
            share.waiting -= 1
            self.waiting -= 1
        try:
            yield
        finally:
            self._slots.release()
            share.slots.release()

    @contextmanager
    def _share(self, client: str) -> Iterator[_Share]:
        share = self._shares.setdefault(client, _Share(asyncio.Semaphore(self._max_builds_per_client())))
        share.users += 1
        try:
            yield share
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[client]

    def _max_builds_per_client(self) -> int:
        return min(self.limits.max_builds_per_client or self.workers, self.workers)

    def _check_queue(self, share: _Share) -> None:
        if share.waiting >= self.limits.max_queue_per_client:
            raise BusyError(
                f"this client has {share.waiting} builds waiting; this server allows "
                f"{self.limits.max_queue_per_client} waiting builds per client. Remedy: try again after a build"
            )
        if self.waiting >= self.limits.max_queue:
            raise BusyError(
                f"{self.waiting} builds are waiting; this server allows {self.limits.max_queue} waiting builds. "
                "Remedy: try again later"
            )
