"""Chooses OpenTelemetry's traces where installed and configured, else traces that record nothing."""

from __future__ import annotations

from collections.abc import Mapping

from model_factory.errors import ServerError
from model_factory_server.observe.spans import Traces

_ENABLING = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configure_traces(environment: Mapping[str, str]) -> Traces:
    """Set up tracing from OpenTelemetry's own variables; without these variables nothing is recorded.

    Raises:
        ServerError: OpenTelemetry or the exporter in ``OTEL_TRACES_EXPORTER`` is not installed.

    Example:
        >>> type(configure_traces({})).__name__
        'Traces'
    """
    enabling = [name for name in _ENABLING if environment.get(name)]
    exporters = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if not enabling or exporters == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Traces()
    try:
        from model_factory_server.observe.otel import OtelTraces  # noqa: PLC0415  the extra `otel`
    except ImportError as error:
        raise ServerError(
            f"{enabling[0]} enables traces, and OpenTelemetry is not installed ({error}). "
            "Remedy: pip install 'model-factory-server[otel]', or unset the variable"
        ) from None
    return OtelTraces(exporters.split(","))
