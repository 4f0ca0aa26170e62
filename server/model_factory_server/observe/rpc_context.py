"""The call that is being answered: what its log lines, errors and builds say about it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of a client."""

    request_id: str
    """The client's own if it sent a well-formed one, else made here."""
    method: str
    """``service/method``, without the package."""
    peer: str = ""
    """Address of the other side, as gRPC writes it."""
    identity: str = ""
    """Who the other side has shown to be; empty without authentication."""
    component: str = ""
    """The component that is at fault when the call fails."""
    builds: list[str] = field(default_factory=list)
    """Keys of the builds that it asked for."""
    trace_id: str = ""
    """Of its span; empty without tracing."""
    error: str = ""
    """What went wrong, in full; for the log alone."""

    def fields(self) -> dict[str, object]:
        """What log lines say about it; nothing that is empty."""
        names = ("request_id", "method", "peer", "identity", "component", "builds", "trace_id", "error")
        return {name: value for name in names if (value := getattr(self, name))}


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The call that this task works for; at the server's start, one that nobody made."""
    call = _current.get()
    return Call(request_id="", method="") if call is None else call


def enter_call(call: Call) -> None:
    """Say which call this task works for; tasks and threads started with its context inherit it."""
    _current.set(call)
