"""Metrics for Prometheus. Every label has a closed set of values; no text of a client becomes a label."""

from __future__ import annotations

import math
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from model_factory.errors import ServerError
from model_factory_server.observe.gpu import GpuCollector
from model_factory_server.observe.metrics_server import MetricsServer

_RPC = ("grpc_type", "grpc_service", "grpc_method")
_RPC_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_STAGE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_ESTABLISHED = "01"  # of the kernel's tcp_states.h
_WALK_SECONDS = 15.0  # walking a large store is slow, and several scrapers may ask


class Workers(Protocol):
    """The part of the worker pool that every scrape reads."""

    @property
    def queued(self) -> int:
        """Number of jobs waiting for a worker."""

    @property
    def running(self) -> int:
        """Number of running workers."""


class Shares(Protocol):
    """A capacity that is shared among clients, in bytes."""

    capacity: int
    """The whole amount."""
    free: int
    """Amount that nobody holds."""
    waiting: int
    """Number of waiting claims."""


class Metrics:
    """All metrics of this server; :meth:`serve` exposes the metrics over HTTP."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # else every counter has an extra series
        self.registry = registry = CollectorRegistry()
        self.started = Counter("grpc_server_started", "RPCs that have begun.", _RPC, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "RPCs that have ended, by status code.", (*_RPC, "grpc_code"), registry=registry
        )
        self.received = Counter("grpc_server_msg_received", "Messages from clients.", _RPC, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages to clients.", _RPC, registry=registry)
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Time from the arrival of an RPC to its end.",
            _RPC,
            buckets=_RPC_SECONDS,
            registry=registry,
        )
        self.jobs = Counter(
            "model_factory_jobs",
            "Finished jobs of workers, by kind and outcome: OK or the reason of the error.",
            ("kind", "outcome"),
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "model_factory_stage_seconds",
            "Time of a job in a stage.",
            ("kind", "stage"),
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.lookups = Counter(
            "model_factory_store_lookups",
            "Requested components: hit, found in the store; joined, already being built for another RPC; miss, built.",
            ("result",),
            registry=registry,
        )
        for result in ("hit", "joined", "miss"):
            self.lookups.labels(result)
        self.blob_bytes = Counter("model_factory_blob_sent_bytes", "Bytes of blobs sent.", registry=registry)
        self.evicted_bytes = Counter(
            "model_factory_store_evicted_bytes",
            "Bytes of blobs evicted from the store.",
            registry=registry,
        )
        self.damaged_blobs = Counter(
            "model_factory_store_damaged_blobs",
            "Blobs that a client reported as damaged, that the disk had changed, and that are removed.",
            registry=registry,
        )
        self.fork_server_replacements = Counter(
            "model_factory_fork_server_replacements",
            "Fork servers started in the place of another one: after a crash of a worker, or after the process's end.",
            registry=registry,
        )
        self._add_gauges(registry)

    def _add_gauges(self, registry: CollectorRegistry) -> None:
        self.serving = Gauge(
            "model_factory_serving", "1 while the health status is SERVING, else 0.", registry=registry
        )
        self._certificate_expiry = Gauge(
            "model_factory_certificate_expiry_timestamp_seconds",
            "Expiry of the server's certificate, in seconds since the epoch; infinity without TLS.",
            registry=registry,
        )
        self._certificate_expiry.set(math.inf)
        self._queued = Gauge("model_factory_queue_jobs", "Jobs waiting for a worker.", registry=registry)
        self._workers = Gauge("model_factory_workers", "Running workers.", registry=registry)
        self._slots = Gauge("model_factory_worker_slots", "Maximum number of workers.", registry=registry)
        self._held_bytes = Gauge(
            "model_factory_held_bytes", "Memory held for messages of clients.", ("kind",), registry=registry
        )
        self._max_held_bytes = Gauge(
            "model_factory_max_held_bytes", "Upper bound of the memory for messages.", ("kind",), registry=registry
        )
        self._waiting = Gauge(
            "model_factory_waiting_messages", "Messages waiting for memory.", ("kind",), registry=registry
        )
        self._connections = Gauge("model_factory_connections", "Open connections of clients.", registry=registry)
        self._max_connections = Gauge(
            "model_factory_max_connections", "Maximum number of open connections of clients.", registry=registry
        )
        self._info = Gauge(
            "model_factory_build_info",
            "Always 1; the labels identify the server.",
            ("version", "backend", "torch_version", "device_kind"),
            registry=registry,
        )
        self._server: MetricsServer | None = None
        ProcessCollector(registry=registry)
        GpuCollector.add_to(registry)

    def describe(self, *, version: str, backend: str, torch_version: str, device_kind: str) -> None:
        """Set the labels that identify the server."""
        self._info.labels(version, backend, torch_version, device_kind).set(1)

    def watch(self, workers: Workers, slots: int, store: Path) -> None:
        """Read the worker pool and the store at every scrape."""
        self._queued.set_function(lambda: workers.queued)
        self._workers.set_function(lambda: workers.running)
        self._slots.set(slots)
        self.registry.register(_StoreCollector(store))

    def watch_memory(self, kind: str, shares: Shares) -> None:
        """Read the memory held for messages of a kind, ``requests`` or ``responses``, at every scrape."""
        self._held_bytes.labels(kind).set_function(lambda: shares.capacity - shares.free)
        self._max_held_bytes.labels(kind).set(shares.capacity)
        self._waiting.labels(kind).set_function(lambda: shares.waiting)

    def watch_certificate(self, expiry: Callable[[], float]) -> None:
        """Read the expiry of the certificate in use at every scrape."""

        def read() -> float:
            try:
                return expiry()
            except ServerError:
                return math.nan

        self._certificate_expiry.set_function(read)

    def watch_connections(self, port: int, most: int) -> None:
        """Count the connections of the RPC port at every scrape; ``most`` is their limit."""
        self._connections.set_function(lambda: _connections_to(port))
        self._max_connections.set(most)

    def serve(self, listen: str) -> str:
        """Serve ``/metrics`` at ``HOST:PORT`` in a thread; return the address.

        Raises:
            ServerError: the address cannot be bound.
        """
        host, _, port = listen.rpartition(":")
        try:
            self._server = MetricsServer.start(host.strip("[]"), int(port), self.registry)
        except (OSError, ValueError, OverflowError) as error:
            raise ServerError(
                f"cannot serve metrics on {listen}: {error}. Remedy: choose another --metrics-listen"
            ) from None
        return f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop()


def _connections_to(port: int) -> int:
    count = 0
    for name in ("tcp", "tcp6"):
        with (
            suppress(FileNotFoundError),
            Path("/proc/self/net", name).open(encoding="ascii") as table,
        ):  # Linux's tables
            next(table)
            for line in table:
                _, local, _, state, *_ = line.split()
                count += local.endswith(f":{port:04X}") and state == _ESTABLISHED
    return count


class _StoreCollector(Collector):
    """Sizes of the store's folders, walked at most every few seconds in the thread of the scrape."""

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
        with suppress(OSError):  # the store is gone: the other metrics remain
            free = shutil.disk_usage(self._store).free
            yield GaugeMetricFamily(
                "model_factory_store_free_bytes", "Free bytes of the store's file system.", value=free
            )

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # called at registration: walk no folder


def _size(folder: Path) -> tuple[int, int]:
    count = size = 0
    with suppress(OSError):  # a failing disk: the other metrics remain
        for path in folder.rglob("*"):
            try:
                found = path.lstat()
            except (FileNotFoundError, PermissionError):
                continue
            if stat.S_ISREG(found.st_mode):
                count += 1
                size += found.st_size
    return count, size
