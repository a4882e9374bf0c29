"""What a process tells of itself: metrics for Prometheus, logs as JSON lines on stderr.

Metrics are objects that a root makes and hands to the parts: nothing is registered or started at import, and
no part imports a metric of another. Children are looked up once (`labels` costs more than counting). Logs
carry reasons and ids, never payloads or secrets. Which metrics exist is told by `Telemetry.__init__`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

CALL_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
LEDGER_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
GROUP_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
WAIT_BUCKETS_S = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Telemetry:
    """Every metric of a server process, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.calls = CallMetrics(self.registry)
        self.ledger = LedgerMetrics(self.registry)
        self.outcomes = OutcomeMetrics(self.registry)
        self._gauges = _Gauges(self.registry)

    def watch_replica_age(self, age_seconds: Callable[[], float]) -> None:
        """Report how long ago the replica was last proven to be caught up, asked at each scrape."""
        self._gauges.replica_age.set_function(age_seconds)

    def watch_pool(self, queued: Callable[[], float], blocked: Callable[[], float]) -> None:
        """Report the calls that wait for a thread and those that wait on one, asked at each scrape."""
        self._gauges.queued.set_function(queued)
        self._gauges.blocked.set_function(blocked)

    def watch_commit_queue(self, length: Callable[[], float]) -> None:
        """Report the writes that wait for the ledger, asked at each scrape."""
        self._gauges.commit_queue.set_function(length)


class CallMetrics:
    """Calls by method and code, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "availability_rpc_requests_total", "Ended calls.", ["method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "availability_rpc_duration_seconds",
            "Time from a thread's taking a call to its answer; streams are not in it.",
            ["method"],
            buckets=CALL_BUCKETS_S,
            registry=registry,
        )

    def observer(self, method: str, *, timed: bool = True) -> Callable[[str, float], None]:
        """Return what counts one ended call of `method`, given (code, seconds)."""
        # Codes are few and methods are ours, so the children are bounded.
        children: dict[str, Callable[[], None]] = {}
        observe = self._seconds.labels(method).observe if timed else None

        def count(code: str, seconds: float) -> None:
            inc = children.get(code)
            if inc is None:
                inc = children[code] = self._requests.labels(method, code).inc
            inc()
            if observe is not None:
                observe(seconds)

        return count


class LedgerMetrics:
    """Calls of the ledger's functions, and how many travel together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "availability_ledger_calls_total",
            "Ledger calls by function and result.",
            ["function", "result"],
            registry=registry,
        )
        self._round_trip = Histogram(
            "availability_ledger_round_trip_seconds",
            "Round trips to the ledger, each carrying a group of calls.",
            buckets=LEDGER_BUCKETS_S,
            registry=registry,
        )
        self._group = Histogram(
            "availability_ledger_group_size",
            "Calls that travelled in one round trip.",
            buckets=GROUP_BUCKETS,
            registry=registry,
        )
        self._children: dict[tuple[str, str], Callable[[float], None]] = {}

    def called(self, function: str, result: str, count: int = 1) -> None:
        """Count calls of a function; `result` is a word (ok, refused, handshake), never a message."""
        inc = self._children.get((function, result))
        if inc is None:
            inc = self._children[function, result] = self._calls.labels(function, result).inc
        inc(count)

    def travelled(self, group_size: int, seconds: float) -> None:
        """Record one round trip."""
        self._group.observe(group_size)
        self._round_trip.observe(seconds)


class OutcomeMetrics:
    """What became of reservations, deltas and promises: the numbers a shop keeper asks for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reservations = Counter(
            "availability_reservations_total", "Reservations by outcome.", ["outcome"], registry=registry
        )
        self._deltas = Counter(
            "availability_deltas_total", "Deltas by result.", ["result"], registry=registry
        )
        self._oversold = Counter(
            "availability_oversold_units_total",
            "Units that a fact promised beyond what the position could give.",
            registry=registry,
        )
        self._children: dict[tuple[int, str], Callable[[float], None]] = {}

    def reservation(self, outcome: str, count: int = 1) -> None:
        """Count ends or beginnings of reservations: reserved, insufficient_stock, committed, expired …"""
        self._inc(self._reservations, outcome, count)

    def deltas(self, result: str, count: int = 1) -> None:
        """Count deltas of one result: applied, duplicate, stale, rejected, parked."""
        self._inc(self._deltas, result, count)

    def oversold(self, units: int) -> None:
        """Count units that an order fact takes below nothing."""
        self._oversold.inc(units)

    def _inc(self, counter: Counter, label: str, count: int) -> None:
        inc = self._children.get((id(counter), label))
        if inc is None:
            inc = self._children[id(counter), label] = counter.labels(label).inc
        inc(count)


class _Gauges:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.replica_age = Gauge(
            "availability_replica_age_seconds",
            "Time since the replica was last proven to be caught up.",
            registry=registry,
        )
        self.queued = Gauge("availability_calls_queued", "Calls that wait for a thread.", registry=registry)
        self.blocked = Gauge(
            "availability_calls_blocked", "Calls that wait for the ledger or the replica.", registry=registry
        )
        self.commit_queue = Gauge(
            "availability_commit_queue_length", "Writes that wait for the ledger.", registry=registry
        )


# --- The listener for scrapes -----------------------------------------------------------------------------


def start_metrics_listener(listen: str, registry: CollectorRegistry) -> Callable[[], None] | None:
    """Serve /metrics on `host:port` from a thread and return what stops it; None where `listen` is "".

    One process, one listener: worker processes on a shared port need a metrics port each.
    """
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), addr=host.strip("[]") or "127.0.0.1", registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


# --- Logs -------------------------------------------------------------------------------------------------


def setup_logging(level: str = "INFO", format: str = "json", stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to stderr: `json` lines, or `text` for a person.

    Call it once, from a composition root.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format == "json":
        render: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json),
        ]
    else:
        render = [structlog.dev.ConsoleRenderer(colors=False)]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a logger made before this call must follow it too
    )


def _json(event: object, **_: object) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
