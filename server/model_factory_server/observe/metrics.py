"""What is counted, for Prometheus. Every label has a closed set of values: nothing a client sends becomes one."""

from __future__ import annotations

import math
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from model_factory.errors import ServerError
from model_factory_server.observe.gpu import GpuCollector

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_CALL = ("grpc_type", "grpc_service", "grpc_method")
_CALL_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_STAGE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_ESTABLISHED = "01"  # of the kernel's tcp_states.h
_WALK_SECONDS = 15.0  # a store of many files takes a while to walk, and scrapers may be many


class Workers(Protocol):
    """What metrics ask the worker pool at every scrape."""

    @property
    def queued(self) -> int:
        """Jobs that wait for a builder."""

    @property
    def running(self) -> int:
        """Builder processes at work."""


class Metrics:
    """Everything that this server counts; :meth:`serve` shows it over HTTP."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # two more series for each, which nobody asks for
        self.registry = registry = CollectorRegistry()
        self.started = Counter("grpc_server_started", "Calls that have begun.", _CALL, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "Calls that have ended, by status code.", (*_CALL, "grpc_code"), registry=registry
        )
        self.received = Counter("grpc_server_msg_received", "Messages from clients.", _CALL, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages to clients.", _CALL, registry=registry)
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's arrival to its end.",
            _CALL,
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self.jobs = Counter(
            "model_factory_jobs",
            "Jobs of builder processes that have ended: by kind, and by OK or the reason of the error.",
            ("kind", "outcome"),
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "model_factory_stage_seconds",
            "Time that a job spent in a stage.",
            ("kind", "stage"),
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.lookups = Counter(
            "model_factory_store_lookups",
            "Components asked for: hit, found in the store; joined, being built for another call; miss, built.",
            ("result",),
            registry=registry,
        )
        for result in ("hit", "joined", "miss"):
            self.lookups.labels(result)
        self.blob_bytes = Counter("model_factory_blob_sent_bytes", "Bytes of blobs sent.", registry=registry)
        self.evicted_bytes = Counter(
            "model_factory_store_evicted_bytes",
            "Bytes of blobs that left the store to make room for others.",
            registry=registry,
        )
        self.serving = Gauge(
            "model_factory_serving", "1 while the health service says SERVING, else 0.", registry=registry
        )
        self._certificate_expiry = Gauge(
            "model_factory_certificate_expiry_timestamp_seconds",
            "When the server's certificate expires, in seconds since the epoch; infinity without TLS.",
            registry=registry,
        )
        self._certificate_expiry.set(math.inf)
        self._queued = Gauge("model_factory_queue_jobs", "Jobs that wait for a builder.", registry=registry)
        self._workers = Gauge("model_factory_workers", "Builder processes at work.", registry=registry)
        self._slots = Gauge("model_factory_worker_slots", "Builder processes at most.", registry=registry)
        self._connections = Gauge("model_factory_connections", "Open connections of clients.", registry=registry)
        self._max_connections = Gauge(
            "model_factory_max_connections", "Open connections of clients at most.", registry=registry
        )
        self._info = Gauge(
            "model_factory_build_info",
            "Always 1; what this server is.",
            ("version", "backend", "torch_version", "device_kind"),
            registry=registry,
        )
        self._server: WSGIServer | None = None
        ProcessCollector(registry=registry)
        GpuCollector.add_to(registry)

    def describe(self, *, version: str, backend: str, torch_version: str, device_kind: str) -> None:
        """Say what this server is."""
        self._info.labels(version, backend, torch_version, device_kind).set(1)

    def watch(self, workers: Workers, slots: int, store: Path) -> None:
        """Ask the worker pool and the store at every scrape."""
        self._queued.set_function(lambda: workers.queued)
        self._workers.set_function(lambda: workers.running)
        self._slots.set(slots)
        self.registry.register(_StoreCollector(store))

    def watch_certificate(self, expiry: Callable[[], float]) -> None:
        """Ask at every scrape when the certificate in use expires."""

        def ask() -> float:
            try:
                return expiry()
            except ServerError:
                return math.nan

        self._certificate_expiry.set_function(ask)

    def watch_connections(self, port: int, most: int) -> None:
        """Ask the kernel at every scrape how many connections the port of calls has."""
        self._connections.set_function(lambda: _connections_to(port))
        self._max_connections.set(most)

    def serve(self, listen: str) -> str:
        """Answer scrapes at ``HOST:PORT``, in a thread; return the address.

        Raises:
            ServerError: the address cannot be bound.
        """
        host, _, port = listen.rpartition(":")
        try:
            self._server, _thread = start_http_server(int(port), host.strip("[]"), self.registry)
        except (OSError, ValueError, OverflowError) as error:
            raise ServerError(f"cannot serve metrics on {listen}: {error}. Remedy: another --metrics-listen") from None
        return f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Answer no more scrapes."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _connections_to(port: int) -> int:
    count = 0
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), Path("/proc/self/net", name).open(encoding="ascii") as table:  # of Linux
            next(table)
            for line in table:
                _, local, _, state, *_ = line.split()
                count += local.endswith(f":{port:04X}") and state == _ESTABLISHED
    return count


class _StoreCollector(Collector):
    """Size of the store's folders. Walked at most every few seconds, in the thread that answers the scrape."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._walked = -_WALK_SECONDS
        self._found: dict[str, tuple[int, int]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            if time.monotonic() - self._walked >= _WALK_SECONDS:
                self._found = {name: _size(self._store / name) for name in ("blobs", "records", "staging")}
                self._walked = time.monotonic()
            found = dict(self._found)
        sizes = GaugeMetricFamily("model_factory_store_bytes", "Bytes in the store.", labels=["kind"])
        files = GaugeMetricFamily("model_factory_store_files", "Files in the store.", labels=["kind"])
        for name, (count, size) in found.items():
            files.add_metric([name], count)
            sizes.add_metric([name], size)
        yield sizes
        yield files
        with suppress(OSError):  # gone: the rest is still told
            free = shutil.disk_usage(self._store).free
            yield GaugeMetricFamily("model_factory_store_free_bytes", "Free on the store's file system.", value=free)

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # asked when registered: nothing is walked for it


def _size(folder: Path) -> tuple[int, int]:
    count = size = 0
    with suppress(OSError):  # a disk that fails: the rest is still told
        for path in folder.rglob("*"):
            try:
                found = path.lstat()
            except (FileNotFoundError, PermissionError):
                continue
            if stat.S_ISREG(found.st_mode):
                count += 1
                size += found.st_size
    return count, size
