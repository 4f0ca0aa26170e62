"""A connection to one server: channel, deadlines, and errors as exceptions of this package."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.experimental

from model_factory.client.address import parse_address, proxy_note, proxy_options
from model_factory.client.after_fork import check_fork, forget_in_children
from model_factory.client.credentials import Credentials
from model_factory.client.retry import Backoff
from model_factory.config import ResolvedConfig
from model_factory.documents import FORMAT
from model_factory.errors import ServerError, UnavailableError
from model_factory.limits import BLOB_CHUNK_BYTES, MAX_MESSAGE_BYTES, UNCOMPRESSED_ONLY
from model_factory.v1 import blob_pb2, capabilities_pb2, service_pb2_grpc, wire

RETRY_ATTEMPTS = 4
"""Attempts of one RPC, the first included."""

KEEPALIVE_SECONDS = 60
"""Time between pings; a server accepts pings at twice this rate."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    UNCOMPRESSED_ONLY,
    ("grpc.service_config_disable_resolution", 1),  # no settings from a name server
    ("grpc.enable_retries", 0),  # gRPC waits as long as a server asks for, a year for example
    ("grpc.use_local_subchannel_pool", 1),
    # The caller of a stream reads the messages, without a thread in between.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    # Larger pieces of a blob and fewer flow-control frames take less processor time.
    ("grpc.http2.max_frame_size", 2 * BLOB_CHUNK_BYTES),
    ("grpc.http2.lookahead_bytes", 8 * BLOB_CHUNK_BYTES),
    # With the defaults, a channel can take two minutes to notice that a server has restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Pings keep idle connections alive in load balancers, and detect a dead server during builds of hours.
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # default: a minute, independent of keepalive_timeout_ms
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

_SERVING = "SERVING"
_POLL_SECONDS = 0.5

STALL_SECONDS = 60.0
"""Maximum time without data before a blob stream is cancelled."""


