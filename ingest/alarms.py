"""What of a source a person must see: letters that wait, unknown skus, refused files, feeds that fail: as exceptions.

Parked streams, short picks and damages the servers see themselves. Everything is asked of the database anew each time
and told as it is, what is over too, so that nothing of it has to be remembered over a restart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine

from availability.client import ClientError
from availability.v1 import exception_pb2 as exc
from ingest.database import artifacts, dead_letters
from ingest.feed_health import FOLDER, WEBHOOK, FeedHealth
from ingest.letters import WAITING
from ingest.rows import Category
from ingest.runs import REFUSED
from ingest.settings import SourceSettings

_LOG = structlog.get_logger(__name__)

LOOK_S = 5.0
TOLD_AGAIN_S = 60.0
REFUSED_FILES_S = 86_400.0
"""How long a file that was refused as a whole stays in the list: it has no letter that could be closed."""
UNKNOWN_SKU_REASONS = ("UNKNOWN_SKU", "SKU_PATTERN")
"""Each message names the sku, and only that: different messages are different skus."""
MESSAGE_CHARS_MAX = 300
FEED_KINDS = ("sftp", "redis_stream", "rest", WEBHOOK, FOLDER)


class Reports(Protocol):
    """What takes reports: ``availability.client.Client``. Raises ClientError."""

    def report_exceptions(
        self, source: str, wrong: list[exc.ReportedException], over: list[exc.ReportedException]
    ) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is wrong with a source now, by (category, subject)."""

    wrong: Mapping[tuple[int, str], exc.ReportedException]
    over: tuple[tuple[int, str], ...]


_LETTER = int(exc.EXCEPTION_CATEGORY_DEAD_LETTER)
_UNKNOWN_SKU = int(exc.EXCEPTION_CATEGORY_UNKNOWN_SKU)
_FEED = int(exc.EXCEPTION_CATEGORY_FEED_FAILED)
REFUSED_FILES, SKUS = "files", "skus"


def subjects() -> Iterator[tuple[int, str]]:
    """Everything that can be wrong with a source."""
    yield from ((_LETTER, category.value) for category in Category)
    yield _LETTER, REFUSED_FILES
    yield _UNKNOWN_SKU, SKUS
    yield from ((_FEED, kind) for kind in FEED_KINDS)


def look(engine: Engine, health: FeedHealth, settings: SourceSettings, now: float) -> Found:
    """Return what is wrong with a source. Raises what the database raises."""
    found = {
        (int(one.category), one.subject[0]): one
        for one in (
            *_letters(engine, settings, now),
            *_files(engine, settings, now),
            *_feeds(health, settings, now),
        )
    }
    return Found(wrong=found, over=tuple(one for one in subjects() if one not in found))


def _letters(engine: Engine, settings: SourceSettings, now: float) -> Iterator[exc.ReportedException]:
    table, limits = dead_letters, settings.alarms
    waiting = sa.and_(table.c.source == settings.source, table.c.state == WAITING)
    with engine.connect() as connection:
        counts = connection.execute(
            sa.select(table.c.category, sa.func.count(), sa.func.min(table.c.first_seen_at))
            .where(waiting)
            .group_by(table.c.category)
        ).all()
        for category, count, first in counts:
            if count <= limits.letters and now - first <= limits.letter_age_s:
                continue
            example = connection.execute(
                sa.select(table.c.reason, table.c.message)
                .where(waiting, table.c.category == category)
                .order_by(table.c.first_seen_at, table.c.position)
                .limit(1)
            ).one()
            yield _reported(
                _LETTER,
                category,
                f"{count} dead letters of {settings.source} ({category}) wait, the oldest since {_time(first)}:"
                f" {example.reason}: {example.message}",
                count,
            )
        skus = connection.execute(
            sa.select(sa.func.count(sa.distinct(table.c.message))).where(
                waiting, table.c.reason.in_(UNKNOWN_SKU_REASONS)
            )
        ).scalar_one()
    if skus > limits.unknown_skus:
        message = f"{settings.source} names {skus} skus that nobody knows"
        yield _reported(_UNKNOWN_SKU, SKUS, message, skus)


def _files(engine: Engine, settings: SourceSettings, now: float) -> Iterator[exc.ReportedException]:
    table = artifacts
    query = (
        sa.select(table.c.name, table.c.reason)
        .where(
            table.c.source == settings.source,
            table.c.state == REFUSED,
            table.c.ended_at > now - REFUSED_FILES_S,
        )
        .order_by(table.c.ended_at.desc())
    )
    with engine.connect() as connection:
        refused = connection.execute(query).all()
    if refused:
        message = (
            f"{len(refused)} files of {settings.source} were refused within a day, the last is {refused[0].name}:"
            f" {refused[0].reason}"
        )
        yield _reported(_LETTER, REFUSED_FILES, message, len(refused))


def _feeds(health: FeedHealth, settings: SourceSettings, now: float) -> Iterator[exc.ReportedException]:
    for state in health.all(settings.source):
        since = state.failing_since
        if since is not None and now - since >= settings.alarms.feed_failing_s:
            message = f"{state.kind} of {settings.source} fails since {_time(since)}: {state.reason}: {state.message}"
            yield _reported(_FEED, state.kind, message, 0)


def _reported(category: int, subject: str, message: str, quantity: int) -> exc.ReportedException:
    shown = "".join(sign if sign.isprintable() else " " for sign in message)[:MESSAGE_CHARS_MAX]
    return exc.ReportedException(
        category=exc.ExceptionCategory.ValueType(category),
        subject=[subject],
        message=shown,
        quantity=quantity,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Alarms:
    """Looks at the sources and reports; a ledger that is away is told at the next look."""

    def __init__(
        self,
        engine: Engine,
        health: FeedHealth,
        sources: Mapping[str, SourceSettings],
        client: Reports,
        now: Callable[[], float],
    ) -> None:
        self._engine, self._health = engine, health
        self._sources, self._client = sources, client
        self._now = now
        self._told: dict[str, tuple[float, Found]] = {}
        self._refused: set[str] = set()

    def look(self) -> None:
        """Report what changed since the last look, and everything once a minute; a failure is tried again then."""
        for source, settings in self._sources.items():
            now = self._now()
            try:
                found = look(self._engine, self._health, settings, now)
                told_at, before = self._told.get(source, (0.0, None))
                if found == before and now - told_at < TOLD_AGAIN_S:
                    continue
                self._client.report_exceptions(
                    source,
                    list(found.wrong.values()),
                    [_over(category, subject) for category, subject in found.over],
                )
                self._told[source] = now, found
            except ClientError as error:
                if error.code == "PERMISSION_DENIED" and source in self._refused:
                    continue
                self._refused.add(source)
                _LOG.warning("exceptions are not reported", source=source, reason=error.reason)
            except sa.exc.SQLAlchemyError as error:
                _LOG.error("exceptions are not looked for", source=source, error=type(error).__name__)


def _over(category: int, subject: str) -> exc.ReportedException:
    return exc.ReportedException(category=exc.ExceptionCategory.ValueType(category), subject=[subject])


class AlarmThread:
    """Looks every few seconds, so that a long file keeps nobody from hearing of the others."""

    def __init__(self, alarms: Alarms, *, interval_s: float = LOOK_S) -> None:
        self._alarms = alarms
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a look under way has a moment."""
        self._stop.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._alarms.look()
