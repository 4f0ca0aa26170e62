"""The composition root: wires store, builder and servicer into a running server."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from model_factory.errors import ServerError
from model_factory.limits import MAX_MESSAGE_BYTES
from model_factory.store import Store
from model_factory.v1 import blob_pb2, service_pb2_grpc, wire
from model_factory_server.backends.identity import identify
from model_factory_server.builder import Builder
from model_factory_server.servicer import Servicer
from model_factory_server.settings import Settings

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a rival
]


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is told ``HOST:PORT`` once calls are answered.

    Raises:
        ServerError: the address cannot be bound, or the backend or a plug-in cannot be used.
        StoreError: the store cannot be used.
    """
    asyncio.run(_serve(settings, on_ready))


async def _serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    store = Store(settings.store)
    backend = identify(settings.backend, _device_kind(settings.device))
    builder = Builder(settings, store, backend)
    bound = ("grpc.max_receive_message_length", settings.limits.max_request_bytes)
    server = grpc.aio.server(options=[*_OPTIONS, bound])
    servicer = Servicer(settings, store, builder, backend)
    _add_servicer(server, servicer)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        address = _bind(server, settings.listen)
        await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        # Warms the fork server up, and shows that a worker can be started before anyone is told to come.
        if await _before(stop, builder.blocks()):
            await health.set("", health_pb2.HealthCheckResponse.SERVING)
            on_ready(address)
            await stop.wait()
        log.info("stopping: calls in progress have %g seconds to end", settings.drain_timeout)
        await health.enter_graceful_shutdown()
        await server.stop(settings.drain_timeout)
    finally:
        await server.stop(None)
        builder.close()


async def _before(stop: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Do ``work``, unless the signal to stop comes first; return whether it was done."""
    stopping = asyncio.create_task(stop.wait())
    working = asyncio.create_task(work)
    await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        return False
    await working  # raises what it raised
    return True


def _add_servicer(server: grpc.aio.Server, servicer: Servicer) -> None:
    """Add the service, with ``ReadBlob`` answered without making a message of every chunk."""
    service, _, method = wire.READ_BLOB.lstrip("/").partition("/")
    read_blob = grpc.unary_stream_rpc_method_handler(
        servicer.ReadBlob,
        request_deserializer=blob_pb2.ReadBlobRequest.FromString,
        response_serializer=wire.frame_chunk,
    )
    handlers = {method: read_blob}
    # Of generic handlers the first answers, of registered ones the last; which kind is asked depends on grpc's version.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    service_pb2_grpc.add_ModelFactoryServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


def _bind(server: grpc.aio.Server, listen: str) -> str:
    host, _, _ = listen.rpartition(":")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ServerError(f"cannot listen on {listen}: {error}") from None
    return f"{host}:{port}"


def _device_kind(device: str) -> str:
    """What ``auto`` means here. Asks the driver's files, since the gRPC process has no CUDA context."""
    if device != "auto":
        return device
    return "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
