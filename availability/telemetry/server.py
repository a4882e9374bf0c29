"""Metrics of a server process: calls, ledger, memory, outcomes, exceptions and feeds.

A call is counted with as little as can be (`CallMetrics`); what is known elsewhere is asked at each scrape. Which
metrics exist is told by `Telemetry.__init__`.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CALL_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
CALLS_FOLDED_AT = 4_096
"""Calls of one method and code that are kept singly before they are folded into counts."""
LEDGER_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
GROUP_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
RESERVATION_OUTCOMES = (
    "reserved", "partial", "insufficient_stock", "extended", "committed", "released", "expired",
)  # fmt: skip
DELTA_RESULTS = ("applied", "duplicate", "stale", "rejected", "parked")
_LIBRARY = re.compile(r"\Aavailability_[0-9a-f]+_")
"""What a function's name begins with; it changes with each release of the library."""


class Telemetry:
    """Every metric of a server process, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.calls = CallMetrics(self.registry)
        self.ledger = LedgerMetrics(self.registry)
        self.outcomes = OutcomeMetrics(self.registry)
        self.exceptions = ExceptionMetrics(self.registry)
        self._gauges = _Gauges(self.registry)
        ProcessCollector(registry=self.registry)

    def watch_replica_age(self, age_seconds: Callable[[], float]) -> None:
        """Report how long ago the replica was last proven to be caught up, asked at each scrape."""
        self._gauges.replica_age.set_function(age_seconds)

    def watch_digest(
        self,
        *,
        skus: Callable[[], float],
        walks: Callable[[], float],
        disagreements: Callable[[], float],
        age_s: Callable[[], float],
        walk_s: Callable[[], float],
    ) -> None:
        """Report what the rolling digest has compared, asked at each scrape. Once in a process's life."""
        self.registry.register(
            _DigestMetrics(skus=skus, walks=walks, disagreements=disagreements, age_s=age_s, walk_s=walk_s)
        )

    def watch_pool(self, queued: Callable[[], float], blocked: Callable[[], float]) -> None:
        """Report the calls that wait for a thread and those that wait on one, asked at each scrape."""
        self._gauges.queued.set_function(queued)
        self._gauges.blocked.set_function(blocked)

    def watch_feeds(self, ages: Callable[[], Iterable[tuple[str, str, float, bool]]]) -> None:
        """Report (source, node, seconds since heard, whether it is stale) of every feed, asked at each scrape."""
        self.registry.register(_Feeds(ages))

    def watch_commit_queue(self, length: Callable[[], float]) -> None:
        """Report the writes that wait for the ledger, asked at each scrape."""
        self._gauges.commit_queue.set_function(length)


class _DigestMetrics(Collector):
    """How memory and ledger compare; the numbers are kept by the replica and asked for at each scrape."""

    def __init__(self, **asked: Callable[[], float]) -> None:
        self._asked = asked

    def collect(self) -> Iterator[Metric]:
        """Return what is scraped."""
        counters = {
            "skus": ("availability_digest_skus", "skus of which memory was compared with the ledger."),
            "walks": ("availability_digest_walks", "Times that all of memory was compared."),
            "disagreements": ("availability_digest_disagreements", "Differences found; each was read anew."),
        }
        gauges = {
            "age_s": ("availability_digest_age_seconds", "Time since all of memory had been compared."),
            "walk_s": ("availability_digest_walk_seconds", "How long the last whole comparison took."),
        }
        for what, (name, help) in counters.items():
            yield CounterMetricFamily(name, help, value=self._asked[what]())
        for what, (name, help) in gauges.items():
            yield GaugeMetricFamily(name, help, value=self._asked[what]())


