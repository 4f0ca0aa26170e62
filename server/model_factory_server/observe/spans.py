"""Spans of calls and of the stages of jobs: what the rest of the server starts and ends, recorded by nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Metadata = Iterable[tuple[str, str | bytes]]


class Span:
    """Something that takes time; this one is not recorded."""

    trace_id = ""
    """32 hexadecimal digits, or empty."""

    def end(self, outcome: str, attributes: Mapping[str, str | list[str]] | None = None) -> None:
        """Say how it ended: OK, or the name of a status or reason."""


class Traces:
    """Starts spans; this one records none."""

    def call(self, name: str, metadata: Metadata) -> Span:  # noqa: ARG002  for those who do
        """Start the span of a call, below the client's if its metadata names one; what the task does is below it."""
        return Span()

    def stage(self, name: str) -> Span:  # noqa: ARG002  the same
        """Start the span of a stage, below the span of the call that the task works for."""
        return Span()

    def close(self) -> None:
        """Send what is left."""
