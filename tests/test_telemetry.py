"""Logs are JSON lines whoever writes them, and metrics can be scraped."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import urllib.request
from collections.abc import Iterator

import pytest
import structlog

from availability.telemetry import (
    ExceptionFigures,
    IngestMetrics,
    SourceFigures,
    Telemetry,
    Trace,
    setup_logging,
    start_metrics_listener,
)
from availability.telemetry.catalogue import catalogue
from availability.telemetry.history import HistoryMetrics
from availability.telemetry.publish import PublishMetrics
from availability.telemetry.trace import correlation_of
from ingest.figures import RowCounter
from publisher.orders.receiver import TOPICS


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_every_record_is_one_json_line() -> None:
    """structlog's and the standard library's records look alike; tracebacks stay on their line."""
    stream = io.StringIO()
    early = structlog.get_logger("early")
    setup_logging("INFO", stream=stream)
    early.info("began", port=50051)
    logging.getLogger("library").warning("took %d ms", 7, extra={"shard": 0})
    early.debug("not written")
    try:
        raise KeyError("sku")
    except KeyError:
        early.exception("failed", odd={1: object})
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["port"], first["level"], first["logger"]) == (
        "began",
        50051,
        "info",
        "early",
    )
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["shard"], second["level"]) == ("took 7 ms", 0, "warning")
    assert "KeyError" in third["exception"]


def test_metrics_are_scraped_from_their_own_registry() -> None:
    """Two sets of metrics do not collide, gauges are asked at the scrape, names are conventional."""
    Telemetry()
    telemetry = Telemetry()
    telemetry.watch_replica_age(lambda: 0.25)
    telemetry.calls.observer("/a/B")("OK", 0.002)
    telemetry.ledger.travelled(
        {("availability_0123456789ab_reserve", "ok"): 2, ("availability_0123456789ab_reserve", "late"): 1},
        0.001,
    )
    telemetry.outcomes.reservation("reserved")
    telemetry.outcomes.deltas("applied", 5)
    telemetry.exceptions.name({1: "oversold"}, {3: "critical"})
    telemetry.exceptions.publish(
        {(1, 3): 1},
        {},
        ExceptionFigures(
            oversold_units=2, unconfirmed_order_age_s=0, parked_stream_age_s=90, oldest_age_s={1: 60}
        ),
    )
    scrape = telemetry.registry.get_sample_value
    assert scrape("availability_replica_age_seconds") == 0.25
    assert scrape("availability_rpc_requests_total", {"method": "/a/B", "code": "OK"}) == 1
    assert scrape("availability_rpc_duration_seconds_count", {"method": "/a/B"}) == 1
    assert scrape("availability_ledger_calls_total", {"function": "reserve", "result": "ok"}) == 2
    assert scrape("availability_ledger_calls_total", {"function": "reserve", "result": "late"}) == 1
    assert scrape("availability_ledger_group_size_sum") == 3
    assert scrape("availability_reservations_total", {"outcome": "reserved"}) == 1
    assert scrape("availability_deltas_total", {"result": "applied"}) == 5
    assert scrape("availability_oversold_units") == 2
    assert scrape("availability_parked_stream_age_seconds") == 90
    assert scrape("availability_exceptions_oldest_age_seconds", {"category": "oversold"}) == 60


def test_the_listener_is_optional_and_can_be_stopped(unused_port: int) -> None:
    """Empty: nothing listens. Else /metrics answers until it is stopped."""
    telemetry = Telemetry()
    assert start_metrics_listener("", telemetry.registry) is None
    stop = start_metrics_listener(f"127.0.0.1:{unused_port}", telemetry.registry)
    assert stop is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics", timeout=10) as answer:
        assert b"availability_calls_queued" in answer.read()
    stop()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_feeds_are_asked_at_the_scrape() -> None:
    """Age and staleness by source and node; a feed that is watched no more is gone from the next scrape."""
    telemetry = Telemetry()
    feeds = [("wms", "east", 90.0, True), ("erp", "west", 1.5, False)]
    telemetry.watch_feeds(lambda: feeds)

    def scrape(name: str, source: str, node: str) -> float | None:
        return telemetry.registry.get_sample_value(name, {"source": source, "node": node})

    assert scrape("availability_feed_age_seconds", "wms", "east") == 90
    assert scrape("availability_feed_stale", "wms", "east") == 1
    assert scrape("availability_feed_stale", "erp", "west") == 0
    feeds.pop()
    assert scrape("availability_feed_age_seconds", "erp", "west") is None


def test_every_metric_follows_the_conventions() -> None:
    """One prefix, base units as suffix, help as a sentence, no name twice, no label that has no end."""
    found = catalogue()
    names = [one.name for one in found]
    assert len(names) == len(set(names)) > 50
    for one in found:
        assert re.fullmatch(r"availability_[a-z]+(_[a-z]+)*", one.name), one.name
        assert one.help.endswith("."), f"{one.name}: {one.help}"
        assert one.kind != "counter" or one.name.endswith("_total"), one.name
        assert one.kind == "counter" or not one.name.endswith("_total"), one.name
        assert not re.search(r"_(ms|millis|milliseconds|minutes|hours|percent)\b", one.name), one.name
        assert not {"sku", "order", "reservation", "version", "correlation_id"} & set(one.labels), one.name


@pytest.mark.parametrize("metrics", [Telemetry, IngestMetrics, PublishMetrics, HistoryMetrics])
def test_every_process_tells_its_own_memory(metrics: type[Telemetry]) -> None:
    """Processor time and memory are on the dashboard of operations by job: each process has to tell them."""
    scrape = metrics().registry.get_sample_value
    assert (scrape("process_resident_memory_bytes") or 0) > 10_000_000
    assert scrape("process_cpu_seconds_total")


def test_counts_begin_at_zero() -> None:
    """An increase sees no first value: what alerts and ratios count is there before anything happened."""
    ingest, publish, history = IngestMetrics(), PublishMetrics(), HistoryMetrics()
    RowCounter(ingest, "wms")
    publish.known("web", TOPICS)
    told = {
        (sample.name, *sorted(sample.labels.values()))
        for metrics in (ingest, publish, history)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.value == 0
    }
    for result in ("applied", "repeated", "refused"):
        assert ("availability_ingest_rows_total", result, "wms") in told
    for demand in ("normal", "high"):
        assert ("availability_publish_breaches_total", demand, "web") in told
        assert ("availability_publish_delay_seconds_count", demand, "web") in told
    for topic in TOPICS:
        assert ("availability_publish_webhooks_disabled_total", topic, "web") in told
    for result in ("forged", "lost", "unreadable"):
        assert ("availability_publish_webhooks_total", result, "web") in told
    assert ("availability_publish_verify_differences_total", "web") in told
    for cause in ("database", "ledger", "place"):
        assert ("availability_history_failures_total", cause) in told


def test_a_scrape_outlives_who_is_asked() -> None:
    """Figures that cannot be had are absent and a gauge says so; the rest of the scrape is there."""
    metrics = IngestMetrics()
    answers: list[object] = [
        [
            SourceFigures(
                source="wms",
                files_waiting=3,
                source_age_s=None,
                parked_age_s=0,
                dead_letter_age_s=7,
                dead_letters=(("VALIDATION", 2),),
            )
        ],
        RuntimeError("the database is away"),
    ]

    def ask() -> list[SourceFigures]:
        answer = answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]  # the list above

    scrape = metrics.registry.get_sample_value
    assert scrape("availability_ingest_figures_up") is None
    metrics.watch(ask)
    metrics.rows("wms", "applied", 5)
    assert scrape("availability_ingest_figures_up") == 1
    assert scrape("availability_ingest_dead_letters", {"source": "wms", "category": "VALIDATION"}) == 2
    assert scrape("availability_ingest_source_age_seconds", {"source": "wms"}) is None
    answers.pop(0)
    assert scrape("availability_ingest_figures_up") == 0
    assert scrape("availability_ingest_files_waiting", {"source": "wms"}) is None
    assert scrape("availability_ingest_rows_total", {"source": "wms", "result": "applied"}) == 5


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        (f"00-{TRACE_ID}-00f067aa0ba902b7-01", TRACE_ID),
        (f"01-{TRACE_ID}-00f067aa0ba902b7-01-what-comes-later", TRACE_ID),
        (f"00-{TRACE_ID}-00f067aa0ba902b7-01-x", None),
        (f"ff-{TRACE_ID}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE_ID}-{'0' * 16}-01", None),
        (f"00-{TRACE_ID.upper()}-00f067aa0ba902b7-01", None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_the_standard_says(header: str, trace_id: str | None) -> None:
    """Version 00 has 55 characters, later ones may have more; zeros, ff and capitals are no trace."""
    found = Trace.parse(header)
    assert (found.trace_id if found else None) == trace_id


def test_a_correlation_id_is_a_trace_again() -> None:
    """A trace id stays itself; any other id always gives the same, valid trace; what is written can be read."""
    span = "00f067aa0ba902b7"
    assert Trace.of_correlation(TRACE_ID, span).traceparent() == f"00-{TRACE_ID}-{span}-00"
    own = Trace.of_correlation("order 1001", span)
    assert own == Trace.of_correlation("order 1001", span) != Trace.of_correlation("order 1002", span)
    assert Trace.parse(own.traceparent()) == own
    assert correlation_of("", f"00-{TRACE_ID}-{span}-01") == TRACE_ID
    assert correlation_of("mine", f"00-{TRACE_ID}-{span}-01") == "mine"
