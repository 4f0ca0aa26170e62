"""A connection to one server: channel, deadlines, errors, and the node's cache in front of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.experimental

from model_factory.client.address import parse_address
from model_factory.client.after_fork import check_fork, forget_in_children
from model_factory.client.credentials import Credentials
from model_factory.client.proxy import proxy_note, proxy_option
from model_factory.config import ResolvedConfig
from model_factory.documents import FORMAT
from model_factory.errors import ServerError
from model_factory.limits import BLOB_CHUNK_BYTES, MAX_MESSAGE_BYTES
from model_factory.v1 import blob_pb2, capabilities_pb2, service_pb2_grpc, wire

RETRY_ATTEMPTS = 4
KEEPALIVE_SECONDS = 60
"""Between pings; a server lets them through that come twice as often."""

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "model_factory.v1.ModelFactoryService"}],
            "retryPolicy": {
                "maxAttempts": RETRY_ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.use_local_subchannel_pool", 1),
    # Streams are read by who asks for the next message, without a thread in between.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    # A blob comes in larger pieces and with fewer words about how much more may come, for less processor time.
    ("grpc.http2.max_frame_size", 2 * BLOB_CHUNK_BYTES),
    ("grpc.http2.lookahead_bytes", 8 * BLOB_CHUNK_BYTES),
    # By default a channel whose server was away may not notice for two minutes that it is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Idle connections stay known to what lies between, and a server that vanished is noticed, builds of hours or not.
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # else a minute, whatever the line before says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

STALL_SECONDS = 60.0
"""That a stream may bring nothing, although the other side answers pings."""


class Connection:
    """Opened on first use; an unpickled one opens its own, and so does a forked process."""

    def __init__(
        self,
        address: str,
        timeout: float | None = None,
        credentials: Credentials | None = None,
        shared_store: str = "",
    ) -> None:
        """Make a connection to the server at ``address``.

        Raises:
            ServerError: ``address`` is no address.
            ModelFactoryError: an environment variable of this package's has no value that it can have.
        """
        self.address = parse_address(address).text
        self._options = [*_OPTIONS, proxy_option()]
        self.timeout = timeout
        self.credentials = Credentials.from_environment() if credentials is None else credentials
        self._shared_store = shared_store
        self._lock = threading.Lock()
        self._stub: service_pb2_grpc.ModelFactoryServiceStub | None = None
        self._channel: grpc.Channel | None = None
        self._capabilities: capabilities_pb2.GetCapabilitiesResponse | None = None
        self._inherited: list[grpc.Channel | None] = []
        forget_in_children(self)

    def forget_parent(self) -> None:
        """Drop lock and channel of the parent in a forked process.

        The channel is kept unused: its end would be told to the server, on the connection that the parent uses.
        """
        self._lock = threading.Lock()
        self._inherited.append(self._channel)
        self._channel = self._stub = None

    def __reduce__(self) -> tuple[type[Connection], tuple[str, float | None, Credentials, str]]:
        # Names of files, and nothing secret.
        return (Connection, (self.address, self.timeout, self.credentials, self._shared_store))

    def __deepcopy__(self, _memo: Mapping[int, Any]) -> Connection:
        return self

    @property
    def stub(self) -> Any:
        """The generated stub.

        Raises:
            ServerError: an RPC would hang in this process, which was forked.
        """
        check_fork()
        with self._lock:
            if self._stub is None:
                self._stub = service_pb2_grpc.ModelFactoryServiceStub(self._open())  # type: ignore[no-untyped-call]
            return self._stub

    @property
    def channel(self) -> grpc.Channel:
        """The channel, for calls of other services on the same connection; raises as :attr:`stub` does."""
        check_fork()
        with self._lock:
            return self._open()

    def read_blob(self, request: blob_pb2.ReadBlobRequest) -> Iterator[memoryview]:
        """Call ``ReadBlob`` and yield its data as it comes, not parsed into messages.

        A stream from which nothing comes for ``STALL_SECONDS`` is broken off, as if the network had broken it.

        Raises:
            grpc.RpcError: the stream broke.
        """
        call: Any = self.channel.unary_stream(
            wire.READ_BLOB,
            request_serializer=blob_pb2.ReadBlobRequest.SerializeToString,
            response_deserializer=wire.chunk_of,
        )
        return _watched(call(request), STALL_SECONDS)

    def health(self, timeout: float) -> str:
        """Ask the server's health service; return its answer: ``SERVING`` if all is well.

        Raises:
            ServerError: there is no answer, or none of a health service.
        """
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415  for probes alone, not for builds

        with self.errors():
            answer = health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return status

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = self.credentials.open(self.address, self._options)
        return self._channel

    def close(self) -> None:
        """Close the channel; the next call opens another."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = self._stub = self._capabilities = None

    def capabilities(self) -> capabilities_pb2.GetCapabilitiesResponse:
        """What the server is and accepts; asked once.

        Raises:
            ServerError: the server speaks another version of the formats.
        """
        if self._capabilities is None:
            with self.errors():
                answer = self.stub.GetCapabilities(capabilities_pb2.GetCapabilitiesRequest(), timeout=self.timeout)
            if answer.format_version != FORMAT:
                raise ServerError(
                    f"the server at {self.address} (version {answer.server_version}) speaks format "
                    f"{answer.format_version}, this client format {FORMAT}. Remedy: install the same version on both"
                )
            self._capabilities = answer
        return self._capabilities

    def server_identity(self) -> str:
        """Return a digest of who answers, as far as the credentials can tell; see ``Credentials.server_identity``.

        Raises:
            AccessError: a file of the credentials cannot be read.
        """
        return self.credentials.server_identity(self.address)

    def shared_stores(self) -> list[tuple[str, bool]]:
        """Where the server's store may be seen from here, and whether this node trusts who may write there.

        It does where it was told the place itself; a place that the server says is a stranger's word.
        """
        hint = "" if self._capabilities is None else self._capabilities.store_path
        return [(place, is_trusted) for place, is_trusted in ((self._shared_store, True), (hint, False)) if place]

    @contextmanager
    def errors(self, configs: Mapping[str, ResolvedConfig] | None = None) -> Iterator[None]:
        """Raise failed calls as exceptions of this package, with places in ``configs`` (by component name)."""

        def place_of(component: str, path: tuple[str | int, ...]) -> str:
            config = (configs or {}).get(component)
            return config.place_of(path) if config is not None else component

        try:
            yield
        except grpc.RpcError as error:
            raise wire.from_rpc_error(error, f"{self.address}{proxy_note()}", place_of) from None


def _watched(call: Any, seconds: float) -> Iterator[memoryview]:
    """Yield what a stream brings; cancel it when nothing has come for so long."""
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
        call.cancel()  # of one that has ended it does nothing
