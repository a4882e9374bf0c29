"""OpenTelemetry: spans of calls and of writes, one trace; and nothing of it where it is off."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from availability.client import Client
from availability.service.auth import Scope
from availability.telemetry import Trace
from availability.v1 import availability_pb2 as av
from publisher.traces import Traces, headers
from tests.conftest import serving
from tests.lint_tools import module
from tests.test_grpc_adapter import READ, running

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED, NOT_SAMPLED = f"00-{TRACE_ID}-00f067aa0ba902b7-01", f"00-{TRACE_ID}-00f067aa0ba902b7-00"
RESERVE = "/availability.v1.ReservationService/CreateReservation"


@pytest.fixture
def traced() -> Any:
    """(spans, what they sent): of the real library, without a network."""
    module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from availability.telemetry.spans import Spans

    exporter = InMemorySpanExporter()
    return Spans(service="test", endpoint="http://127.0.0.1:1", sample_percent=0, exporter=exporter), exporter


def sent(traced: Any) -> list[Any]:
    spans, exporter = traced
    spans._provider.force_flush()
    return list(exporter.get_finished_spans())


def test_a_call_is_a_span_of_its_callers_trace(traced: Any, tmp_path: Path) -> None:
    """Of a read and of a write that answers later, with the code; callers that are not sampled make none."""
    with running(tmp_path, tracing=traced[0]) as server:
        read = av.GetAvailabilityRequest(channel="web", sku="tea").SerializeToString()
        server.call(READ, read, scope=Scope.READ, traceparent=SAMPLED)
        server.call(READ, read, scope=Scope.READ, traceparent=NOT_SAMPLED)
        server.call(READ, read, scope=Scope.READ)
        server.call(RESERVE, scope=Scope.RESERVE, traceparent=SAMPLED)
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            server.call(READ, read, traceparent=SAMPLED)
    found = sent(traced)
    assert sorted((span.name, span.attributes["rpc.grpc.status"]) for span in found) == [
        ("availability.v1.AvailabilityService/GetAvailability", "OK"),
        ("availability.v1.AvailabilityService/GetAvailability", "UNAUTHENTICATED"),
        ("availability.v1.ReservationService/CreateReservation", "OK"),
    ]
    assert {format(span.context.trace_id, "032x") for span in found} == {TRACE_ID}
    assert {format(span.parent.span_id, "016x") for span in found} == {"00f067aa0ba902b7"}


def test_a_write_to_a_shop_is_a_span_of_the_events_trace(traced: Any) -> None:
    """What the shop is told is the span's own traceparent."""
    traces = Traces(spans=traced[0])
    traces.heard(["tea"], [TRACE_ID])
    with traces.writing(["tea", "cup"]) as ids:
        carried = Trace.parse(headers()["traceparent"])
    assert ids == [TRACE_ID]
    assert headers() == {}
    (span,) = sent(traced)
    assert carried is not None
    assert (carried.trace_id, carried.span_id) == (TRACE_ID, format(span.context.span_id, "016x"))
    assert (span.name, span.attributes["skus"]) == ("publish", 2)


def test_without_the_library_everything_else_works() -> None:
    """The extra is one: modules come without it, and who asks for spans is told what to install."""
    code = """if True:
        import sys
        sys.modules["opentelemetry"] = None
        import availability.app, publisher.app
        from availability.config import Settings, TracingSettings
        assert availability.app.spans_of(Settings(), "test") is None
        asked = Settings(tracing=TracingSettings(otlp_endpoint="http://127.0.0.1:4317"))
        try:
            availability.app.spans_of(asked, "test")
        except availability.app.StartRefused as error:
            print(error)
    """
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.strip().endswith("pip install availability[otel]")


def test_spans_arrive_and_a_collector_that_is_away_holds_nobody_up() -> None:
    """A server's spans reach a collector by OTLP; without one calls are answered, and the server leaves in time."""
    module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

    arrived: list[str] = []

    class Collector(otlp_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            for resource in request.resource_spans:
                arrived.extend(span.name for scope in resource.scope_spans for span in scope.spans)
            return otlp.ExportTraceServiceResponse()

    collector = grpc.server(ThreadPoolExecutor(1))
    otlp_grpc.add_TraceServiceServicer_to_server(Collector(), collector)  # type: ignore[no-untyped-call]  # generated
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    settings = {"AVAIL_TRACING__SAMPLE_PERCENT": "100", "AVAIL_DRAIN__NOTICE_MS": "0"}
    try:
        endpoint = {"AVAIL_TRACING__OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        with serving(settings={**settings, **endpoint}) as server, Client(server.grpc) as client:
            client.get("web", "tea")
        assert (
            "availability.v1.AvailabilityService/GetAvailability" in arrived
        )  # sent at the latest on leaving
    finally:
        collector.stop(0)
    away = {"AVAIL_TRACING__OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with serving(settings={**settings, **away}) as server, Client(server.grpc) as client:
        client.get("web", "tea")
        process = server.process
    assert process.returncode == 0, "the server did not leave within its time"
