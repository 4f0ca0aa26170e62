"""A bounded amount of workers, memory or time, shared among clients who wait in turn."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from model_factory_server.observe.rpc_context import current_rpc

P = ParamSpec("P")
T = TypeVar("T")


class Claim:
    """A claim on a share: for one client, or for several clients that wait for one job.

    The claim is granted as soon as the share of any of its clients allows, and counts against this client.
    """

    __slots__ = ("amount", "clients", "granted", "holder", "shares")

    def __init__(self, client: str, amount: int = 1) -> None:
        self.amount = amount
        """Claimed amount."""
        self.clients = [client]
        """Waiting clients; a client appears once per request."""
        self.holder: str | None = None
        """The client that the amount counts against; ``None`` until the claim is granted."""
        self.granted: asyncio.Future[None] | None = None
        """Set once the claim is granted; ``None`` before the claim waits."""
        self.shares: FairShares | None = None
        """Where the claim waits or is held."""

    def join(self, client: str) -> None:
        """Let another client wait for the claim."""
        self.clients.append(client)
        if self.shares is not None:
            self.shares.joined(self, client)

    def leave(self, client: str) -> None:
        """Remove a client; the amount then counts against another client of the claim, if the client held it.

        The last client stays until the claim is given up or released: the queue of this client has the claim.
        """
        if len(self.clients) == 1:
            return
        self.clients.remove(client)
        if self.shares is not None and client not in self.clients:
            self.shares.left(self, client)

    def release(self) -> None:
        """Give back the whole amount; no effect without an amount."""
        if self.shares is not None and self.holder is not None:
            self.shares.release(self)

    def shrink(self, amount: int) -> None:
        """Give back all but ``amount``."""
        if self.shares is not None and self.holder is not None and amount < self.amount:
            self.shares.shrink(self, amount)


class FairShares:
    """Shares a capacity among clients: each client has an upper bound, and clients with waiting claims take turns.

    For use in a single event loop.

    Example:
        >>> async def two_clients() -> int:
        ...     shares = FairShares(capacity=3, per_client=2)
        ...     async with shares.hold(Claim("first", 2)), shares.hold(Claim("second")):
        ...         return shares.free
        >>> asyncio.run(two_clients())
        0
    """

    def __init__(self, capacity: int, per_client: int) -> None:
        """Share ``capacity``, of which each client has at most ``per_client``."""
        self.per_client = min(per_client, capacity)
        """Upper bound of one client."""
        self.capacity = capacity
        """The whole amount."""
        self.free = capacity
        """Amount that nobody holds."""
        self.waiting = 0
        """Number of waiting claims."""
        self._held: Counter[str] = Counter()
        self._queues: dict[str, deque[Claim]] = {}  # in the order of turns

    def held_by(self, client: str) -> int:
        """Return the amount held by a client."""
        return self._held[client]

    def waiting_of(self, client: str) -> int:
        """Return the number of claims that wait in the queue of a client."""
        return len(self._queues.get(client, ()))

    def must_wait(self, claim: Claim) -> bool:
        """Return whether the claim would wait: because of its clients' shares, the capacity, or earlier claims."""
        return (
            claim.amount > self.free
            or self._next() is not None
            or all(client in self._queues or not self._fits(claim, client) for client in claim.clients)
        )

    @asynccontextmanager
    async def hold(self, claim: Claim) -> AsyncIterator[Claim]:
        """Wait for the claim's turn, and hold the amount inside the block.

        The amount must not exceed ``per_client``.
        """
        await self.acquire(claim)
        try:
            yield claim
        finally:
            self.release(claim)

    async def acquire(self, claim: Claim) -> None:
        """Wait for the claim's turn; end with :meth:`release`."""
        claim.shares = self
        if not self.must_wait(claim):
            self._grant(claim, next(client for client in claim.clients if self._fits(claim, client)))
            return
        claim.granted = asyncio.get_running_loop().create_future()
        for client in dict.fromkeys(claim.clients):
            self._queues.setdefault(client, deque()).append(claim)
        self.waiting += 1
        try:
            await claim.granted
        except asyncio.CancelledError:
            if claim.holder is None:
                self._forget(claim)
                claim.shares = claim.granted = None
                self._serve()
            else:
                self.release(claim)
            raise

    def release(self, claim: Claim) -> None:
        """Give back the whole amount."""
        self.shrink(claim, 0)
        claim.holder = claim.shares = None

    def shrink(self, claim: Claim, amount: int) -> None:
        """Give back a part of a granted claim."""
        assert claim.holder is not None
        self._charge(claim.holder, amount - claim.amount)
        claim.amount = amount
        self._serve()

    def joined(self, claim: Claim, client: str) -> None:
        """Queue a waiting claim for another client, too."""
        if claim.holder is None and claim.granted is not None and claim.clients.count(client) == 1:
            self._queues.setdefault(client, deque()).append(claim)
            self._serve()

    def left(self, claim: Claim, client: str) -> None:
        """Remove a claim from the queue, or from the share, of a client that waits no longer."""
        if claim.holder == client:
            self._charge(client, -claim.amount)
            claim.holder = min(claim.clients, key=self.held_by)
            self._charge(claim.holder, claim.amount)
        elif claim.holder is None:
            self._leave_queue(claim, client)
        self._serve()

    def _fits(self, claim: Claim, client: str) -> bool:
        return self._held[client] + claim.amount <= self.per_client

    def _serve(self) -> None:
        """Grant claims in turn. A claim that needs more than is free keeps its turn: small claims do not pass it."""
        while (found := self._next()) is not None:
            claim, client = found
            if claim.amount > self.free:
                return
            self._forget(claim)
            if client in self._queues:  # to the end of the turns
                self._queues[client] = self._queues.pop(client)
            self._grant(claim, client)

    def _next(self) -> tuple[Claim, str] | None:
        """Return the next claim in turn, and its client; the claim may need more than is free."""
        for client, queue in self._queues.items():
            if self._fits(queue[0], client):
                return queue[0], client
        return None

    def _grant(self, claim: Claim, client: str) -> None:
        claim.holder = client
        self._charge(client, claim.amount)
        if claim.granted is not None and not claim.granted.done():
            claim.granted.set_result(None)

    def _charge(self, client: str, amount: int) -> None:
        self.free -= amount
        self._held[client] += amount
        if not self._held[client]:
            del self._held[client]

    def _forget(self, claim: Claim) -> None:
        """Remove a claim from all queues."""
        self.waiting -= 1
        for client in dict.fromkeys(claim.clients):
            self._leave_queue(claim, client)

    def _leave_queue(self, claim: Claim, client: str) -> None:
        queue = self._queues.get(client)
        if queue is not None and claim in queue:
            queue.remove(claim)
            if not queue:
                del self._queues[client]


class FairThreads:
    """Threads for the file access of RPCs: the client of an RPC has at most half of the threads.

    Example:
        >>> asyncio.run(FairThreads("lookup", 2).run(len, "work"))
        4
    """

    def __init__(self, name: str, threads: int) -> None:
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._turns = FairShares(threads, max(1, threads // 2))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``work`` in a thread, in turn. The turn lasts until the thread is done, even after a cancellation."""
        context = contextvars.copy_context()
        claim = Claim(current_rpc().client)
        await self._turns.acquire(claim)
        running = asyncio.get_running_loop().run_in_executor(self._threads, lambda: context.run(work, *args, **kwargs))
        running.add_done_callback(lambda _future: claim.release())
        running.add_done_callback(lambda future: future.cancelled() or future.exception())
        return await asyncio.shield(running)
