"""A position's story: its changes newest first, each with the record that made it. Pages by version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.domain.version import Version
from availability.history.database import reading
from availability.history.journal import RETENTION
from availability.history.moment import Moment, moment
from availability.history.origin import Origin, origins
from availability.history.tables import (
    RETAINED,
    baseline_positions,
    baselines,
    packed,
    position_changes,
    unpacked,
)

PAGE_MAX = 1_000
_DAYS_STEP = 31
"""Partitions looked at together, newest first, until a page is full."""
_c = position_changes.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One change: what moved, the figures after it, and the record behind it (``event`` BASELINE: none is known)."""

    origin: Origin
    node: str
    on_hand: int
    quarantined: int
    reserved: int
    committed: int
    safety_stock: int
    on_hand_change: int
    quarantined_change: int
    reserved_change: int
    committed_change: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some chapters, newest first; ``before`` asks for the next page, None after the last."""

    chapters: tuple[Chapter, ...]
    before: str | None


class Story:
    """Reads stories. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self,
        sku: str,
        node: str,
        *,
        at: Version | int | None = None,
        before: Version | None = None,
        size: int = 50,
    ) -> Page:
        """Return changes of a position up to ``at`` (a version, a clock in milliseconds, or now), newest first.

        ``before``: only earlier than this version. Raises NotInHistory, HistoryError.
        """
        size = min(size, PAGE_MAX)
        with reading(self._engine) as connection:
            point = moment(connection, at)
            rows = _changes(connection, point, sku, node, before, size)
            told = origins(connection, [(row.day, row.version, sku, node, "") for row in rows])
            chapters = [_chapter(row, told[row.version, sku, node, ""]) for row in rows]
            if len(rows) < size:
                chapters += _baselines(connection, point, sku, node, before)
                chapters.sort(key=lambda one: packed(Version.parse(one.origin.version)), reverse=True)
        more = rows[-1].version if len(rows) == size else None
        return Page(chapters=tuple(chapters), before=str(unpacked(more)) if more else None)


def _changes(
    connection: Connection, at: Moment, sku: str, node: str, before: Version | None, size: int
) -> Sequence[sa.Row[Any]]:  # Any: rows of position_changes
    last = min(at.version, packed(before) - 1) if before is not None else at.version
    query = (
        sa.select(position_changes)
        .where(_c.sku == sku, _c.node == node, _c.day <= at.day, _c.version <= last)
        .order_by(_c.day.desc(), _c.version.desc())
    )
    if connection.dialect.name != "postgresql":
        return connection.execute(query.limit(size)).all()
    found = list(connection.execute(query.where(_c.day > at.day - _DAYS_STEP).limit(size)))
    if len(found) < size:
        found += connection.execute(query.where(_c.day <= at.day - _DAYS_STEP).limit(size - len(found)))
    return found


def _chapter(row: sa.Row[Any], origin: Origin) -> Chapter:  # Any: as above
    return Chapter(
        origin=origin,
        node=row.node,
        on_hand=row.on_hand,
        quarantined=row.quarantined,
        reserved=row.reserved,
        committed=row.committed,
        safety_stock=row.safety_stock,
        on_hand_change=row.on_hand_change,
        quarantined_change=row.quarantined_change,
        reserved_change=row.reserved_change,
        committed_change=row.committed_change,
    )


def _baselines(
    connection: Connection, at: Moment, sku: str, node: str, before: Version | None
) -> list[Chapter]:
    """Return what baselines noted of the position: there the records before are not known."""
    noted = baseline_positions.c
    limit = at.version if before is None else min(at.version, packed(before) - 1)
    rows = connection.execute(
        sa.select(
            baseline_positions, baselines.c.clock_ms, baselines.c.reason, baselines.c.version.label("at")
        )
        .join(
            baselines,
            sa.or_(
                baselines.c.version == noted.baseline,
                sa.and_(noted.baseline == RETAINED, baselines.c.reason == RETENTION),
            ),
        )
        .where(noted.sku == sku, noted.node == node, baselines.c.version <= limit)
    ).all()
    return [
        Chapter(
            origin=Origin(
                version=str(unpacked(row.at)),
                clock_ms=row.clock_ms,
                event="BASELINE",
                reason="days before it left the database"
                if row.reason == RETENTION
                else "records before it are missing",
            ),
            node=row.node,
            on_hand=row.on_hand,
            quarantined=row.quarantined,
            reserved=row.reserved,
            committed=row.committed,
            safety_stock=row.safety_stock,
            on_hand_change=0,
            quarantined_change=0,
            reserved_change=0,
            committed_change=0,
        )
        for row in rows
    ]
