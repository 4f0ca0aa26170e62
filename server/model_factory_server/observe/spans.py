"""Interface of traces; the base classes record nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Metadata = Iterable[tuple[str, str | bytes]]


class Span:
    """A timed operation; this class records nothing."""

    trace_id = ""
    """32 hexadecimal digits, or empty."""

    def end(self, outcome: str, attributes: Mapping[str, str | list[str]] | None = None) -> None:
        """End the span with ``OK``, or the name of a status or reason."""


class Traces:
    """Starts spans; this class records nothing."""

    def rpc(self, name: str, metadata: Metadata) -> Span:  # noqa: ARG002  for subclasses
        """Start the span of an RPC, below the client's span if the metadata name a span."""
        return Span()

    def stage(self, name: str) -> Span:  # noqa: ARG002  for subclasses
        """Start the span of a job's stage, below the span of the task's RPC."""
        return Span()

    def close(self) -> None:
        """Export the remaining spans."""
