"""Around every call, of whatever service: its request id, log line, metrics and span, and what its errors become."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from model_factory.errors import AccessError, ModelFactoryError
from model_factory.v1 import wire
from model_factory_server.access.access import Access
from model_factory_server.observe.logs import fields
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import Call, enter_call
from model_factory_server.observe.spans import Traces

log = logging.getLogger(__name__)
access = logging.getLogger("model_factory_server.access")

Handler = Any
"""A method's handler; the published stubs lack its fields."""

_QUIET = frozenset({"grpc.health.v1.Health"})  # asked every few seconds: its lines are for --log-level debug
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:-]{8,64}")
_MAX_ERROR = 4000  # characters of an error in a log line: it may show what a client sent
_STATUS_OF = {code.value[0]: code for code in grpc.StatusCode}


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Wraps the handlers of all methods."""

    def __init__(self, metrics: Metrics, traces: Traces, access: Access) -> None:
        self._metrics = metrics
        self._traces = traces
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler with everything around it; None for a method that nobody has."""
        handler = await continuation(handler_call_details)
        if handler is None:
            labels = ("unary", "unknown", "unknown")
            self._metrics.started.labels(*labels).inc()
            self._metrics.handled.labels(*labels, grpc.StatusCode.UNIMPLEMENTED.name).inc()
            access.debug("nobody has the method %.200r", handler_call_details.method)
            return None
        return self._wrapped(handler, handler_call_details)

    def _wrapped(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        side = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        behaviour = getattr(handler, "_".join(side))
        service, _, name = details.method.lstrip("/").rpartition("/")
        method = _Method(labels=(_grpc_type(*side), service, name), metadata=tuple(details.invocation_metadata or ()))
        try:
            holder = self._access.holder(service, method.metadata)
        except AccessError as error:
            return self._refused(method, error)

        async def answer(request: Any, context: Any) -> Any:
            async with self._answering(method, context, holder):
                response = await behaviour(self._counted(request, method, side[0]), context)
                if side[1] == "unary":
                    self._metrics.sent.labels(*method.labels).inc()
                return response

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with (
                self._answering(method, context, holder),
                aclosing(behaviour(self._counted(request, method, side[0]), context)) as responses,
            ):
                sent = self._metrics.sent.labels(*method.labels)
                async for response in responses:
                    sent.inc()
                    yield response

        make = getattr(grpc, f"{'_'.join(side)}_rpc_method_handler")
        return make(
            stream if inspect.isasyncgenfunction(behaviour) else answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _refused(self, method: _Method, error: AccessError) -> Handler:
        """Handle a call that is refused before its request is received: as one of streams, which nobody reads."""

        async def refuse(_requests: Any, context: Any) -> None:
            async with self._answering(method, context):
                raise error

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _counted(self, request: Any, method: _Method, side: str) -> Any:
        received = self._metrics.received.labels(*method.labels)
        if side == "unary":
            received.inc()
            return request

        async def requests() -> AsyncIterator[Any]:
            async for item in request:
                received.inc()
                yield item

        return requests()

    @asynccontextmanager
    async def _answering(self, method: _Method, context: Any, holder: str = "") -> AsyncIterator[None]:
        """Everything that is done for one call; errors leave it as statuses."""
        call = Call(
            request_id=_request_id(method.metadata), method="/".join(method.labels[1:]), peer=context.peer() or ""
        )
        started = time.monotonic()
        span = self._traces.call(call.method, method.metadata)
        call.trace_id = span.trace_id
        enter_call(call)
        self._metrics.started.labels(*method.labels).inc()
        context.set_trailing_metadata(((wire.REQUEST_ID, call.request_id),))
        status = grpc.StatusCode.OK.name
        try:
            try:
                call.identity = self._access.identity(holder, context)
                yield
            except (asyncio.CancelledError, GeneratorExit):
                status = _why_cancelled(context).name
                raise
            except grpc.aio.AbortError:
                raise  # the handler has said what
            except Exception as error:  # noqa: BLE001  every error becomes a status, and what is not ours a line in the log
                await self._abort(error, call, context)
        except grpc.aio.AbortError:
            status = _status_of(context)
            raise
        finally:
            seconds = time.monotonic() - started
            self._metrics.handled.labels(*method.labels, status).inc()
            self._metrics.handling.labels(*method.labels).observe(seconds)
            span.end(status, {"model_factory.request_id": call.request_id, "model_factory.builds": call.builds})
            access.log(
                logging.DEBUG if method.labels[1] in _QUIET else logging.INFO,
                "%s %s in %.1f ms",
                call.method,
                status,
                seconds * 1000,
                extra=fields(**call.fields(), status=status, duration_ms=round(seconds * 1000, 3)),
            )

    async def _abort(self, error: Exception, call: Call, context: Any) -> None:
        """End the call with an error's status; its private part is for the log."""
        call.error = (str(error) or type(error).__name__)[:_MAX_ERROR]
        if not isinstance(error, ModelFactoryError):
            log.error("%s failed", call.method, exc_info=error)
        answer = wire.to_status(error, call.component, call.request_id)
        metadata = (*answer.trailing_metadata, (wire.REQUEST_ID, call.request_id))
        await context.abort(answer.code, answer.details, metadata)


@dataclass(frozen=True, slots=True)
class _Method:
    labels: tuple[str, str, str]
    """Type, service and name: the metrics' labels of a call."""
    metadata: tuple[tuple[str, str | bytes], ...]
    """What the client sent along."""


def _grpc_type(request: str, response: str) -> str:
    """What the conventions of these metrics call it."""
    return {"unary_unary": "unary", "unary_stream": "server_stream", "stream_unary": "client_stream"}.get(
        f"{request}_{response}", "bidi_stream"
    )


def _status_of(context: Any) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _STATUS_OF.get(code, grpc.StatusCode.UNKNOWN).name


def _why_cancelled(context: Any) -> grpc.StatusCode:
    left = context.time_remaining()
    return grpc.StatusCode.DEADLINE_EXCEEDED if left is not None and left <= 0 else grpc.StatusCode.CANCELLED


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the request id of a call's metadata if it is well-formed, else a new one."""
    for key, value in metadata:
        if key == wire.REQUEST_ID and isinstance(value, str) and _WELL_FORMED.fullmatch(value):
            return value
    return uuid.uuid4().hex
