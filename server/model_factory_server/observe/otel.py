"""OpenTelemetry's traces: standard variables set the sampler, resource, exporters and propagators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from model_factory.errors import ServerError
from model_factory_server.observe.spans import Metadata, Span, Traces

_EXPORTERS = "opentelemetry_traces_exporter"  # the entry-point group of OpenTelemetry's exporters
_NAME = "model-factory-server"


class OtelTraces(Traces):
    """Starts spans and exports them in the background."""

    def __init__(self, exporters: Iterable[str]) -> None:
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override these attributes.
        own = Resource({SERVICE_NAME: _NAME, SERVICE_VERSION: metadata.version(_NAME)})
        self._provider = TracerProvider(resource=own.merge(_from_environment()))
        for name in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
        self._tracer = self._provider.get_tracer(_NAME, metadata.version(_NAME))

    def rpc(self, name: str, metadata: Metadata) -> Span:
        """See :class:`Traces`."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        parent = propagate.extract(carrier)
        service, _, method = name.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        span = self._tracer.start_span(name, parent, trace.SpanKind.SERVER, attributes)
        # Never detached: the task ends with the RPC.
        context.attach(trace.set_span_in_context(span, parent))
        return _OtelSpan(span)

    def stage(self, name: str) -> Span:
        """See :class:`Traces`."""
        return _OtelSpan(self._tracer.start_span(name))

    def close(self) -> None:
        """See :class:`Traces`."""
        self._provider.shutdown()


class _OtelSpan(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def end(self, outcome: str, attributes: Mapping[str, str | list[str]] | None = None) -> None:
        self._span.set_attribute("model_factory.outcome", outcome)
        self._span.set_attributes(dict(attributes or {}))
        if outcome != "OK":
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


def _from_environment() -> Resource:
    attributes = dict(Resource.create().attributes)
    if str(attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):  # the SDK's default
        del attributes[SERVICE_NAME]
    return Resource(attributes)


def _exporter(name: str) -> SpanExporter:
    name = "otlp_proto_grpc" if name == "otlp" else name  # an alias in the SDK's own set-up
    found = metadata.entry_points(group=_EXPORTERS, name=name)
    if not found:
        known = ", ".join(sorted(metadata.entry_points(group=_EXPORTERS).names))
        raise ServerError(
            f"OTEL_TRACES_EXPORTER names {name!r}, which is not installed. Installed: {known or 'no exporter'}"
        )
    exporter: SpanExporter = next(iter(found)).load()()
    return exporter
