"""Receives the request of an RPC after its admission: all memory for requests is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc

from model_factory.errors import BusyError, FormatError, LimitError
from model_factory.limits import KIB
from model_factory_server.access.networks import network_of
from model_factory_server.builds.admission import Admission
from model_factory_server.builds.fair_shares import Claim
from model_factory_server.observe.rpc_context import current_rpc
from model_factory_server.rpc.pace import Pace
from model_factory_server.rpc.stalled_peers import start_stall_timer
from model_factory_server.settings.server_settings import COPIES, Settings

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SMALL_BYTES = 4 * KIB
"""Size limit of the request of a method that takes no config."""

PROBE_SECONDS = 5.0
"""Time for a probe to send its request."""

_OTHER_FIELDS = 64  # of a request, besides its components and its training flags
_VARINT_BYTES = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


class Reception:
    """Admits RPCs and their bytes. A claim lasts until gRPC is done with the RPC: until the response is sent."""

    def __init__(self, settings: Settings, admission: Admission) -> None:
        self._seconds = settings.connections.stall_timeout
        self._admission = admission
        self.pace = Pace()
        """The pace of large messages."""
        fields = settings.limits.max_components + _OTHER_FIELDS
        self._max_fields = {
            "BuildModels": fields,
            "DescribeModels": fields,
            "RecordProgram": settings.limits.max_modules + _OTHER_FIELDS,
        }

    @contextmanager
    def admitted(self, context: Context, *, is_probe: bool) -> Iterator[None]:
        """Count an RPC from the start of the block until gRPC is done.

        A client that does not receive the response loses its connection.

        Raises:
            BusyError: too many RPCs are in progress.
        """
        until_done = ExitStack()
        self.pace.note(client_of(context))
        count = self._admission.probe if is_probe else self._admission.rpc
        until_done.enter_context(count(client_of(context)))
        context.add_done_callback(lambda _context: until_done.close())  # type: ignore[arg-type]  # wrong stubs
        yield
        until_done.callback(start_stall_timer(context.peer(), self._seconds).cancel)

    async def receive(self, context: Context, method: str, *, is_probe: bool) -> bytes:
        """Wait for the memory of the largest request, and then for the request; keep the memory that it takes.

        Requests of a ``method`` without configs are small.

        Raises:
            BusyError: other requests hold the memory.
            LimitError: the request is too large, or incomplete after the time for a request.
            FormatError: the client has sent no request.
        """
        claim = await self._in_time(self._admission.request(client_of(context), is_probe=is_probe), "requests")
        _release_when_done(context, claim)
        request = await self._message(context, method, is_probe=is_probe)
        if request is None:
            raise FormatError("the client has sent no request. Remedy: send exactly one message")
        await self.pace.request(client_of(context), len(request))
        check_fields(request, self._max_fields.get(method, _OTHER_FIELDS))
        claim.shrink(COPIES * len(request))
        return request

    async def receive_each(self, context: Context) -> AsyncIterator[bytes]:
        """Yield the small requests of a stream; otherwise like :meth:`receive`."""
        is_last = False
        while not is_last:
            claim = await self._in_time(self._admission.request(client_of(context), is_probe=True), "requests")
            try:
                request = await self._message(context, "", is_probe=True)
            finally:
                claim.release()
            is_last = request is None
            if request is not None:
                yield request

    async def reserve(self, context: Context, size: int) -> Claim:
        """Wait for the memory of a response, and hold the memory until gRPC is done with the RPC.

        Raises:
            BusyError: other responses hold the memory.
            LimitError: the response is too large for one client.
        """
        claim = await self.claim(context, size)
        _release_when_done(context, claim)
        return claim

    def memory(self, context: Context) -> StreamMemory:
        """Return the memory of the messages of a stream of responses."""
        return StreamMemory(self, context)

    @property
    def is_scarce(self) -> bool:
        """Whether responses wait for memory: keep no buffers."""
        return self._admission.has_waiting_responses

    async def claim(self, context: Context, size: int) -> Claim:
        """Wait for the memory of a response; otherwise like :meth:`reserve`."""
        return await self._in_time(self._admission.response(client_of(context), size), "responses")

    async def _message(self, context: Context, method: str, *, is_probe: bool) -> bytes | None:
        """Receive a message; ``None`` at the end of the client's messages."""
        seconds = min(PROBE_SECONDS, self._seconds) if is_probe else self._seconds
        try:
            async with asyncio.timeout(seconds):
                message = await context.read()
        except TimeoutError:
            raise LimitError(
                f"the request was not complete after {seconds:g} seconds. Remedy: send the request on a faster "
                "connection, or raise --stall-timeout of the server"
            ) from None
        if not isinstance(message, bytes):  # gRPC's mark of the end
            return None
        if method not in self._max_fields and len(message) > SMALL_BYTES:
            raise LimitError(f"this method takes requests of at most {SMALL_BYTES} bytes, got {len(message)}")
        return message

    async def _in_time(self, waiting: Any, noun: str) -> Claim:
        try:
            async with asyncio.timeout(self._seconds):
                claim: Claim = await waiting
        except TimeoutError:
            raise BusyError(
                f"the memory for {noun}, the share of this client or of all clients, has been in use for "
                f"{self._seconds:g} seconds. Remedy: try again later, or raise --max-client-held-bytes or "
                "--max-held-bytes of the server"
            ) from None
        return claim


