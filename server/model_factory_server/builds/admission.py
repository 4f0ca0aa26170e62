"""Who may build now, who waits, and who is turned away: one queue, and a share of it for each client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from model_factory.errors import BusyError
from model_factory_server.settings.server_settings import LimitSettings


@dataclass(slots=True)
class _Share:
    """What one client has of the builders."""

    slots: asyncio.Semaphore
    """As many as it may have builds at the same time."""
    users: int = 0
    """Calls and builds that count in it; without any it is forgotten."""
    calls: int = 0
    """In progress."""
    waiting: int = 0
    """Of them, those that wait."""


@dataclass(slots=True)
class Admission:
    """Hands out builders; used in one event loop."""

    limits: LimitSettings
    """How many of everything."""
    workers: int
    """Builds at the same time."""
    waiting: int = 0
    """Builds that wait for a builder."""
    calls: int = 0
    """Calls in progress, but for health checks and ``GetCapabilities``."""
    _slots: asyncio.Semaphore = field(init=False)
    _shares: dict[str, _Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.workers)

    @contextmanager
    def call(self, client: str) -> Iterator[None]:
        """Count a call of a client while it is in progress.

        Raises:
            BusyError: too many are in progress already.
        """
        with self._share(client) as share:
            if share.calls >= self.limits.max_calls_per_client:
                raise BusyError(
                    f"{share.calls} calls of yours are in progress; this server answers "
                    f"{self.limits.max_calls_per_client} of one client at a time. Try again when one has ended"
                )
            if self.calls >= self.limits.max_calls:
                raise BusyError(
                    f"{self.calls} calls are in progress; this server answers {self.limits.max_calls} at a time. "
                    "Try again later"
                )
            share.calls += 1
            self.calls += 1
            try:
                yield
            finally:
                share.calls -= 1
                self.calls -= 1

    @asynccontextmanager
    async def builder(self, client: str) -> AsyncIterator[None]:
        """Wait for a builder, and have it inside.

        A client's own limit comes first, so what waits because of it takes no builder from others.

        Raises:
            BusyError: too many wait already.
        """
        with self._share(client) as share:
            async with self._turn(share):
                yield

    @asynccontextmanager
    async def _turn(self, share: _Share) -> AsyncIterator[None]:
        if share.slots.locked() or self._slots.locked():
            self._check_room(share)
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
        share = self._shares.setdefault(client, _Share(asyncio.Semaphore(self._most_of_one())))
        share.users += 1
        try:
            yield share
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[client]

    def _most_of_one(self) -> int:
        return min(self.limits.max_builds_per_client or self.workers, self.workers)

    def _check_room(self, share: _Share) -> None:
        if share.waiting >= self.limits.max_queue_per_client:
            raise BusyError(
                f"{share.waiting} builds of yours wait already; this server lets {self.limits.max_queue_per_client} "
                "of one client wait. Try again when some are done"
            )
        if self.waiting >= self.limits.max_queue:
            raise BusyError(
                f"{self.waiting} builds wait already; this server lets {self.limits.max_queue} wait. Try again later"
            )