class Connection:
    """A channel to a server, opened at the first RPC. A copy in another process opens a channel of its own."""

    def __init__(
        self,
        address: str,
        timeout: float | None = None,
        credentials: Credentials | None = None,
        shared_store: str = "",
        *,
        is_offline: bool = False,
    ) -> None:
        """Prepare a connection to the server at ``address``; the first RPC connects, or fails with ``is_offline``.

        Raises:
            ServerError: ``address`` is not an address.
            ModelFactoryError: an environment variable of this package has an invalid value.
        """
        self.address = parse_address(address).text
        self._options = [*_OPTIONS, *proxy_options()]
        self.timeout = timeout
        self.credentials = Credentials.from_environment() if credentials is None else credentials
        self._shared_store = shared_store
        self.is_offline = is_offline
        self._lock = threading.Lock()
        self._stub: service_pb2_grpc.ModelFactoryServiceStub | None = None
        self._channel: grpc.Channel | None = None
        self._capabilities: capabilities_pb2.GetCapabilitiesResponse | None = None
        self._channels_of_parents: list[grpc.Channel | None] = []
        forget_in_children(self)

    def forget_parent(self) -> None:
        """Drop lock and channel of the parent in a forked process.

        The channel stays open and unused: closing the channel would end the connection of the parent.
        """
        self._lock = threading.Lock()
        self._channels_of_parents.append(self._channel)
        self._channel = self._stub = None

    def __reduce__(self) -> tuple[Any, tuple[str, float | None, Credentials, str]]:
        # Credentials hold names of files, never secrets.
        make = functools.partial(Connection, is_offline=self.is_offline)
        return (make, (self.address, self.timeout, self.credentials, self._shared_store))

    def __deepcopy__(self, _memo: Mapping[int, Any]) -> Connection:
        return self

    @property
    def stub(self) -> Any:
        """The generated stub.

        Raises:
            ServerError: an RPC would hang in this forked process.
        """
        check_fork()
        with self._lock:
            if self._stub is None:
                self._stub = service_pb2_grpc.ModelFactoryServiceStub(self._open())  # type: ignore[no-untyped-call]
            return self._stub

    @property
    def channel(self) -> grpc.Channel:
        """The channel, for RPCs of other services on the same connection; raises like :attr:`stub`."""
        check_fork()
        with self._lock:
            return self._open()

    def call(self, method: str, request: Any) -> Any:
        """Call a method with a single response; repeat the RPC a few times while the server cannot be reached.

        Raises:
            grpc.RpcError: the RPC failed, or all attempts failed.
        """
        backoff = Backoff()
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        for left in reversed(range(RETRY_ATTEMPTS)):
            seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return getattr(self.stub, method)(request, timeout=seconds)
            except grpc.RpcError as error:
                is_late = deadline is not None and time.monotonic() >= deadline
                if left == 0 or is_late or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            backoff.wait()
        raise AssertionError

    def read_blob(self, request: blob_pb2.ReadBlobRequest) -> Iterator[memoryview]:
        """Call ``ReadBlob`` and yield the data of each message without a copy.

        A stream without data for ``STALL_SECONDS`` is cancelled, and fails like a broken network connection.

        Raises:
            grpc.RpcError: the stream broke.
        """
        call: Any = self.channel.unary_stream(
            wire.READ_BLOB,
            request_serializer=blob_pb2.ReadBlobRequest.SerializeToString,
            response_deserializer=wire.chunk_of,
        )
        return _cancel_when_stalled(call(request), STALL_SECONDS)

    def health(self, timeout: float) -> str:
        """Return the status of the server's health service: ``SERVING`` for a server that accepts builds.

        Raises:
            ServerError: the server cannot be reached, or has no health service.
        """
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415  for probes, not for builds

        with self.errors():
            response = health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        return status

    def wait(self, timeout: float) -> None:
        """Wait until the server accepts builds: until the health status is ``SERVING``.

        Raises:
            UnavailableError: the server does not accept builds after ``timeout`` seconds.
            ServerError: the server refuses this client, or has no health service.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                status = self.health(max(left, 0.1))
                if status == _SERVING:
                    return
                found = f"the health status of the model-factory server at {self.address} is {status}"
            except UnavailableError as error:
                found = str(error)
            if time.monotonic() + _POLL_SECONDS >= deadline:
                raise UnavailableError(
                    f"waited {timeout:g} s: {found}. Remedy: check with `model-factory doctor --server "
                    f"{self.address}`, or wait longer"
                )
            time.sleep(_POLL_SECONDS)

    def _open(self) -> grpc.Channel:
        if self.is_offline:
            raise UnavailableError(
                f"the server at {self.address} is not called, since this factory is offline. Remedy: offline=None, or "
                "unset MODEL_FACTORY_OFFLINE"
            )
        if self._channel is None:
            self._channel = self.credentials.open(self.address, self._options)
        return self._channel

    def close(self) -> None:
        """Close the channel; the next RPC opens a new channel."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = self._stub = self._capabilities = None

    def capabilities(self) -> capabilities_pb2.GetCapabilitiesResponse:
        """Return versions and limits of the server; one RPC per connection.

        Raises:
            ServerError: the server uses another version of the formats.
        """
        if self._capabilities is None:
            with self.errors():
                response = self.call("GetCapabilities", capabilities_pb2.GetCapabilitiesRequest())
            if response.format_version != FORMAT:
                raise ServerError(
                    f"the server at {self.address} (version {response.server_version}) uses format "
                    f"{response.format_version}, this client format {FORMAT}. Remedy: install the same version on both"
                )
            self._capabilities = response
        return self._capabilities

    def server_identity(self) -> str:
        """Return a digest of the server's identity; see ``Credentials.server_identity``.

        Raises:
            AccessError: a file of the credentials cannot be read.
        """
        return self.credentials.server_identity(self.address)

    def shared_stores(self) -> list[tuple[str, bool]]:
        """Folders where this node may see the server's store, each with whether the folder's owner is trusted.

        A folder from this node's own settings is trusted. A folder named by the server is a hint of an untrusted peer.
        """
        hint = "" if self._capabilities is None else self._capabilities.store_path
        return [(place, is_trusted) for place, is_trusted in ((self._shared_store, True), (hint, False)) if place]

    @contextmanager
    def errors(self, configs: Mapping[str, ResolvedConfig] | None = None) -> Iterator[None]:
        """Raise failed RPCs as exceptions of this package, with places in ``configs`` (by component name)."""

        def place_of(component: str, path: tuple[str | int, ...]) -> str:
            config = (configs or {}).get(component)
            return config.place_of(path) if config is not None else component

        try:
            yield
        except grpc.RpcError as error:
            raise wire.from_rpc_error(
                error, f"{self.address}{proxy_note(is_direct=self.credentials.is_direct)}", place_of
            ) from None


def _cancel_when_stalled(call: Any, seconds: float) -> Iterator[memoryview]:
    """Yield the messages of a stream; cancel the stream after ``seconds`` without a message."""
    latest = time.monotonic()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(min(1.0, seconds)):
            if time.monotonic() - latest > seconds:
                call.cancel()
                return

    threading.Thread(target=watch, name="stream watch", daemon=True).start()
    try:
        for data in call:
            latest = time.monotonic()
            yield data
            latest = time.monotonic()
    finally:
        ended.set()
        call.cancel()  # no effect on a call that has ended
