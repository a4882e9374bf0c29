"""How far the history reaches, day by day, and where something is missing: for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading
from availability.history.journal import JOURNAL, RETENTION
from availability.history.partitions import day_text
from availability.history.tables import baselines, historian, journal_days, journal_forks, unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class DayView:
    """One day of the journal. ``seal``: the kind of its seal, or `open`."""

    day: str
    records: int
    first: str
    last: str
    state: str
    seal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The whole history at a glance."""

    place: str | None
    clock: str
    days: tuple[DayView, ...]
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:  # Any: JSON's own types
        """Return it as JSON types."""
        return asdict(self)


def clock_text(clock_ms: int) -> str:
    """Return a ledger clock as 2026-11-21 18:00:00.000 UTC."""
    return f"{datetime.fromtimestamp(clock_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}.{clock_ms % 1000:03d} UTC"


def overview(engine: Engine) -> Overview:
    """Read it. Raises HistoryError."""
    with reading(engine) as connection:
        place = connection.execute(sa.select(historian).where(historian.c.name == JOURNAL)).first()
        days = connection.execute(sa.select(journal_days).order_by(journal_days.c.day)).all()
        gaps = connection.execute(sa.select(baselines).order_by(baselines.c.version)).all()
        forks = connection.execute(sa.select(journal_forks).order_by(journal_forks.c.fork)).all()
    remarks = [_gap(gap) for gap in gaps]
    remarks += [
        f"a failover took back {fork.records} records after {unpacked(fork.kept_version)}: {fork.reason}"
        for fork in forks
    ]
    return Overview(
        place=str(unpacked(place.version)) if place else None,
        clock=clock_text(place.clock_ms) if place else "",
        days=tuple(
            DayView(
                day=day_text(day.day),
                records=day.records,
                first=str(unpacked(day.first_version)),
                last=str(unpacked(day.last_version)),
                state=day.state,
                seal=day.seal.partition(":")[0] or "open",
            )
            for day in days
        ),
        remarks=tuple(remarks),
    )


def _gap(gap: sa.Row[Any]) -> str:  # Any: the row's columns
    at = unpacked(gap.version)
    if gap.reason == RETENTION:
        return f"days up to {day_text(gap.day)} left the database; {gap.positions} positions stand as of {at}"
    return f"records after {unpacked(gap.after_version)} up to {at} are missing: the log did not have them"