class CallMetrics(Collector):
    """Calls by method and code, and how long they took.

    A call appends its duration to a list and is done: the library's own counters take three locks per call, a tenth
    of the processor time of a read. The lists are folded into counts when they are long, and at each scrape.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._methods: dict[str, _MethodCalls] = {}
        registry.register(self)

    def observer(self, method: str, *, timed: bool = True) -> Callable[[str, float], None]:
        """Return what counts one ended call of `method`, given (code, seconds)."""
        calls = self._methods.get(method)
        if calls is None:
            calls = self._methods[method] = _MethodCalls(timed)
        return calls.ended

    def collect(self) -> Iterator[Metric]:
        """Return what is scraped."""
        requests = CounterMetricFamily("availability_rpc_requests", "Ended calls.", labels=["method", "code"])
        seconds = HistogramMetricFamily(
            "availability_rpc_duration_seconds",
            "Time from a thread's taking a call to its answer; streams are not in it.",
            labels=["method"],
        )
        for method, calls in list(self._methods.items()):
            calls.fold()
            for code, count in list(calls.by_code.items()):
                requests.add_metric([method, code], count)
            if calls.timed:
                edges = [*map(floatToGoString, CALL_BUCKETS_S), "+Inf"]
                buckets = zip(edges, calls.buckets.cumsum().tolist(), strict=True)
                seconds.add_metric([method], list(buckets), calls.seconds)
        yield requests
        yield seconds


class _MethodCalls:
    """One method's calls: those of the moment as a list for each code, the others as counts."""

    def __init__(self, timed: bool) -> None:
        self.timed = timed
        self.by_code: dict[str, int] = {}
        self.buckets = np.zeros(len(CALL_BUCKETS_S) + 1, np.int64)
        self.seconds = 0.0
        self._fresh: dict[str, deque[float]] = {}
        self._folding = threading.Lock()

    def ended(self, code: str, seconds: float) -> None:
        """Count a call."""
        fresh = self._fresh.get(code)
        if fresh is None:
            fresh = self._fresh.setdefault(code, deque())  # codes are few
        fresh.append(seconds)  # atomic, as is each pop
        if len(fresh) >= CALLS_FOLDED_AT:
            self.fold()

    def fold(self) -> None:
        """Move the list into the counts."""
        with self._folding:
            for code, fresh in list(self._fresh.items()):
                took = np.array([fresh.popleft() for _ in range(len(fresh))])
                self.by_code[code] = self.by_code.get(code, 0) + took.size
                if self.timed:
                    self.buckets += np.bincount(
                        np.searchsorted(CALL_BUCKETS_S, took), minlength=self.buckets.size
                    )
                    self.seconds += float(took.sum())


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

    def travelled(self, calls: Mapping[tuple[str, str], int], seconds: float) -> None:
        """Record one round trip: calls by (function, result), and how long it took.

        `function` may be a full name, `availability_DIGEST_reserve`; `result` is a word (ok, late, unreachable).
        """
        for key, count in calls.items():
            inc = self._children.get(key)
            if inc is None:
                function = _LIBRARY.sub("", key[0])
                inc = self._children[key] = self._calls.labels(function, key[1]).inc
            inc(count)
        self._group.observe(sum(calls.values()))
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
        self._replays = Counter(
            "availability_replays_total",
            "Writes whose request id was known: they got the first outcome again.",
            registry=registry,
        )
        self._children: dict[tuple[int, str], Callable[[float], None]] = {}
        for counter, words in ((self._reservations, RESERVATION_OUTCOMES), (self._deltas, DELTA_RESULTS)):
            for word in words:
                self._inc(counter, word, 0)  # a rate needs a 0 to begin with

    def reservation(self, outcome: str, count: int = 1) -> None:
        """Count ends or beginnings of reservations, each once: reserved, insufficient_stock, committed, expired …"""
        self._inc(self._reservations, outcome, count)

    def replayed(self) -> None:
        """Count a write that had its outcome already."""
        self._replays.inc()

    def deltas(self, result: str, count: int = 1) -> None:
        """Count deltas of one result: applied, duplicate, stale, rejected, parked."""
        self._inc(self._deltas, result, count)

    def _inc(self, counter: Counter, label: str, count: int) -> None:
        inc = self._children.get((id(counter), label))
        if inc is None:
            inc = self._children[id(counter), label] = counter.labels(label).inc
        inc(count)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionFigures:
    """What the inspector saw at its last look. Ages in seconds by the ledger's clock, 0 where there is none."""

    oversold_units: int
    unconfirmed_order_age_s: float
    parked_stream_age_s: float
    oldest_age_s: Mapping[int, float]
    """By category: how long its oldest exception is open."""


