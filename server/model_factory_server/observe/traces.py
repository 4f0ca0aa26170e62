"""Whose spans there are: OpenTelemetry's where it is installed and set up, else nobody's."""

from __future__ import annotations

from collections.abc import Mapping

from model_factory.errors import ServerError
from model_factory_server.observe.spans import Traces

_TURN_ON = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


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
