"""What the metrics of sources tell at each scrape: what waits and how long, from the database and the folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.telemetry import IngestMetrics, SourceFigures
from availability.telemetry.ingest import ROW_RESULTS
from ingest.database import dead_letters, stream_marks
from ingest.feed_health import FeedHealth
from ingest.letters import WAITING
from ingest.runs import Progress
from ingest.sources.drop_folder import DropFolderSource


class RowCounter:
    """Counts the rows of one source as they are settled. One thread at a time."""

    def __init__(self, metrics: IngestMetrics, source: str) -> None:
        self._metrics = metrics
        self._source = source
        self._file: Progress | None = None
        self._counted = dict.fromkeys(ROW_RESULTS, 0)
        metrics.known(source)

    def count(self, progress: Progress) -> None:
        """Count what is new since this file's progress was counted last."""
        if progress is not self._file:
            self._file, self._counted = progress, dict.fromkeys(ROW_RESULTS, 0)
        for result in ROW_RESULTS:
            now = getattr(progress, result)
            if now > self._counted[result]:
                self._metrics.rows(self._source, result, now - self._counted[result])
                self._counted[result] = now


def source_figures(
    engine: Engine, folders: Mapping[str, DropFolderSource | None], now: float
) -> Iterator[SourceFigures]:
    """Return each source's figures; ``now`` in seconds since 1970. A source without a folder has None.

    Raises what the database raises. A folder that cannot be read leaves the number of its files out.
    """
    letters, oldest = _letters(engine)
    marks = _marks(engine)
    feeds: dict[str, list[tuple[str, float]]] = {}
    for state in FeedHealth(engine, lambda: now).all():
        since = state.failing_since
        failing_s = 0.0 if since is None else max(0.0, now - since)
        feeds.setdefault(state.source, []).append((state.kind, failing_s))
    for source, folder in folders.items():
        watermark, parked_at = marks.get(source, (0.0, None))
        yield SourceFigures(
            source=source,
            files_waiting=_waiting(folder),
            source_age_s=max(0.0, now - watermark) if watermark else None,
            parked_age_s=max(0.0, now - parked_at) if parked_at is not None else 0.0,
            dead_letter_age_s=max(0.0, now - oldest[source]) if source in oldest else 0.0,
            dead_letters=tuple(sorted(letters.get(source, {}).items())),
            feeds=tuple(feeds.get(source, ())),
        )


def _waiting(folder: DropFolderSource | None) -> int | None:
    try:
        return None if folder is None else len(folder.ready())
    except OSError:  # the carrying loop meets it too, and says so
        return None


def _letters(engine: Engine) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
    """Waiting letters by source and category, and when the oldest of each source was first seen."""
    table = dead_letters
    query = (
        sa.select(
            table.c.source,
            table.c.category,
            sa.func.count().label("letters"),
            sa.func.min(table.c.first_seen_at),
        )
        .where(table.c.state == WAITING)
        .group_by(table.c.source, table.c.category)
    )
    counts: dict[str, dict[str, int]] = {}
    oldest: dict[str, float] = {}
    with engine.connect() as connection:
        for source, category, count, first in connection.execute(query):
            counts.setdefault(source, {})[category] = count
            oldest[source] = min(first, oldest.get(source, first))
    return counts, oldest


def _marks(engine: Engine) -> dict[str, tuple[float, float | None]]:
    """Latest settled moment and earliest parking of each source."""
    table = stream_marks
    query = sa.select(
        table.c.source, sa.func.max(table.c.watermark), sa.func.min(table.c.parked_at)
    ).group_by(table.c.source)
    with engine.connect() as connection:
        return {source: (latest, parked) for source, latest, parked in connection.execute(query)}