class ExceptionMetrics:
    """Open exceptions. Names of categories and severities are the contract's, in lower case."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge(
            "availability_exceptions_open",
            "Open and acknowledged exceptions.",
            ["category", "severity"],
            registry=registry,
        )
        self._left_out = Gauge(
            "availability_exceptions_left_out",
            "What is wrong and not kept: reported in the next seconds, or beyond the limit.",
            ["category"],
            registry=registry,
        )
        self._oldest = Gauge(
            "availability_exceptions_oldest_age_seconds",
            "How long the oldest open exception of a category is open; 0: none is.",
            ["category"],
            registry=registry,
        )
        self._oversold = Gauge(
            "availability_oversold_units",
            "Units promised beyond what all nodes can give. Grants never raise it; facts (damage, counts) can.",
            registry=registry,
        )
        self._unconfirmed = Gauge(
            "availability_unconfirmed_order_age_seconds",
            "Time since the commit of the oldest order that is reported as unconfirmed; 0: none is.",
            registry=registry,
        )
        self._parked = Gauge(
            "availability_parked_stream_age_seconds",
            "Time that the longest parked stream waits for its missing number; 0: none waits.",
            registry=registry,
        )
        self._names: tuple[Mapping[int, str], Mapping[int, str]] = ({}, {})

    def name(self, categories: Mapping[int, str], severities: Mapping[int, str]) -> None:
        """Say what the numbers mean, once. From then on every one of them is told, though it be 0."""
        self._names = (categories, severities)
        self.publish(
            {},
            {},
            ExceptionFigures(
                oversold_units=0, unconfirmed_order_age_s=0.0, parked_stream_age_s=0.0, oldest_age_s={}
            ),
        )

    def publish(
        self,
        open_ones: Mapping[tuple[int, int], int],
        left_out: Mapping[int, int],
        figures: ExceptionFigures,
    ) -> None:
        """Set all counts, by (category, severity) and by category, and the figures."""
        categories, severities = self._names
        self._oversold.set(figures.oversold_units)
        self._unconfirmed.set(figures.unconfirmed_order_age_s)
        self._parked.set(figures.parked_stream_age_s)
        for category, name in categories.items():
            self._left_out.labels(name).set(left_out.get(category, 0))
            self._oldest.labels(name).set(figures.oldest_age_s.get(category, 0.0))
            for severity, word in severities.items():
                self._open.labels(name, word).set(open_ones.get((category, severity), 0))


class _Feeds(Collector):
    """The watched feeds. Those of a ledger that cannot be read now are absent, which is what they are."""

    def __init__(self, ages: Callable[[], Iterable[tuple[str, str, float, bool]]]) -> None:
        self._ages = ages

    def collect(self) -> Iterator[Metric]:
        """Return what is scraped."""
        age = GaugeMetricFamily(
            "availability_feed_age_seconds",
            "Time since a watched feed was last heard, by the ledger's clock.",
            labels=["source", "node"],
        )
        stale = GaugeMetricFamily(
            "availability_feed_stale",
            "1 while a watched feed is silent for too long.",
            labels=["source", "node"],
        )
        for source, node, seconds, is_stale in self._ages():
            age.add_metric([source, node], seconds)
            stale.add_metric([source, node], float(is_stale))
        yield age
        yield stale


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
