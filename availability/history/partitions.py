"""Days as partitions on PostgreSQL: made before their first row, dropped as a whole. SQLite has rows to delete."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from availability.history.tables import deltas, journal, position_changes

BY_DAY = (journal, position_changes, deltas)
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


def day_text(day: int) -> str:
    """Return a day as 2026-11-21."""
    return (_FIRST + timedelta(days=day)).date().isoformat()


def day_number(text: str) -> int:
    """Read a day as `day_text` writes it. Raises ValueError."""
    return (datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC) - _FIRST).days


def ensure_days(connection: Connection, days: Iterable[int]) -> None:
    """Make the partitions of some days where they are missing."""
    if connection.dialect.name != "postgresql":
        return
    for day in days:
        for table in BY_DAY:
            connection.exec_driver_sql(
                f"CREATE TABLE IF NOT EXISTS {_name(table, day)} PARTITION OF {table.name} "
                f"FOR VALUES FROM ({day}) TO ({day + 1})"
            )


def drop_day(connection: Connection, day: int) -> None:
    """Take away all rows of a day."""
    if connection.dialect.name == "postgresql":
        for table in BY_DAY:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_name(table, day)}")
        return
    for table in BY_DAY:
        connection.execute(sa.delete(table).where(table.c.day == day))


def _name(table: sa.Table, day: int) -> str:
    return f"{table.name}_{day_text(day).replace('-', '')}"
