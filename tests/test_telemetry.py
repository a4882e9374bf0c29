"""Logs are JSON lines whoever writes them, and metrics can be scraped."""

from __future__ import annotations

import io
import json
import logging
import socket
import urllib.request
from collections.abc import Iterator

import pytest
import structlog

from availability.telemetry import Telemetry, setup_logging, start_metrics_listener


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
    telemetry.ledger.called("reserve", "ok", 3)
    telemetry.ledger.travelled(3, 0.001)
    telemetry.outcomes.reservation("reserved")
    telemetry.outcomes.deltas("applied", 5)
    telemetry.outcomes.oversold(2)
    scrape = telemetry.registry.get_sample_value
    assert scrape("availability_replica_age_seconds") == 0.25
    assert scrape("availability_rpc_requests_total", {"method": "/a/B", "code": "OK"}) == 1
    assert scrape("availability_rpc_duration_seconds_count", {"method": "/a/B"}) == 1
    assert scrape("availability_ledger_calls_total", {"function": "reserve", "result": "ok"}) == 3
    assert scrape("availability_ledger_group_size_sum") == 3
    assert scrape("availability_reservations_total", {"outcome": "reserved"}) == 1
    assert scrape("availability_deltas_total", {"result": "applied"}) == 5
    assert scrape("availability_oversold_units_total") == 2


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
