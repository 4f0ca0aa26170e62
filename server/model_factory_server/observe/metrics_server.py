"""Serves the page of metrics over HTTP, to a bounded number of connections, each with a deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from model_factory_server.access.client_counts import ClientCounts
from model_factory_server.access.networks import network_of

MAX_CONNECTIONS = 32
"""Connections at the same time; an excess connection is closed at once."""

MAX_CONNECTIONS_OF_ADDRESS = 8
"""Connections of one IPv4 address, or of one /64 network of IPv6, at the same time."""

CONNECTION_SECONDS = 30.0
"""Time of a connection, from the request to the end of the page."""

_RENDER_SECONDS = 0.1  # from one page to the next: rendering takes processor time from every RPC
_POLL_SECONDS = 0.1  # from a call of ``stop()`` to the end
_PATHS = ("/metrics", "/")


class MetricsServer(ThreadingMixIn, WSGIServer):
    """The HTTP server, in a thread."""

    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS  # connections that wait to be accepted or closed
    address_family = socket.AF_INET

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lock = threading.Lock()
        self._connections = ClientCounts(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ADDRESS)

    @classmethod
    def start(cls, host: str, port: int, registry: CollectorRegistry) -> MetricsServer:
        """Serve the metrics of a registry.

        Raises:
            OSError: the address cannot be bound.

        Example:
            >>> server = MetricsServer.start("127.0.0.1", 0, CollectorRegistry())
            >>> server.stop()
        """
        family, _, _, _, address = socket.getaddrinfo(host or None, port, flags=socket.AI_PASSIVE)[0]
        of_family = type("_MetricsServer", (cls,), {"address_family": family})
        server: MetricsServer = make_server(str(address[0]), port, _Page(registry), of_family, _QuietHandler)
        threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True).start()
        return server

    def stop(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close the connection."""
        with self._lock:
            is_counted = self._connections.add(network_of(client_address[0]))
        if is_counted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection until its deadline."""
        deadline = threading.Timer(CONNECTION_SECONDS, _cut, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            with self._lock:
                self._connections.remove(network_of(client_address[0]))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that break: a scraper comes again, and an untrusted peer must not fill the log."""


class _Page:
    """The WSGI application: renders the page at most ten times per second, for all scrapers that wait."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._begun = 0.0
        self._page = b""

    def __call__(self, request: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if request["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return [b""]
        if request["PATH_INFO"] not in _PATHS:
            start_response("404 Not Found", [])
            return [b""]
        page = self._rendered_after(time.monotonic())
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", str(len(page)))])
        return [page]

    def _rendered_after(self, arrival: float) -> bytes:
        with self._lock:
            if self._begun < arrival:
                time.sleep(max(0.0, self._begun + _RENDER_SECONDS - time.monotonic()))
                self._begun = time.monotonic()
                self._page = generate_latest(self._registry)
            return self._page


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  a name of http.server
        """Write nothing: a scrape is no event."""


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
