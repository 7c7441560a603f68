"""Traces by the OpenTelemetry SDK, sent to a collector as OTLP over HTTP; imported only where they are asked for.

The span of a request has one span a stage below it, and each knows the stage's own clock: what a trace shows is what
``Server-Timing`` says. Collector, sampling, resource and limits are the SDK's: its ``OTEL_*`` variables hold.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.tracing import RequestTrace, outgoing

logger = logging.getLogger(__name__)

_W3C = TraceContextTextMapPropagator()
# A collector that is gone must not hold up the end of the service.
_CLOSE_SECONDS = 3.0
# Fields of a log line to names of OpenTelemetry's semantic conventions for HTTP servers; others get our own prefix.
_NAMES = {
    "method": "http.request.method",
    "path": "url.path",
    "route": "http.route",
    "status": "http.response.status_code",
    "bytes_received": "http.request.body.size",
    "bytes_sent": "http.response.body.size",
}
_LEFT_OUT = ("trace_id", "stages", "milliseconds")  # the span itself says these


class OpenTelemetry:
    """One provider for the process; raises ValueError where a variable has a value that the SDK refuses."""

    def __init__(self) -> None:
        own = {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or "tritonpose", SERVICE_VERSION: __version__}
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tritonpose", __version__)

    def begin(self, method: str, headers: Mapping[str, str]) -> RequestTrace:
        """The span of a request, below the caller's where its ``traceparent`` and ``tracestate`` name one."""
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = _W3C.extract(carrier, Context())
        return _Request(self._tracer, self._tracer.start_span(method, parent, SpanKind.SERVER))

    def close(self) -> None:
        """Send what has not been sent, for three seconds at most."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_CLOSE_SECONDS)
        if ending.is_alive():
            logger.warning("the collector of traces takes too long: the last ones are lost")


class _Request:
    """The trace of one request, and of its stages where it is sampled."""

    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, Context())
        # Stages tell the time by a clock that never jumps; spans are dated.
        self._epoch = time.time_ns() - time.perf_counter_ns()
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        self.stages = self if span.is_recording() else None

    def stage(self, name: str, started: float) -> Callable[[float, bool], None]:
        """A span for a stage; calls that are made in it (Triton's) are placed below it."""
        span = self._tracer.start_span(name, self._context, start_time=self._epoch + round(started * 1e9))
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
        before = outgoing.set(carrier)

        def end(ended: float, failed: bool) -> None:
            outgoing.reset(before)
            if failed:
                span.set_status(StatusCode.ERROR)
            span.end(self._epoch + round(ended * 1e9))

        return end

    def end(self, name: str, fields: Mapping[str, Any]) -> None:
        """Name the request's span by its route and end it; only what is the service's fault is an error."""
        span = self._span
        span.update_name(name)
        for field, value in fields.items():
            if field not in _LEFT_OUT:
                span.set_attribute(_NAMES.get(field, f"tritonpose.{field}"), value)
        if fields.get("status", 500) >= 500 or not fields.get("status"):
            span.set_status(StatusCode.ERROR, str(fields.get("reason", "")))
        span.end()
