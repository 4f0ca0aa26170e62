"""The composition root: wires store, builder and servicer into a running server."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable, Coroutine
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from model_factory.environment import environment
from model_factory.errors import ServerError
from model_factory.limits import MAX_MESSAGE_BYTES
from model_factory.memory import keep_freed_memory
from model_factory.store import Store
from model_factory.v1 import blob_pb2, service_pb2, service_pb2_grpc, wire
from model_factory_server.access.access import Access, check_exposure, encryption
from model_factory_server.backends.identity import BackendIdentity, identify
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.fork_server import socket_in
from model_factory_server.builds.service import BuildService
from model_factory_server.builds.worker_pool import WorkerPool
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.traces import configure_traces
from model_factory_server.rpc.interceptor import CallInterceptor
from model_factory_server.rpc.servicer import Servicer
from model_factory_server.settings.server_settings import ConnectionSettings, Settings

log = logging.getLogger(__name__)

_MORE_STREAMS = 32
_MORE_FILES = 256  # of Python, torch's fork server, the log, the metrics
_FILES_OF_BUILD = 3
_SERVICE = service_pb2.DESCRIPTOR.services_by_name["ModelFactoryService"].full_name
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a rival
]


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is told ``HOST:PORT`` once calls are answered.

    The first signal lets calls in progress end within the drain timeout; a second one ends them at once.

    Raises:
        ServerError: the address cannot be bound, or the backend or a plug-in cannot be used.
        StoreError: the store cannot be used.
    """
    keep_freed_memory()
    _allow_files(settings)
    asyncio.run(_serve(settings, on_ready))


def _allow_files(settings: Settings) -> None:
    """Have this process open as many files as its bounds may need, as far as the system lets it."""
    limits = settings.limits
    needed = limits.max_connections + limits.max_calls + _FILES_OF_BUILD * settings.workers + _MORE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning(
            "this process may open %d files; --max-connections, --max-calls and --workers may need %d. Remedy: raise "
            "the limit of open files (ulimit -n), or lower those",
            allowed,
            needed,
        )


async def _serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    check_exposure(settings.listen, settings.access)
    store = Store(settings.store, setting="--store")
    with store.scratch() as folder, socket_in(folder):
        await _serve_store(settings, store, on_ready)


async def _serve_store(settings: Settings, store: Store, on_ready: Callable[[str], None]) -> None:
    tls, access = encryption(settings.access), Access(settings.access)
    backend = identify(settings.backend, _device_kind(settings.device))
    metrics, traces = Metrics(), configure_traces(environment())
    admission = Admission(settings.limits, settings.workers)
    pool = WorkerPool(settings, store, backend, admission, metrics)
    builder = BuildService(store, backend, pool, metrics, traces)
    _describe(metrics, settings, store, pool, backend)
    if tls is not None:
        metrics.watch_certificate(tls.expiry)
    bounds = [
        ("grpc.max_receive_message_length", settings.limits.max_request_bytes),
        # A request is held while it comes, before it can be counted: so many of one connection's, and health watches.
        ("grpc.max_concurrent_streams", settings.limits.max_calls_per_client + _MORE_STREAMS),
        ("grpc.max_allowed_incoming_connections", settings.limits.max_connections),
    ]
    server = grpc.aio.server(
        options=[*_OPTIONS, *bounds, *_keepalive(settings.connections)],
        interceptors=[CallInterceptor(metrics, traces, access)],
    )
    _add_servicer(server, Servicer(settings, store, builder, admission, backend, metrics))
    if settings.observe.reflection:
        _add_reflection(server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    stop, now = _signals()
    try:
        if settings.observe.metrics_listen is not None:
            log.info("metrics on http://%s/metrics", metrics.serve(settings.observe.metrics_listen))
        host, port = _bind(server, settings.listen, None if tls is None else tls.credentials)
        metrics.watch_connections(port, settings.limits.max_connections)
        await _say(health, health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        # Shows that builds work here before anyone is told to come.
        if await _before(stop, builder.warm_up()):
            await _say(health, health_pb2.HealthCheckResponse.SERVING)
            metrics.serving.set(1)
            on_ready(f"{host}:{port}")
            await stop.wait()
        log.info("stopping: calls in progress have %g seconds to end", settings.drain_timeout)
        metrics.serving.set(0)
        await health.enter_graceful_shutdown()
        if not await _before(now, _drain(server, settings)):
            log.warning("told again to stop: calls in progress end at once")
    finally:
        await server.stop(None)
        pool.close()
        metrics.close()
        traces.close()


async def _say(health: HealthServicer, status: int) -> None:
    """Set the status of the server, and of its service by name, for probes that ask for it."""
    for service in ("", _SERVICE):
        await health.set(service, status)


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return what the first signal to stop sets, and what a second one does."""
    stop, now = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told)
    return stop, now


async def _drain(server: grpc.aio.Server, settings: Settings) -> None:
    if settings.drain_delay:
        await asyncio.sleep(settings.drain_delay)
    await server.stop(settings.drain_timeout)


def _describe(metrics: Metrics, settings: Settings, store: Store, pool: WorkerPool, backend: BackendIdentity) -> None:
    metrics.describe(
        version=metadata.version("model-factory-server"),
        backend=backend.name,
        torch_version=backend.torch_version,
        device_kind=backend.device_kind,
    )
    metrics.watch(pool, settings.workers, store.root)


def _add_reflection(server: grpc.aio.Server) -> None:
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((_SERVICE, health, reflection.SERVICE_NAME), server)


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
    """Add the service, with ``ReadBlob`` answered with messages that are serialised already."""
    service, _, method = wire.READ_BLOB.lstrip("/").partition("/")
    read_blob = grpc.unary_stream_rpc_method_handler(
        servicer.ReadBlob,
        request_deserializer=blob_pb2.ReadBlobRequest.FromString,
    )
    handlers = {method: read_blob}
    # Of generic handlers the first answers, of registered ones the last; which kind is asked depends on grpc's version.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    service_pb2_grpc.add_ModelFactoryServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


def _keepalive(settings: ConnectionSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", round(settings.keepalive_interval * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", round(settings.keepalive_timeout * 1000)),  # else a minute, whatever that says
        ("grpc.server_handshake_timeout_ms", round(settings.keepalive_timeout * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", round(settings.ping_interval * 1000)),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _bind(server: grpc.aio.Server, listen: str, tls: grpc.ServerCredentials | None) -> tuple[str, int]:
    host, _, _ = listen.rpartition(":")
    try:
        port = server.add_insecure_port(listen) if tls is None else server.add_secure_port(listen, tls)
    except RuntimeError as error:
        raise ServerError(f"cannot listen on {listen}: {error}") from None
    return host, port


def _device_kind(device: str) -> str:
    """What ``auto`` means here. Asks the driver's files, since the gRPC process has no CUDA context."""
    if device != "auto":
        return device
    return "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
