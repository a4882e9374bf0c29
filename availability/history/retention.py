"""Old days leave the database: archived or dropped whole, and what they left behind is noted before they go.

Positions as they stood at the end of the last dropped day become the baseline that every later moment rests on, so
explanations of kept days stay exact. One transaction; the files of an archive are whole before it begins. Policies stay
for ever, but what was left of fences, and feeds that fell silent, only as they stood then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.history.archive import write_day
from availability.history.database import reading, upsert, writing
from availability.history.digest import RowsDigest, baseline_fields, day_fields
from availability.history.journal import GAP, JOURNAL, RETENTION, seal_days
from availability.history.partitions import day_text, drop_day
from availability.history.seal import Sealer
from availability.history.tables import (
    DAY_MS,
    RETAINED,
    baseline_positions,
    baselines,
    historian,
    journal,
    journal_days,
    policies,
    position_changes,
)

CHUNK_ROWS = 10_000
_PASSING = ("FENCE_LEFT", "SILENCE")
"""Policies that trade moves all day: of dropped days only the last of each is kept."""
_FIGURES = ("version", "on_hand", "quarantined", "reserved", "committed", "safety_stock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """What a run did: the days that left, and how many positions the baseline has now."""

    days: tuple[str, ...]
    archived: bool
    positions: int


class Retention:
    """Applies the policy: days older than ``keep_days`` leave, to ``archive_dir`` or (None) for good."""

    def __init__(self, engine: Engine, sealer: Sealer, *, keep_days: int, archive_dir: Path | None) -> None:
        self._engine = engine
        self._sealer = sealer
        self._keep_days = keep_days
        self._archive_dir = archive_dir

    def run_by_clock(self) -> Retained:
        """Run as of the day that the ledger's clock has in the history. Raises HistoryError."""
        with reading(self._engine) as connection:
            clock_ms = connection.scalar(sa.select(historian.c.clock_ms).where(historian.c.name == JOURNAL))
        return self.run((clock_ms or 0) // DAY_MS)

    def run(self, today: int) -> Retained:
        """Let old days leave; run again it does nothing more. ``today``: the ledger clock's. Raises HistoryError."""
        due = self._due(today - self._keep_days) if self._keep_days > 0 else []
        if not due:
            return Retained(days=(), archived=False, positions=0)
        digests = {day.day: self._archived(day) for day in due}
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # days may be large
            ledger_id = connection.scalar(
                sa.select(historian.c.ledger_id).where(historian.c.name == JOURNAL).with_for_update()
            )
            seal_days(connection, self._sealer, ledger_id or "", before=due[-1].day + 1)
            floor = self._move_baseline(connection, due)
            for day in due:
                drop_day(connection, day.day)
                self._note_day(connection, day, ledger_id or "", digests[day.day])
            count = self._seal_baseline(connection, due[-1], floor)
        names = tuple(day_text(day.day) for day in due)
        return Retained(days=names, archived=self._archive_dir is not None, positions=count)

    def _due(self, before: int) -> list[sa.Row[Any]]:  # Any: rows of journal_days
        """Return days that may leave, oldest first: over, older than the limit, and never the last one."""
        c = journal_days.c
        with reading(self._engine) as connection:
            last = connection.scalar(sa.select(sa.func.max(c.day)))
            return list(
                connection.execute(
                    sa.select(journal_days)
                    .where(c.state == "KEPT", c.day < min(before, last or 0))
                    .order_by(c.day)
                )
            )

    def _archived(self, day: sa.Row[Any]) -> str:
        if self._archive_dir is None:
            return ""
        with reading(self._engine) as connection:
            return write_day(self._archive_dir, day_text(day.day), _journal_of(connection, day.day))

    def _move_baseline(self, connection: Connection, due: Sequence[sa.Row[Any]]) -> int:
        """Bring the retained positions to the end of the last day that leaves; return their floor."""
        last = due[-1]
        known = connection.execute(
            sa.select(baselines).where(baselines.c.version <= last.last_version).order_by(baselines.c.version)
        ).all()
        floor = max((row.version if row.reason == GAP else row.after_version for row in known), default=0)
        before = max((row.version for row in known if row.reason == RETENTION), default=0)
        gaps = [row.version for row in known if row.reason == GAP and row.version > before]
        noted = baseline_positions.c
        if gaps:  # all that was known before the last gap is void
            connection.execute(sa.delete(baseline_positions).where(noted.baseline == RETAINED))
            connection.execute(
                sa.update(baseline_positions).where(noted.baseline == gaps[-1]).values(baseline=RETAINED)
            )
            connection.execute(sa.delete(baseline_positions).where(noted.baseline.in_(gaps)))
        for day in due:
            _take_last_of_day(connection, day.day, floor)
        connection.execute(
            sa.delete(baselines).where(
                baselines.c.version <= last.last_version, baselines.c.reason == RETENTION
            )
        )
        _thin_passing(connection, last.last_version)
        return floor

    def _note_day(self, connection: Connection, day: sa.Row[Any], ledger_id: str, digest: str) -> None:
        archived = self._archive_dir is not None
        changes = {
            "state": "ARCHIVED" if archived else "DROPPED",
            "archive": day_text(day.day) if archived else "",
            "archive_digest": digest,
        }
        seal = self._sealer.seal("journal_days", day_fields({**day._asdict(), **changes}, ledger_id))
        connection.execute(
            sa.update(journal_days).where(journal_days.c.day == day.day).values(**changes, seal=seal)
        )

    def _seal_baseline(self, connection: Connection, last: sa.Row[Any], floor: int) -> int:
        digest, count = baseline_digest(connection, RETENTION, last.last_version)
        row = {
            "version": last.last_version,
            "day": last.day,
            "clock_ms": last.last_clock_ms,
            "chain": last.last_chain,
            "after_version": floor,
            "reason": RETENTION,
            "positions": count,
            "digest": digest,
        }
        seal = self._sealer.seal("baselines", baseline_fields(row))
        connection.execute(sa.insert(baselines).values(**row, seal=seal))
        return count


def baseline_digest(connection: Connection, reason: str, version: int) -> tuple[str, int]:
    """Return the digest of a baseline's rows, and how many positions it has.

    A gap's: its positions, then the policies that it noted. Retention's: the positions, then every policy up to it.
    """
    digest, count = RowsDigest(), 0
    noted, own = baseline_positions.c, policies.c
    which = RETAINED if reason == RETENTION else version
    for rows in row_chunks(
        connection,
        sa.select(baseline_positions).where(noted.baseline == which).order_by(noted.sku, noted.node),
    ):
        digest.add(rows)
        count += len(rows)
    kept = own.version <= version if reason == RETENTION else sa.and_(own.version == version, own.number < 0)
    order = (own.what, own.channel, own.sku, own.version, own.number)
    for rows in row_chunks(connection, sa.select(policies).where(kept).order_by(*order)):
        digest.add(rows)
    return digest.hexdigest(), count


def _journal_of(connection: Connection, day: int) -> Iterator[Sequence[Any]]:
    query = sa.select(journal).where(journal.c.day == day).order_by(journal.c.version)
    return row_chunks(connection, query)


def row_chunks(
    connection: Connection, query: sa.Select[Any]
) -> Iterator[list[tuple[Any, ...]]]:  # Any: rows as they are
    result = connection.execute(query, execution_options={"yield_per": CHUNK_ROWS})
    for rows in result.partitions():
        yield [tuple(row) for row in rows]


def _take_last_of_day(connection: Connection, day: int, floor: int) -> None:
    """Let the last change of each position on a day replace what is retained of it."""
    c = position_changes.c
    last = (
        sa.select(c.sku, c.node, sa.func.max(c.version).label("version"))
        .where(c.day == day, c.version > floor)
        .group_by(c.sku, c.node)
        .subquery()
    )
    rows = sa.select(
        c.sku, c.node, sa.literal(RETAINED, sa.BigInteger), *(c[name] for name in _FIGURES)
    ).join(
        last, sa.and_(c.day == day, c.sku == last.c.sku, c.node == last.c.node, c.version == last.c.version)
    )
    insert = upsert(connection, baseline_positions).from_select(["sku", "node", "baseline", *_FIGURES], rows)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["sku", "node", "baseline"],
            set_={name: insert.excluded[name] for name in _FIGURES},
        )
    )


def _thin_passing(connection: Connection, version: int) -> None:
    later = policies.alias("later")
    own = policies.c
    connection.execute(
        sa.delete(policies).where(
            own.what.in_(_PASSING),
            own.version <= version,
            sa.exists().where(
                later.c.what == own.what,
                later.c.channel == own.channel,
                later.c.sku == own.sku,
                later.c.version <= version,
                later.c.version > own.version,
            ),
        )
    )
