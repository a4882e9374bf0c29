"""Figures that somebody else keeps (a database, a queue) and that are asked for at each scrape.

A scrape does not fail with who is asked: its figures are then absent, `availability_PART_figures_up` says so, and the
reason is logged once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One gauge: its name, its help, the names of its labels."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


Sample = tuple[str, tuple[str, ...], float]
"""Name of a family, values of its labels, value."""


class AskedMetrics(Collector):
    """Gauges of one part. `ask` is set by `watch`; before it the part tells nothing."""

    def __init__(self, registry: CollectorRegistry, part: str, families: Iterable[Family]) -> None:
        self._part = part
        self._families = {family.name: family for family in families}
        self._ask: Callable[[], Iterable[Sample]] | None = None
        self._failing = False
        registry.register(self)

    def watch(self, ask: Callable[[], Iterable[Sample]]) -> None:
        """Ask this at each scrape, on the scrape's thread."""
        self._ask = ask

    def describe(self) -> Iterator[Metric]:
        """Return the families without samples: the registry refuses a name that is taken."""
        yield self._up()
        for family in self._families.values():
            yield GaugeMetricFamily(family.name, family.help, labels=family.labels)

    def collect(self) -> Iterator[Metric]:
        """Return what is scraped."""
        families = {
            name: GaugeMetricFamily(name, family.help, labels=family.labels)
            for name, family in self._families.items()
        }
        if self._ask is None:
            return
        up = self._up()
        try:
            for name, labels, value in self._ask():
                families[name].add_metric(labels, value)
        except Exception:  # whoever is asked may be away; its metrics are then absent, and an alert says so
            if not self._failing:
                self._failing = True
                _LOG.exception("figures cannot be asked for", part=self._part)
            up.add_metric((), 0.0)
            yield up
            return
        self._failing = False
        up.add_metric((), 1.0)
        yield up
        yield from families.values()

    def _up(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            f"availability_{self._part}_figures_up", "1 while the figures of this part could be asked for."
        )