@dataclass(frozen=True, slots=True)
class StreamMemory:
    """The memory of a stream's messages: each message has a turn of its own, so all streams advance."""

    reception: Reception
    """Where the messages wait."""
    context: Context
    """The RPC."""

    @property
    def is_scarce(self) -> bool:
        """Whether responses wait for memory."""
        return self.reception.is_scarce

    @property
    def chunk_bytes(self) -> int:
        """Size of the next message."""
        return self.reception.pace.chunk_bytes(client_of(self.context))

    @asynccontextmanager
    async def reserved(self, size: int) -> AsyncIterator[None]:
        """Hold the memory of a message inside the block."""
        await self.reception.pace.chunk(client_of(self.context))
        claim = await self.reception.claim(self.context, size)
        try:
            yield
        finally:
            claim.release()


def client_of(context: Context) -> str:
    """Return the client for limits: the authenticated identity, else the address without its port."""
    rpc = current_rpc()
    if not rpc.client:
        rpc.client = rpc.identity or peer_network(context.peer())
    return rpc.client


def peer_network(peer: str) -> str:
    """Return the network of a peer, in gRPC's notation of addresses; a peer without TCP is returned unchanged.

    Example:
        >>> peer_network("ipv4:192.0.2.7:4711"), peer_network("ipv6:%5B2001:db8::7%5D:4711"), peer_network("unix:")
        ('192.0.2.7', '2001:db8::/64', 'unix:')
    """
    family, _, address = unquote(peer).partition(":")
    return network_of(address.rpartition(":")[0].strip("[]")) if family in {"ipv4", "ipv6"} else peer


def check_fields(data: bytes, limit: int) -> None:
    r"""Check the number of fields of an encoded message: an empty component takes two bytes, and 50 once decoded.

    Raises:
        LimitError: the message has more fields.
        FormatError: the bytes are not an encoded message.

    Example:
        >>> check_fields(b"\x0a\x00" * 3, 2)
        Traceback (most recent call last):
        model_factory.errors.LimitError: a request has at most 2 fields, got more
    """
    at = fields = 0
    try:
        while at < len(data):
            fields += 1
            if fields > limit:
                raise LimitError(f"a request has at most {limit} fields, got more")
            kind = data[at] & 7
            _, at = _varint(data, at)
            if kind == _BYTES:
                size, at = _varint(data, at)
                at += size
            elif kind == _VARINT:
                _, at = _varint(data, at)
            elif kind in {_FIXED64, _FIXED32}:
                at += 8 if kind == _FIXED64 else 4
            else:
                raise FormatError("the request is not an encoded message")
    except IndexError:
        raise FormatError("the request is not an encoded message") from None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after the number."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value = 0
    for index in range(_VARINT_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise FormatError("the request is not an encoded message")


def _release_when_done(context: Context, claim: Claim) -> None:
    context.add_done_callback(lambda _context: claim.release())  # type: ignore[arg-type]  # wrong stubs
