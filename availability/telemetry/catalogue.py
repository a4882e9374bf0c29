"""Every metric there is, by process: what alerts, dashboards and README's table are compared with.

``python -m availability.telemetry.catalogue`` prints the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from availability.telemetry.history import HistoryMetrics
from availability.telemetry.ingest import IngestMetrics
from availability.telemetry.publish import PublishMetrics
from availability.telemetry.server import Telemetry

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One metric. ``series``: the names that a query may use."""

    process: str
    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    series: tuple[str, ...]


def catalogue() -> list[Described]:
    """Return every metric, by process and name."""
    return sorted(_described(), key=lambda one: (one.process, one.name))


def _described() -> Iterator[Described]:
    for process, registry in _registries():
        for metric, labels in _families(registry):
            if metric.name.startswith("availability_"):
                suffixes = _SUFFIXES[metric.type]
                yield Described(
                    process=process,
                    name=metric.name + ("_total" if metric.type == "counter" else ""),
                    kind=metric.type,
                    help=metric.documentation,
                    labels=labels,
                    series=tuple(metric.name + suffix for suffix in suffixes),
                )


def _registries() -> Iterator[tuple[str, CollectorRegistry]]:
    server = Telemetry()
    server.watch_feeds(lambda: ())
    zero = dict.fromkeys(("skus", "walks", "disagreements", "age_s", "walk_s"), float)
    server.watch_digest(**zero)
    yield "server", server.registry
    yield "ingest", IngestMetrics().registry
    yield "publisher", PublishMetrics().registry
    yield "historian", HistoryMetrics().registry


def _families(registry: CollectorRegistry) -> Iterator[tuple[Metric, tuple[str, ...]]]:
    for collector in list(registry._collector_to_names):
        # Those that ask somebody describe themselves; their answers would need somebody to ask.
        describe = getattr(collector, "describe", None)
        for metric in describe() if describe is not None else collector.collect():
            labels = getattr(collector, "_labelnames", ()) or getattr(metric, "_labelnames", ())
            yield metric, tuple(labels)


def table() -> str:
    """Return the catalogue as a Markdown table."""
    rows = ["| process | metric | labels | what it is |", "|---|---|---|---|"]
    rows += [
        f"| {one.process} | `{one.name}` | {', '.join(one.labels)} | {one.help} |" for one in catalogue()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
