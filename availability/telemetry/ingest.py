"""Metrics of the process that carries feeds: rows and files as they are carried, what waits as the database tells.

Which rows need a hand is `refused` over all rows; how old what waits is, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from availability.telemetry.asked import AskedMetrics, Family, Sample

ROW_RESULTS = ("applied", "repeated", "refused", "ignored", "compared")
FILE_STATES = ("done", "refused", "known")

_FAMILIES = (
    Family(
        name="availability_ingest_files_waiting",
        help="Complete files that wait in a source's drop folder.",
        labels=("source",),
    ),
    Family(
        name="availability_ingest_source_age_seconds",
        help="Time since the latest moment that a source has told of and that is settled.",
        labels=("source",),
    ),
    Family(
        name="availability_ingest_parked_age_seconds",
        help="Time that the longest parked stream of a source waits for its missing number; 0: none is parked.",
        labels=("source",),
    ),
    Family(
        name="availability_ingest_dead_letters",
        help="Dead letters that wait for a person.",
        labels=("source", "category"),
    ),
    Family(
        name="availability_ingest_dead_letter_age_seconds",
        help="Age of a source's oldest waiting dead letter; 0: none waits.",
        labels=("source",),
    ),
    Family(
        name="availability_ingest_feed_failing_seconds",
        help="How long nothing could be fetched by a feed, or a source's webhook or folder is shut; 0: it works.",
        labels=("source", "kind"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFigures:
    """How a source fares. ``source_age_s`` None: nothing was settled yet. ``files_waiting`` None: not known."""

    source: str
    files_waiting: int | None
    source_age_s: float | None
    parked_age_s: float
    dead_letter_age_s: float
    dead_letters: tuple[tuple[str, int], ...]
    """(category, letters that wait)."""
    feeds: tuple[tuple[str, float], ...] = ()
    """(kind, seconds for which it fails; 0: it works)."""


class IngestMetrics:
    """See the module."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._rows = Counter(
            "availability_ingest_rows_total",
            f"Rows of carried files by what became of them: {', '.join(ROW_RESULTS)}.",
            ["source", "result"],
            registry=self.registry,
        )
        self._artifacts = Counter(
            "availability_ingest_artifacts_total",
            f"Carried files by how they ended: {', '.join(FILE_STATES)}.",
            ["source", "state"],
            registry=self.registry,
        )
        self._away = Gauge(
            "availability_ingest_ledger_unreachable",
            "1 while the ledger takes no deltas and files wait.",
            registry=self.registry,
        )
        self._asked = AskedMetrics(self.registry, "ingest", _FAMILIES)

    def known(self, source: str) -> None:
        """Begin a source's counts at 0: what a rate or an increase first sees of a series is where it counts from."""
        for result in ROW_RESULTS:
            self._rows.labels(source, result)
        for state in FILE_STATES:
            self._artifacts.labels(source, state)

    def rows(self, source: str, result: str, count: int) -> None:
        """Count rows."""
        self._rows.labels(source, result).inc(count)

    def artifact(self, source: str, state: str) -> None:
        """Count a file that ended."""
        self._artifacts.labels(source, state).inc()

    def ledger_away(self, away: bool) -> None:
        """Say whether the ledger takes deltas."""
        self._away.set(float(away))

    def watch(self, figures: Callable[[], Iterable[SourceFigures]]) -> None:
        """Ask for the sources' figures at each scrape."""
        self._asked.watch(lambda: _samples(figures()))


def _samples(sources: Iterable[SourceFigures]) -> Iterator[Sample]:
    for one in sources:
        source = (one.source,)
        if one.files_waiting is not None:
            yield "availability_ingest_files_waiting", source, float(one.files_waiting)
        if one.source_age_s is not None:
            yield "availability_ingest_source_age_seconds", source, one.source_age_s
        yield "availability_ingest_parked_age_seconds", source, one.parked_age_s
        yield "availability_ingest_dead_letter_age_seconds", source, one.dead_letter_age_s
        for category, count in one.dead_letters:
            yield "availability_ingest_dead_letters", (one.source, category), float(count)
        for kind, failing_s in one.feeds:
            yield "availability_ingest_feed_failing_seconds", (one.source, kind), failing_s
