"""OpenTelemetry traces: a span of each request, and one of each stage beneath it.

Where they go and how many are kept is said by OpenTelemetry's own variables
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, ...). Spans wait in a
bounded queue: a collector that is down delays no answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from firewall import __version__
from firewall.errors import ConfigError
from firewall.serve.context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span, TracerProvider

#: Codes that are the server's failure and not the client's (OpenTelemetry's conventions for gRPC).
_FAILED = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
_CONTEXT_KEYS = ("traceparent", "tracestate")


class Trace(Protocol):
    """The trace of one request.

    Attributes:
        context: as W3C metadata, for a classifier elsewhere.

    """

    context: tuple[tuple[str, str], ...]

    def end(self, context: RequestContext, code: str) -> None:
        """End the trace with the name of a gRPC status."""


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, service: str, method: str, metadata: Mapping[str, Any]) -> Trace:
        """Begin the trace of a request, or go on with the one that its metadata names."""

    def close(self) -> None:
        """Send the spans that wait."""


class OpenTelemetry:
    """Sends traces by OpenTelemetry's SDK, over OTLP."""

    def __init__(self) -> None:
        """Connect lazily.

        Raises:
            ConfigError: the SDK is not installed.

        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                "--traces: needs OpenTelemetry; pip install 'robustness-firewall[tracing]'"
            ) from error
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {"service.name": "robustness-firewall"})
        self._provider: TracerProvider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("firewall", __version__)

    def begin(self, service: str, method: str, metadata: Mapping[str, Any]) -> Trace:
        """See `Tracer`."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        carrier = {
            key: metadata[key] for key in _CONTEXT_KEYS if isinstance(metadata.get(key), str)
        }
        span: Any = self._tracer.start_span(
            f"{service}/{method}",
            context=propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return _Trace(self._tracer, span, propagator)

    def close(self) -> None:
        """See `Tracer`."""
        self._provider.shutdown()


class _Trace:
    def __init__(self, tracer: Any, span: Span, propagator: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span = tracer, span
        self._parent = set_span_in_context(span)
        carrier: dict[str, str] = {}
        propagator.inject(carrier, self._parent)
        self.context = tuple(carrier.items())

    def end(self, context: RequestContext, code: str) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._span
        if span.is_recording():
            # Stages were timed on the clock that never jumps.
            origin = time.time_ns() - time.perf_counter_ns()
            for stage in context.spans:
                self._tracer.start_span(
                    stage.name,
                    context=self._parent,
                    kind=SpanKind.CLIENT if stage.name == "upstream" else SpanKind.INTERNAL,
                    start_time=origin + int(stage.start * 1e9),
                ).end(origin + int(stage.end * 1e9))
            span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
            span.set_attribute("firewall.request_id", context.request_id)
            if code in _FAILED:
                span.set_status(Status(StatusCode.ERROR))
        span.end()
