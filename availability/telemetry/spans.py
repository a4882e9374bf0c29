"""Spans for OpenTelemetry, sent by OTLP: an extra (`otel`), and off unless `tracing.otlp_endpoint` is set.

Off, nothing of it is imported and no call does anything for it. On, a sampled call costs about as much again as a read,
so `tracing.sample_percent` is small by default; a caller whose own span is sampled is followed always. What carries the
trace through the ledger is the correlation id (`trace`), with or without spans. The library stays inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

TRACEPARENT = "traceparent"
_OK = "OK"


class TracingUnavailable(Exception):
    """Spans are asked for and cannot be had; the message says what to install."""


class Spans:
    """Makes spans and sends them from a thread of its own. ``exporter`` takes the network's place in tests."""

    def __init__(
        self, *, service: str, endpoint: str, sample_percent: float, exporter: SpanExporter | None = None
    ) -> None:
        """Raise TracingUnavailable where the extra is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise TracingUnavailable(
                f"tracing.otlp_endpoint is set, and {error.name} is not installed: pip install availability[otel]"
            ) from error
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}),
            sampler=ParentBased(TraceIdRatioBased(sample_percent / 100)),
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("availability")
        self._context = TraceContextTextMapPropagator()
        self._server, self._client = SpanKind.SERVER, SpanKind.CLIENT
        self._error = Status(StatusCode.ERROR)

    def began(self, path: str, traceparent: str) -> Callable[[str], None] | None:
        """Begin the span of a call; return what ends it, given the code's name; None: this call is not sampled."""
        parent = self._context.extract({TRACEPARENT: traceparent}) if traceparent else None
        service, _, method = path.lstrip("/").partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        span = self._tracer.start_span(
            path.lstrip("/"), context=parent, kind=self._server, attributes=attributes
        )
        if not span.is_recording():
            return None

        def ended(code: str) -> None:
            span.set_attribute("rpc.grpc.status", code)
            if code != _OK:
                span.set_status(self._error)
            span.end()

        return ended

    @contextmanager
    def calling(self, name: str, traceparent: str, **attributes: str | int) -> Iterator[str]:
        """Wrap a call to somebody else in a span; yield the `traceparent` that it is to carry."""
        parent = self._context.extract({TRACEPARENT: traceparent}) if traceparent else None
        with self._tracer.start_as_current_span(
            name, context=parent, kind=self._client, attributes=attributes
        ):
            carried: dict[str, str] = {}
            self._context.inject(carried)
            yield carried.get(TRACEPARENT, traceparent)

    def shutdown(self) -> None:
        """Send what is left, and end."""
        self._provider.shutdown()
