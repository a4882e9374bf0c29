"""Metrics of the historian, and of nightly reconciliation as its database tells.

A nightly run ends before anybody scrapes it, so its results are told by the historian, which reads the same database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from availability.telemetry.asked import AskedMetrics, Family, Sample

WRITE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
FAILURES = ("database", "ledger", "place")

_LAG = (
    Family(
        name="availability_history_lag_seconds",
        help="Time since the historian was last proven to have written all of the log.",
    ),
    Family(
        name="availability_history_lag_records",
        help="Records of the log that are not in the database yet.",
    ),
)
_RECONCILE = (
    Family(
        name="availability_reconcile_age_seconds",
        help="Time since a source's snapshot was last reconciled to its end.",
        labels=("source",),
    ),
    Family(
        name="availability_reconcile_positions",
        help="Positions that a source's latest run compared.",
        labels=("source",),
    ),
    Family(
        name="availability_reconcile_variance_positions",
        help="Positions of a source's latest run that differed from the ledger.",
        labels=("source",),
    ),
    Family(
        name="availability_reconcile_variance_units",
        help="Units by which a source's latest run differed, without sign, by cause.",
        labels=("source", "cause"),
    ),
    Family(
        name="availability_reconcile_held",
        help="1 while a guard holds a source's latest run until an operator approves it.",
        labels=("source",),
    ),
    Family(
        name="availability_inventory_accuracy_ratio",
        help="Share of a source's positions that the latest run found equal to the ledger, 0 to 1.",
        labels=("source",),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileFigures:
    """A source's latest run. ``age_s`` None: no run came to its end yet. Units without sign."""

    source: str
    age_s: float | None
    positions: int
    variance_positions: int
    held: bool
    variance_units: tuple[tuple[str, int], ...]
    """(cause, units)."""


class HistoryMetrics:
    """See the module."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._records = Counter(
            "availability_history_records_total", "Records written to the database.", registry=self.registry
        )
        self._write = Histogram(
            "availability_history_write_seconds",
            "Transactions that write records, with the place in the log.",
            buckets=WRITE_BUCKETS_S,
            registry=self.registry,
        )
        self._failures = Counter(
            "availability_history_failures_total",
            f"Times that the historian stopped and began again, by cause: {', '.join(FAILURES)}.",
            ["cause"],
            registry=self.registry,
        )
        for cause in FAILURES:  # from 0 on: the first failure is seen as a step too
            self._failures.labels(cause)
        self._lag = AskedMetrics(self.registry, "history", _LAG)
        self._reconcile = AskedMetrics(self.registry, "reconcile", _RECONCILE)

    def wrote(self, records: int, seconds: float) -> None:
        """Record one transaction."""
        self._records.inc(records)
        self._write.observe(seconds)

    def failed(self, cause: str) -> None:
        """Count a failure; `cause` is a word."""
        self._failures.labels(cause).inc()

    def watch_lag(self, lag: Callable[[], tuple[float, int]]) -> None:
        """Ask at each scrape how far the historian is behind, in (seconds, records)."""

        def ask() -> Iterator[Sample]:
            seconds, records = lag()
            yield "availability_history_lag_seconds", (), seconds
            yield "availability_history_lag_records", (), float(records)

        self._lag.watch(ask)

    def watch_reconcile(self, figures: Callable[[], Iterable[ReconcileFigures]]) -> None:
        """Ask for each source's latest run at each scrape."""
        self._reconcile.watch(lambda: _samples(figures()))


def _samples(runs: Iterable[ReconcileFigures]) -> Iterator[Sample]:
    for one in runs:
        source = (one.source,)
        if one.age_s is not None:
            yield "availability_reconcile_age_seconds", source, one.age_s
        yield "availability_reconcile_positions", source, float(one.positions)
        yield "availability_reconcile_variance_positions", source, float(one.variance_positions)
        yield "availability_reconcile_held", source, float(one.held)
        if one.positions:
            equal = 1 - one.variance_positions / one.positions
            yield "availability_inventory_accuracy_ratio", source, equal
        for cause, units in one.variance_units:
            yield "availability_reconcile_variance_units", (one.source, cause), float(units)
