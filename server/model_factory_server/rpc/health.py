"""The health service. Probes need no token, so untrusted peers may call: few watches, each with an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_factory.errors import BusyError
from model_factory_server.access.client_counts import ClientCounts
from model_factory_server.rpc.reception import Context, client_of

WATCHES_PER_CLIENT = 16
"""Watches of one client at the same time."""

MAX_WATCHES = 1024
"""Watches of all clients at the same time."""

WATCH_SECONDS = 600.0
"""Time until a watch ends; a client begins another watch."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # without stubs
    """Implements ``grpc.health.v1.Health`` for some services, which are NOT_SERVING at first.

    The servicer of grpc-health-checking keeps a condition for every name that a peer watches, and forgets the
    condition of all watches of a name when the first of them ends.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._status = health_pb2.HealthCheckResponse.NOT_SERVING
        self._changed = asyncio.Event()
        self._watches = ClientCounts(MAX_WATCHES, WATCHES_PER_CLIENT)

    def set(self, *, serving: bool) -> None:
        """Set the status of all services."""
        response = health_pb2.HealthCheckResponse
        self._status = response.SERVING if serving else response.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of a service."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status of a service, now and after every change."""
        client = client_of(context)
        if not self._watches.add(client):
            raise BusyError(
                f"this client has {self._watches.of(client)} health watches of at most {WATCHES_PER_CLIENT}, all "
                f"clients have {self._watches.total} of at most {MAX_WATCHES}. Remedy: end a watch first"
            )
        try:
            end = time.monotonic() + WATCH_SECONDS
            with suppress(TimeoutError):
                while True:
                    changed = self._changed
                    yield health_pb2.HealthCheckResponse(status=self._status_of(request.service))
                    await asyncio.wait_for(changed.wait(), end - time.monotonic())
        finally:
            self._watches.remove(client)

    def _status_of(self, service: str) -> int:
        known: int = self._status
        return known if service in self._services else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
