"""The composition root: wires store, build service and servicer into a running server."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable, Coroutine
from importlib import metadata
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from model_factory.environment import environment
from model_factory.errors import ServerError
from model_factory.limits import KIB, MAX_MESSAGE_BYTES, UNCOMPRESSED_ONLY
from model_factory.memory import keep_freed_memory
from model_factory.store import Store
from model_factory.v1 import blob_pb2, service_pb2_grpc, wire
from model_factory_server.access.authenticator import Authenticator
from model_factory_server.access.exposure import check_exposure
from model_factory_server.access.tls import load_tls
from model_factory_server.backends.checkpoint_catalogue import check_catalogue
from model_factory_server.backends.identity import BackendIdentity, identify
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.service import BuildService
from model_factory_server.builds.worker_pool import WorkerPool
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.traces import configure_traces
from model_factory_server.parsing.config_parser import ConfigParser
from model_factory_server.rpc.health import Health
from model_factory_server.rpc.interceptor import SERVICE, RpcInterceptor
from model_factory_server.rpc.reception import Reception
from model_factory_server.rpc.servicer import Servicer
from model_factory_server.rpc.stalled_peers import close_excess_connections
from model_factory_server.settings.server_settings import ConnectionSettings, LimitSettings, Settings
from model_factory_server.worker.sandbox import adopt_orphans

log = logging.getLogger(__name__)

_EXTRA_STREAMS = 32  # of one connection, for health watches
_EXTRA_FILES = 256  # for Python, torch's fork server, the log and the metrics
_FILES_OF_WORKER = 3
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    UNCOMPRESSED_ONLY,
    ("grpc.so_reuseport", 0),  # a second server on the same port fails instead of sharing the port
]


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is called with ``HOST:PORT`` once the server accepts RPCs.

    After the first signal, RPCs in progress may finish within the drain timeout; a second signal cancels the RPCs.

    Raises:
        ServerError: the address cannot be bound, or the backend or a plug-in cannot be used.
        StoreError: the store cannot be used.
    """
    keep_freed_memory()
    adopt_orphans()
    _raise_file_limit(settings)
    asyncio.run(_serve(settings, on_ready))


def _raise_file_limit(settings: Settings) -> None:
    """Raise this process's limit of open files to the number that the settings may need, as far as permitted."""
    limits = settings.limits
    needed = limits.max_connections + limits.max_rpcs + _FILES_OF_WORKER * settings.workers + _EXTRA_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning(
            "this process may open %d files; --max-connections, --max-rpcs and --workers may need %d. Remedy: raise "
            "the limit of open files (ulimit -n), or lower these settings",
            allowed,
            needed,
        )


async def _serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    check_exposure(settings.listen, settings.access)
    store = Store(settings.store, settings.limits.max_store_bytes, setting="--store")
    tls, authenticator = load_tls(settings.access), Authenticator(settings.access)
    check_catalogue(settings.backend)
    backend = identify(settings.backend, _device_kind(settings.device))
    metrics, traces = Metrics(), configure_traces(environment())
    admission = Admission(settings.limits, settings.workers)
    pool = WorkerPool(settings, store, backend, admission, metrics)
    builds = BuildService(store, backend, pool, metrics, traces)
    _describe(metrics, settings, store, pool, backend)
    metrics.watch_memory("requests", admission.requests)
    metrics.watch_memory("responses", admission.responses)
    if tls is not None:
        metrics.watch_certificate(tls.expiry)
    reception, parser = Reception(settings, admission), ConfigParser(settings)
    server = grpc.aio.server(
        options=[*_OPTIONS, *_limit_options(settings.limits), *_keepalive_options(settings.connections)],
        interceptors=[RpcInterceptor(metrics, traces, authenticator, reception)],
    )
    _add_servicer(server, Servicer(settings, store, builds, reception, parser, backend, metrics))
    if settings.observe.reflection:
        _add_reflection(server)
    health = Health(("", SERVICE))  # for probes of the server, and of its service
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    stop, stop_at_once = _stop_events()
    background: list[asyncio.Task[None]] = []  # cancelled at the end of the event loop
    try:
        if settings.observe.metrics_listen is not None:
            log.info("metrics on http://%s/metrics", metrics.serve(settings.observe.metrics_listen))
        host, port = _bind(server, settings.listen, None if tls is None else tls.credentials)
        metrics.watch_connections(port, settings.limits.max_connections)
        if (most := settings.limits.max_connections_per_address) is not None:
            background.append(asyncio.create_task(close_excess_connections(port, most)))
        await server.start()
        # A build verifies this server before clients arrive.
        if await _finished_before(stop, builds.warm_up()):
            health.set(serving=True)
            metrics.serving.set(1)
            on_ready(f"{host}:{port}")
            await stop.wait()
        log.info("stopping: RPCs in progress have %g seconds to finish", settings.drain_timeout)
        metrics.serving.set(0)
        health.set(serving=False)
        if not await _finished_before(stop_at_once, _drain(server, settings)):
            log.warning("second signal to stop: RPCs in progress are cancelled")
    finally:
        await server.stop(None)
        pool.close()
        await parser.close()
        metrics.close()
        traces.close()


def _stop_events() -> tuple[asyncio.Event, asyncio.Event]:
    """Return the events that the first and the second signal to stop set."""
    stop, stop_at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stop_at_once if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, stop_at_once


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
    reflection.enable_server_reflection((SERVICE, health, reflection.SERVICE_NAME), server)


async def _finished_before(stop: asyncio.Event, work: Coroutine[object, object, object]) -> bool:
    """Run ``work`` until ``stop`` is set; return whether ``work`` has finished."""
    stopping = asyncio.create_task(stop.wait())
    working = asyncio.create_task(work)
    await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        return False
    await working  # raises the error of the work
    return True


def _add_servicer(server: grpc.aio.Server, servicer: Servicer) -> None:
    """Add the service. ``ReadBlob`` yields serialised messages, so its handler has no serialiser."""
    service, _, method = wire.READ_BLOB.lstrip("/").partition("/")
    read_blob = grpc.unary_stream_rpc_method_handler(
        servicer.ReadBlob,
        request_deserializer=blob_pb2.ReadBlobRequest.FromString,
    )
    handlers = {method: read_blob}
    # gRPC uses the first generic handler and the last registered handler of a method; its version decides which kind.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    service_pb2_grpc.add_ModelFactoryServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


def _limit_options(limits: LimitSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        # gRPC holds the beginning of every request before the RPC counts: so bound this beginning, too.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 64 * KIB),
        ("grpc.max_concurrent_streams", limits.max_rpcs_per_client + _EXTRA_STREAMS),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
    ]


def _keepalive_options(settings: ConnectionSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", round(settings.keepalive_interval * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", round(settings.keepalive_timeout * 1000)),  # else a minute in any case
        ("grpc.server_handshake_timeout_ms", round(settings.keepalive_timeout * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", round(settings.min_ping_interval * 1000)),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _bind(server: grpc.aio.Server, listen: str, tls: grpc.ServerCredentials | None) -> tuple[str, int]:
    host, _, _ = listen.rpartition(":")
    try:
        port = server.add_insecure_port(listen) if tls is None else server.add_secure_port(listen, tls)
    except RuntimeError as error:
        raise ServerError(f"cannot listen on {listen}: {error}. Remedy: choose another --listen") from None
    return host, port


def _device_kind(device: str) -> str:
    """Return ``cpu`` or ``cuda``. ``auto`` looks for device files, since the server process has no CUDA context."""
    if device != "auto":
        return device
    return "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
