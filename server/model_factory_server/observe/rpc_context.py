"""The RPC in progress: the fields of its log lines, errors and builds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class RpcContext:
    """One RPC of a client.

    Example:
        >>> RpcContext(request_id="5f0c", method="ModelFactoryService/ReadBlob").fields()
        {'request_id': '5f0c', 'method': 'ModelFactoryService/ReadBlob'}
    """

    request_id: str
    """The client's request id if well-formed, else an id made by the server."""
    method: str
    """``service/method``, the service with its package."""
    peer: str = ""
    """Address of the client, as gRPC writes addresses."""
    identity: str = ""
    """Authenticated name of the client; empty without authentication."""
    client: str = ""
    """The client whose shares the RPC uses: the identity, else the address."""
    component: str = ""
    """Component at fault, if the RPC fails because of a component."""
    builds: list[str] = field(default_factory=list)
    """Keys of the requested builds."""
    trace_id: str = ""
    """Id of the trace; empty without tracing."""
    error: str = ""
    """The full error, for the log only."""

    def fields(self) -> dict[str, object]:
        """Return the fields for log lines, without empty fields."""
        names = ("request_id", "method", "peer", "identity", "component", "builds", "trace_id", "error")
        return {name: value for name in names if (value := getattr(self, name))}


_current: ContextVar[RpcContext | None] = ContextVar("rpc", default=None)


def current_rpc() -> RpcContext:
    """Return the RPC that this task works for; during the server's start, an empty context."""
    rpc = _current.get()
    return RpcContext(request_id="", method="") if rpc is None else rpc


def enter_rpc(rpc: RpcContext) -> None:
    """Set the RPC of this task; tasks and threads started with the task's context inherit the RPC."""
    _current.set(rpc)


@contextmanager
def at_component(component: str) -> Iterator[None]:
    """Name the component at fault if the body raises."""
    try:
        yield
    except Exception:
        current_rpc().component = component
        raise
