"""Admission of RPCs, builds and bytes: queues in which clients take turns, and a share for each client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from model_factory.errors import BusyError, LimitError
from model_factory_server.access.client_counts import ClientCounts
from model_factory_server.builds.fair_shares import Claim, FairShares
from model_factory_server.settings.server_settings import COPIES, LimitSettings

_PROBES = 4  # received at the same time
_PROBES_OF_CLIENT = 2


@contextmanager
def _counted(rpcs: ClientCounts, client: str) -> Iterator[None]:
    if not rpcs.add(client):
        if rpcs.of(client) >= rpcs.most_of_client:
            raise BusyError(
                f"this client has {rpcs.of(client)} RPCs in progress; this server allows {rpcs.most_of_client} RPCs "
                "per client. Remedy: try again when an RPC has ended"
            )
        raise BusyError(
            f"{rpcs.total} RPCs are in progress; this server allows {rpcs.most} RPCs. Remedy: try again later"
        )
    try:
        yield
    finally:
        rpcs.remove(client)


class Admission:
    """Admits RPCs, builds and bytes; for use in a single event loop.

    Example:
        >>> admission = Admission(LimitSettings(max_rpcs=1), workers=1)
        >>> with admission.rpc("first client"), admission.rpc("second client"):
        ...     pass
        Traceback (most recent call last):
        model_factory.errors.BusyError: 1 RPCs are in progress; this server allows 1 RPCs. Remedy: try again later
    """

    def __init__(self, limits: LimitSettings, workers: int) -> None:
        self.limits = limits
        """The operator's bounds."""
        self._rpcs = ClientCounts(limits.max_rpcs, limits.max_rpcs_per_client)
        self._probes = ClientCounts(limits.max_rpcs, limits.max_rpcs_per_client)
        self._workers = FairShares(workers, limits.max_builds_per_client or workers)
        # Two halves: a request may wait for a build of hours, and a response must never wait for requests.
        half, half_of_client = limits.max_held_bytes // 2, limits.effective_max_client_held_bytes // 2
        self.requests = FairShares(half, half_of_client)
        """Memory for requests."""
        self.responses = FairShares(half, half_of_client)
        """Memory for responses."""
        # Probes need no token: untrusted peers must not delay the requests of clients.
        largest = COPIES * limits.max_request_bytes
        self._probe_requests = FairShares(_PROBES * largest, _PROBES_OF_CLIENT * largest)

    @property
    def waiting(self) -> int:
        """Builds of all clients waiting for a worker."""
        return self._workers.waiting

    @contextmanager
    def rpc(self, client: str) -> Iterator[None]:
        """Count an RPC of a client while the RPC is in progress.

        Raises:
            BusyError: too many RPCs are in progress already.
        """
        with _counted(self._rpcs, client):
            yield

    @contextmanager
    def probe(self, client: str) -> Iterator[None]:
        """Count a health check or a similar RPC, in a count of its own; otherwise like :meth:`rpc`."""
        with _counted(self._probes, client):
            yield

    @asynccontextmanager
    async def worker(self, claim: Claim) -> AsyncIterator[None]:
        """Wait for a worker, and hold the worker inside the block.

        Raises:
            BusyError: too many builds wait already.
        """
        if self._workers.must_wait(claim):
            self._check_queue(claim)
        async with self._workers.hold(claim):
            yield

    async def request(self, client: str, *, is_probe: bool = False) -> Claim:
        """Wait for the bytes of the largest request of a client; shrink the claim to the bytes of the request.

        End the claim with :meth:`Claim.release`.
        """
        claim = Claim(client, COPIES * self.limits.max_request_bytes)
        await (self._probe_requests if is_probe else self.requests).acquire(claim)
        return claim

    async def response(self, client: str, size: int) -> Claim:
        """Wait for the bytes of a response of a client; end the claim with :meth:`Claim.release`.

        Raises:
            LimitError: the response is larger than the share of one client.
        """
        claim = Claim(client, COPIES * size)
        if claim.amount > self.responses.per_client:
            raise LimitError(
                f"the response has {size} bytes; this server holds responses of at most "
                f"{self.responses.per_client // COPIES} bytes for one client. Remedy: request fewer "
                "components at once, or raise --max-client-held-bytes of the server"
            )
        await self.responses.acquire(claim)
        return claim

    @property
    def has_waiting_responses(self) -> bool:
        """Whether responses wait for memory."""
        return self.responses.waiting > 0

    def _check_queue(self, claim: Claim) -> None:
        waiting = min(self._workers.waiting_of(client) for client in claim.clients)
        if waiting >= self.limits.max_queue_per_client:
            raise BusyError(
                f"this client has {waiting} builds waiting; this server allows "
                f"{self.limits.max_queue_per_client} waiting builds per client. Remedy: try again after a build"
            )
        if self.waiting >= self.limits.max_queue:
            raise BusyError(
                f"{self.waiting} builds are waiting; this server allows {self.limits.max_queue} waiting builds. "
                "Remedy: try again later"
            )
