"""OpenTelemetry traces: the client's span, the request's in the replica, one for each of its stages. Off unless configured.

Trace context travels in the W3C header `traceparent`. Where Ray Serve's own tracing is on (`span_processors` is its exporter), the
request's span is a child of Ray Serve's; else of the caller's. A caller that traces decides whether its request is traced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from degre_prod.config import ServingConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

    from serving.protocol import RerankResponse

RAY_EXPORTER = "serving.tracing:span_processors"  # what RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH names
_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_SERVICE = "degre"


class StageTimes(dict[str, float]):
    """Milliseconds by stage, as any dictionary of them, which remembers when each stage ended (nanoseconds since 1970)."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[str, int, float]] = []

    def __setitem__(self, stage: str, ms: float) -> None:
        self.ended.append((stage, time.time_ns(), ms))
        super().__setitem__(stage, ms)


class Traces:
    """Spans of one provider; `close` sends what is left."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_SERVICE)

    @contextmanager
    def asked(self, name: str) -> Iterator[dict[str, str]]:
        """Around a client's request; yields the headers to send with it."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        with self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT):
            headers: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(headers)
            yield headers

    @contextmanager
    def answering(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Around a request in the replica; log lines of it carry `trace_id`."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = None  # a span of Ray Serve's is the current one
        if not trace.get_current_span().get_span_context().is_valid:
            context = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span(name, context=context, kind=trace.SpanKind.SERVER) as span:
            trace_id = trace.format_trace_id(span.get_span_context().trace_id)
            with structlog.contextvars.bound_contextvars(trace_id=trace_id):
                yield span

    def answered(self, response: RerankResponse, stages: StageTimes) -> None:
        """What came of the current request, and a span for each stage that it passed."""
        from opentelemetry import trace

        span = trace.get_current_span()
        if not span.is_recording():
            return
        told = {"request_id": response.request_id, "bundle": response.bundle, "arm": response.arm}
        told |= {"source": response.source, "degraded": ",".join(response.degraded)}
        span.set_attributes({f"degre.{name}": value for name, value in told.items()})
        for stage, ended_ns, ms in list(stages.ended):  # an engine beyond its deadline may still add to it
            if stage != "total":
                child = self._tracer.start_span(stage, start_time=ended_ns - int(ms * 1e6))
                child.end(ended_ns)

    def close(self) -> None:
        """Send what is left and stop."""
        self._provider.shutdown()


def open_traces(serving: ServingConfig) -> Traces | None:
    """Traces as the configuration says; None without `serving.traces_endpoint`."""
    if serving.traces_endpoint is None:
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        resource=Resource.create({"service.name": _SERVICE}), sampler=ParentBasedTraceIdRatio(serving.traces_share)
    )
    provider.add_span_processor(_exporting(serving.traces_endpoint))
    return Traces(provider)


def span_processors() -> list[SpanProcessor]:
    """Where Ray Serve sends its own spans: to the same endpoint."""
    return [_exporting(os.environ[_ENDPOINT])]


def ray_serve_variables(serving: ServingConfig) -> dict[str, str]:
    """Environment of Ray Serve's controller and replicas that switches its own tracing on; nothing when ours is off."""
    if serving.traces_endpoint is None:
        return {}
    return {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": RAY_EXPORTER,
        "RAY_SERVE_TRACING_SAMPLING_RATIO": f"{serving.traces_share:g}",
        _ENDPOINT: serving.traces_endpoint,
    }


def _exporting(endpoint: str) -> SpanProcessor:
    """In batches, from a thread of its own: a collector that is away costs no request anything."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5))
