"""Which point of the history a version or a time means, or why there is none. Times are the ledger's clock, UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from availability.domain.version import Version
from availability.history.database import HistoryError
from availability.history.journal import GAP, JOURNAL, RETENTION, START
from availability.history.partitions import day_text
from availability.history.tables import (
    RETAINED,
    baselines,
    historian,
    journal,
    journal_days,
    journal_forks,
    journal_lost,
    packed,
    unpacked,
)

_RECORD = sa.text(
    "SELECT day, clock_ms FROM journal WHERE version = :version "
    "AND day = (SELECT max(day) FROM journal_days WHERE first_version <= :version)"
)


class NotInHistory(HistoryError):
    """The history does not hold this moment; the message says why and what it holds."""

    reason = "NOT_IN_HISTORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A point of the history; nothing before ``floor`` counts. ``baseline``: of baseline_positions, 0: none."""

    version: int
    clock_ms: int
    day: int
    baseline: int
    floor: int


def parse_at(text: str) -> Version | int:
    """Read what --at takes: a version (`1-42`), or a time in UTC as a clock in milliseconds.

    Times: `2026-11-21`, `2026-11-21 18:00`, `2026-11-21T18:00:05.250Z` or with an offset. Raises ValueError.
    """
    try:
        return Version.parse(text)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a version such as 1-42 nor a time such as 2026-11-21T18:00Z"
        ) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return int(time.timestamp() * 1000)


def moment(connection: Connection, at: Version | int | None) -> Moment:
    """Return the point of a version, of a clock (the last version then), or of now. Raises NotInHistory."""
    place = connection.execute(sa.select(historian).where(historian.c.name == JOURNAL)).first()
    if place is None or place.version == packed(START):
        raise NotInHistory("nothing is written yet: does `availability historian run` run?")
    if at is None:
        return _at_version(connection, place.version)
    if isinstance(at, Version):
        number = packed(at)
        if number > place.version:
            raise NotInHistory(f"the history is written up to {unpacked(place.version)}, and {at} is later")
        return _at_version(connection, number)
    if at >= place.clock_ms:
        return _at_version(connection, place.version)
    return _at_clock(connection, at)


def _at_version(connection: Connection, number: int) -> Moment:
    all_known = connection.execute(sa.select(baselines).order_by(baselines.c.version)).all()
    begins = max((row.version for row in all_known if row.reason == RETENTION), default=0)
    if number < begins:
        raise NotInHistory(_why_missing(connection, number))
    known = [row for row in all_known if row.version <= number]
    baseline = 0
    if known:
        baseline = RETAINED if known[-1].reason == RETENTION else known[-1].version
    floor = max((row.version if row.reason == GAP else row.after_version for row in known), default=0)
    if known and known[-1].version == number:
        return Moment(
            version=number, clock_ms=known[-1].clock_ms, day=known[-1].day, baseline=baseline, floor=floor
        )
    row = connection.execute(_RECORD, {"version": number}).first()
    if row is None:
        raise NotInHistory(_why_missing(connection, number))
    return Moment(version=number, clock_ms=row.clock_ms, day=row.day, baseline=baseline, floor=floor)


def _at_clock(connection: Connection, clock_ms: int) -> Moment:
    """Find the last record whose clock is not later: clocks and versions rise together, so halve the day."""
    day = connection.execute(
        sa.select(journal_days)
        .where(journal_days.c.first_clock_ms <= clock_ms)
        .order_by(journal_days.c.day.desc())
        .limit(1)
    ).first()
    after = connection.execute(
        sa.select(baselines)
        .where(baselines.c.clock_ms <= clock_ms)
        .order_by(baselines.c.version.desc())
        .limit(1)
    ).first()
    found = _last_by(connection, day, clock_ms) if day is not None and day.state == "KEPT" else 0
    if after is not None and after.version > found:
        found = after.version
    if not found:
        raise NotInHistory(f"the history does not reach back so far: {_begins(connection)}")
    gap = connection.execute(
        sa.select(baselines).where(baselines.c.reason == GAP, baselines.c.after_version == found)
    ).first()
    if gap is not None:
        raise NotInHistory(
            f"records after {unpacked(gap.after_version)} up to {unpacked(gap.version)} are missing, and this "
            "time is among them"
        )
    return _at_version(connection, found)


def _last_by(connection: Connection, day: sa.Row[Any], clock_ms: int) -> int:  # Any: a row of journal_days
    low, high = day.first_version, day.last_version
    if clock_ms >= day.last_clock_ms:
        return int(high)
    while low < high:
        middle = low + (high - low + 1) // 2
        row = connection.execute(
            sa.select(journal.c.version, journal.c.clock_ms)
            .where(journal.c.day == day.day, journal.c.version >= middle)
            .order_by(journal.c.version)
            .limit(1)
        ).first()
        if row is not None and row.version <= high and row.clock_ms <= clock_ms:
            low = row.version
        else:
            high = middle - 1
    return int(low)


def _why_missing(connection: Connection, number: int) -> str:
    at = unpacked(number)
    lost = connection.execute(
        sa.select(journal_forks)
        .join(journal_lost, journal_lost.c.fork == journal_forks.c.fork)
        .where(journal_lost.c.version == number)
        .limit(1)
    ).first()
    if lost is not None:
        return (
            f"{at} was taken back by a failover: of that history only the records up to "
            f"{unpacked(lost.kept_version)} were kept"
        )
    gap = connection.execute(
        sa.select(baselines).where(
            baselines.c.reason == GAP, baselines.c.after_version < number, baselines.c.version > number
        )
    ).first()
    if gap is not None:
        return (
            f"the records after {unpacked(gap.after_version)} up to {unpacked(gap.version)} are missing in "
            "the history: the log did not have them any more"
        )
    return f"{at} is not in the history: {_begins(connection)}"


def _begins(connection: Connection) -> str:
    first = connection.execute(
        sa.select(journal_days).where(journal_days.c.state == "KEPT").order_by(journal_days.c.day).limit(1)
    ).first()
    if first is None:
        return "its days have left the database"
    return f"it begins at {unpacked(first.first_version)}, on {day_text(first.day)}"
