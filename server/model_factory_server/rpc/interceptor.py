"""Wraps every RPC of every service: authentication, request id, log line, metrics, span, and errors as statuses."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from model_factory.errors import AccessError, FormatError, ModelFactoryError
from model_factory.v1 import service_pb2, wire
from model_factory_server.access.authenticator import Authenticator, identity_of
from model_factory_server.observe.logs import fields
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import RpcContext, enter_rpc
from model_factory_server.observe.spans import Span, Traces
from model_factory_server.rpc.reception import Reception

log = logging.getLogger(__name__)
access_log = logging.getLogger("model_factory_server.access")

Handler = Any
"""A method's handler; the published stubs lack its fields."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE: str = service_pb2.DESCRIPTOR.services_by_name["ModelFactoryService"].full_name
"""Name of the service, with its package."""

_CAPABILITIES = "GetCapabilities"
_QUIET_SERVICES = frozenset({"grpc.health.v1.Health"})  # called every few seconds: logged at the debug level
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{8,64}")
_MAX_ERROR = 4000  # characters of an error in a log line: the error may quote a client's text
_STATUS_OF = {code.value[0]: code for code in grpc.StatusCode}


class RpcInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Wraps the handlers of all methods."""

    def __init__(self, metrics: Metrics, traces: Traces, authenticator: Authenticator, reception: Reception) -> None:
        self._metrics = metrics
        self._traces = traces
        self._authenticator = authenticator
        self._reception = reception

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the wrapped handler of a method; None for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            labels = ("unary", "unknown", "unknown")
            self._metrics.started.labels(*labels).inc()
            self._metrics.handled.labels(*labels, grpc.StatusCode.UNIMPLEMENTED.name).inc()
            access_log.debug("unknown method %.200r", handler_call_details.method)
            return None
        return self._wrapped(handler, handler_call_details)

    def _wrapped(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        method = _Method.of(handler, details)
        try:
            # Before the request is received: an unauthenticated client must not fill the server's memory.
            token_holder = self._authenticator.token_holder(method.service, method.metadata)
        except AccessError as error:
            return self._refusing(method, error)
        behaviour, decode = getattr(handler, method.arity), handler.request_deserializer or _unchanged
        encode = handler.response_serializer or _unchanged

        async def respond(_requests: Any, context: Context) -> bytes:
            async with self._observed(method, context, token_holder):
                with self._reception.admitted(context, is_probe=method.is_probe):
                    response = await behaviour(await self._request(method, decode, context), context)
                    self._metrics.sent.labels(*method.labels).inc()
                    return cast("bytes", encode(response))

        async def stream(_requests: Any, context: Context) -> AsyncIterator[bytes]:
            async with self._observed(method, context, token_holder):
                with self._reception.admitted(context, is_probe=method.is_probe):
                    sent = self._metrics.sent.labels(*method.labels)
                    request = (
                        self._requests(method, decode, context)
                        if method.streams_requests
                        else await self._request(method, decode, context)
                    )
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            sent.inc()
                            yield encode(response)

        # A request stream is read by the handler; a single request would be received before the handler is called.
        if method.streams_responses:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(respond)

    async def _request(self, method: _Method, decode: Callable[[bytes], Any], context: Context) -> Any:
        """Receive the request of an RPC.

        Raises:
            FormatError: the request cannot be decoded.
        """
        data = await self._reception.receive(context, method.name, is_probe=method.is_probe)
        self._metrics.received.labels(*method.labels).inc()
        return _decoded(decode, data)

    async def _requests(self, method: _Method, decode: Callable[[bytes], Any], context: Context) -> AsyncIterator[Any]:
        """Yield the requests of a stream."""
        async for data in self._reception.receive_each(context):
            self._metrics.received.labels(*method.labels).inc()
            yield _decoded(decode, data)

    def _refusing(self, method: _Method, error: AccessError) -> Handler:
        """Return a handler that refuses the RPC. As a stream, its request messages are never read."""

        async def refuse(_requests: Any, context: Context) -> None:
            async with self._observed(method, context):
                raise error

        return grpc.stream_stream_rpc_method_handler(refuse)

    @asynccontextmanager
    async def _observed(self, method: _Method, context: Context, token_holder: str = "") -> AsyncIterator[None]:
        """Enter the RPC's context, measure the body, and turn errors of the body into statuses."""
        rpc = RpcContext(
            request_id=_request_id(method.metadata), method=f"{method.service}/{method.name}", peer=context.peer() or ""
        )
        started = time.monotonic()
        span = self._traces.rpc(rpc.method, method.metadata)
        rpc.trace_id = span.trace_id
        enter_rpc(rpc)
        self._metrics.started.labels(*method.labels).inc()
        context.set_trailing_metadata(((wire.REQUEST_ID, rpc.request_id),))
        status = grpc.StatusCode.OK.name
        try:
            try:
                rpc.identity = identity_of(token_holder, context.auth_context())
                yield
            except (asyncio.CancelledError, GeneratorExit):
                status = _reason_of_cancellation(context).name
                raise
            except grpc.aio.AbortError:
                raise  # the method has set the status
            except Exception as error:  # noqa: BLE001  every error becomes a status
                await self._abort(error, rpc, context)
        except grpc.aio.AbortError:
            status = _status_of(context)
            raise
        finally:
            self._finish(method, rpc, span, status, time.monotonic() - started)

    def _finish(self, method: _Method, rpc: RpcContext, span: Span, status: str, seconds: float) -> None:
        self._metrics.handled.labels(*method.labels, status).inc()
        self._metrics.handling.labels(*method.labels).observe(seconds)
        span.end(status, {"model_factory.request_id": rpc.request_id, "model_factory.builds": rpc.builds})
        access_log.log(
            logging.DEBUG if method.service in _QUIET_SERVICES else logging.INFO,
            "%s %s in %.1f ms",
            rpc.method,
            status,
            seconds * 1000,
            extra=fields(**rpc.fields(), status=status, duration_ms=round(seconds * 1000, 3)),
        )

    async def _abort(self, error: Exception, rpc: RpcContext, context: Context) -> None:
        """End the RPC with the status of an error; private details are logged only."""
        rpc.error = (str(error) or type(error).__name__)[:_MAX_ERROR]
        if not isinstance(error, ModelFactoryError):
            log.error("%s failed", rpc.method, exc_info=error)
        status = wire.to_status(error, rpc.component, rpc.request_id)
        metadata = (*status.trailing_metadata, (wire.REQUEST_ID, rpc.request_id))
        await context.abort(status.code, status.details, metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    """One RPC's method and metadata."""

    service: str
    """Name of the service, with its package."""
    name: str
    """Name of the method."""
    streams_requests: bool
    """Whether the client sends a stream."""
    streams_responses: bool
    """Whether the server sends a stream."""
    metadata: tuple[tuple[str, str | bytes], ...]
    """Metadata from the client."""

    @classmethod
    def of(cls, handler: Handler, details: grpc.HandlerCallDetails) -> _Method:
        service, _, name = details.method.lstrip("/").rpartition("/")
        return cls(
            service=service,
            name=name,
            streams_requests=handler.request_streaming,
            streams_responses=handler.response_streaming,
            metadata=tuple(details.invocation_metadata or ()),
        )

    @property
    def arity(self) -> str:
        """The handler's attribute: ``unary_stream`` for example."""
        return "_".join("stream" if streams else "unary" for streams in (self.streams_requests, self.streams_responses))

    @property
    def is_probe(self) -> bool:
        """Whether the RPC belongs to health, reflection or capabilities, which have a count of their own."""
        return self.service != SERVICE or self.name == _CAPABILITIES

    @property
    def labels(self) -> tuple[str, str, str]:
        """Labels of the metrics: type, service and method."""
        types = {"unary_unary": "unary", "unary_stream": "server_stream", "stream_unary": "client_stream"}
        return types.get(self.arity, "bidi_stream"), self.service, self.name


def _unchanged(message: Any) -> Any:
    return message


def _decoded(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except DecodeError:
        raise FormatError("the request is not a message of this method. Remedy: use the published protocol") from None


def _status_of(context: Context) -> str:
    code: Any = context.code()  # an int at run time
    return code.name if isinstance(code, grpc.StatusCode) else _STATUS_OF.get(code, grpc.StatusCode.UNKNOWN).name


def _reason_of_cancellation(context: Context) -> grpc.StatusCode:
    left: float | None = context.time_remaining()
    return grpc.StatusCode.DEADLINE_EXCEEDED if left is not None and left <= 0 else grpc.StatusCode.CANCELLED


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the request id of the metadata if well-formed, else a new id."""
    for key, value in metadata:
        if key == wire.REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
