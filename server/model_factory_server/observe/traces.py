"""Spans of calls and of the stages of jobs: OpenTelemetry's where it is installed and set up, else nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from model_factory.errors import ServerError

log = logging.getLogger(__name__)

_TURN_ON = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

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


def configure_traces(environment: Mapping[str, str]) -> Traces:
    """Set tracing up as OpenTelemetry's own variables say; without any of them there is none.

    Raises:
        ServerError: ``OTEL_TRACES_EXPORTER`` names an exporter that is not installed.
    """
    wanted = [name for name in _TURN_ON if environment.get(name)]
    exporters = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if not wanted or exporters == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Traces()
    try:
        from model_factory_server.observe.otel import OtelTraces  # noqa: PLC0415  the extra `otel`
    except ImportError as error:
        raise ServerError(
            f"{wanted[0]} asks for traces, and OpenTelemetry is not installed ({error}). "
            "Remedy: pip install 'model-factory-server[otel]', or unset it"
        ) from None
    return OtelTraces(exporters.split(","))
