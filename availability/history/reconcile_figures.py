"""What nightly reconciliation came to, for metrics: each source's latest runs of its stock, as the database has them.

A source may have a snapshot for each of its houses: its figures are the sums over the latest compared run of each, its
age is that of the oldest of them. What it knows of runs is their tables; who writes them is ``ingest.reconcile``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.history.reconcile_tables import reconcile_parts, reconcile_runs, reconcile_variances
from availability.telemetry import ReconcileFigures

POSITIONS = "POSITIONS"
"""Kind of a run that compares stock; others compare orders."""
HELD = "HELD"
NOT_COMPARED = ("OPEN", "REFUSED")


@dataclass(slots=True)
class _Sums:
    ended_at: float | None = None
    never: bool = False
    positions: int = 0
    differing: int = 0
    held: bool = False
    units: dict[str, int] = field(default_factory=dict)


def reconcile_figures(engine: Engine, now: float) -> Iterator[ReconcileFigures]:
    """Yield the figures of each source; ``now`` in seconds since 1970. Raises what the database raises."""
    sources: dict[str, _Sums] = {}
    with engine.connect() as connection:
        for run_id, source, state, positions, ended_at in _latest(connection):
            sums = sources.setdefault(source, _Sums())
            sums.positions += positions
            sums.held = sums.held or state == HELD
            if ended_at is None:
                sums.never = True
            else:
                sums.ended_at = ended_at if sums.ended_at is None else min(sums.ended_at, ended_at)
            sums.differing += _differing(connection, run_id)
            for cause, units in _units(connection, run_id):
                sums.units[cause] = sums.units.get(cause, 0) + int(units)
    for source, sums in sorted(sources.items()):
        yield ReconcileFigures(
            source=source,
            age_s=None if sums.never or sums.ended_at is None else max(0.0, now - sums.ended_at),
            positions=sums.positions,
            variance_positions=sums.differing,
            held=sums.held,
            variance_units=tuple(sorted(sums.units.items())),
        )


def _latest(connection: Connection) -> list[tuple[str, str, str, int, float | None]]:
    """The latest compared run of each snapshot, and when a run of it last came to its end."""
    runs = reconcile_runs
    of_stock = (runs.c.kind == POSITIONS, runs.c.state.not_in(NOT_COMPARED))
    numbered = (
        sa.select(
            runs.c.run_id,
            runs.c.source,
            runs.c.state,
            runs.c.positions,
            sa.func.max(runs.c.ended_at).over(partition_by=runs.c.snapshot).label("ended_at"),
            sa.func.row_number()
            .over(partition_by=runs.c.snapshot, order_by=runs.c.begun_at.desc())
            .label("place"),
        )
        .where(*of_stock)
        .subquery()
    )
    query = sa.select(
        numbered.c.run_id, numbered.c.source, numbered.c.state, numbered.c.positions, numbered.c.ended_at
    ).where(numbered.c.place == 1)
    return [(row[0], row[1], row[2], row[3], row[4]) for row in connection.execute(query)]


def _differing(connection: Connection, run_id: str) -> int:
    """Positions of a run that differed: several variances of one (on hand, a reason of quarantine) count once."""
    table = reconcile_variances
    places = sa.select(table.c.sku, table.c.node).where(table.c.run_id == run_id).distinct().subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(places)).scalar_one())


def _units(connection: Connection, run_id: str) -> list[tuple[str, int]]:
    table = reconcile_parts
    query = (
        sa.select(table.c.cause, sa.func.sum(sa.func.abs(table.c.units)))
        .where(table.c.run_id == run_id)
        .group_by(table.c.cause)
    )
    return [(row[0], row[1]) for row in connection.execute(query)]
