"""What the report says: by day, by cause, by node, the worst skus, runs and shops; and all variances as Parquet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading
from availability.history.reconcile_tables import reconcile_parts, reconcile_runs, reconcile_variances
from availability.v1 import stock_pb2 as pb
from ingest.reconcile.shops import Side, kept_sides
from ingest.reconcile.store import CORRECTED, HELD, REFUSED, REPORTED, Run, Store

DAY_S = 86_400
WORST = 20
NODES_SHOWN = 12
RUNS_SHOWN = 200
ROWS_AT_ONCE = 50_000


@dataclass(slots=True, kw_only=True)
class Day:
    """One day, UTC. ``causes``: cause → variances and units, of runs that compared something."""

    day: str
    runs: int = 0
    refused: int = 0
    positions: int = 0
    causes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def variances(self) -> int:
        """Parts of variances of the day."""
        return sum(count for count, _ in self.causes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """A sku by the units that it was off, all its nodes and days together; and why it was last."""

    sku: str
    nodes: str
    variances: int
    units: int
    cause: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that the page shows. ``states``: variances of the latest day by what became of them."""

    made_at: float
    days: tuple[Day, ...]
    causes: dict[str, tuple[int, int]]
    nodes: dict[str, tuple[int, int]]
    states: dict[str, int]
    worst: tuple[Worst, ...]
    runs: tuple[Run, ...]
    waiting: tuple[tuple[Run, int], ...]
    sides: tuple[Side, ...]
    findings: tuple[pb.AuditFinding, ...] = ()


def figures(engine: Engine, now: float, days: int, findings: Sequence[pb.AuditFinding] = ()) -> Figures:
    """Read what happened in the last days, today included."""
    first = (int(now) // DAY_S - days + 1) * DAY_S
    store = Store(engine)
    runs = store.find_runs(reconcile_runs.c.begun_at >= first, limit=RUNS_SHOWN)
    by_day: dict[str, Day] = {}
    for number in range(days):
        name = _day(first + number * DAY_S)
        by_day[name] = Day(day=name)
    for run in runs:
        day = by_day[_day(run.begun_at)]
        day.runs += 1
        day.refused += run.state == REFUSED
        day.positions += run.positions
    causes: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for run_id, begun_at, cause, count, units in _by_cause(engine, first):
        del run_id
        day = by_day[_day(begun_at)]
        for there in (day.causes, causes):
            known = there.get(cause, (0, 0))
            there[cause] = (known[0] + count, known[1] + units)
    latest = [run for run in runs if _day(run.begun_at) == _day(now)] or runs[:1]
    states: dict[str, int] = defaultdict(int)
    for run in latest:
        for state, count in store.states(run.run_id).items():
            states[state] += count
    waiting = tuple((run, store.states(run.run_id).get(HELD, 0)) for run in runs if run.state == HELD)
    while by_day and not next(iter(by_day.values())).runs and len(by_day) > 7:
        del by_day[next(iter(by_day))]
    return Figures(
        made_at=now,
        days=tuple(by_day.values()),
        causes=dict(sorted(causes.items(), key=lambda item: -item[1][0])),
        nodes=_by_node(engine, first),
        states={
            name: states[name] for name in (CORRECTED, HELD, REPORTED, REFUSED, "PENDING") if states[name]
        },
        worst=_worst(engine, first),
        runs=tuple(runs),
        waiting=waiting,
        sides=tuple(kept_sides(engine, _day(now))),
        findings=tuple(findings),
    )


def _by_cause(engine: Engine, first: float) -> list[tuple[str, float, str, int, int]]:
    parts, runs = reconcile_parts.c, reconcile_runs.c
    query = (
        sa.select(
            runs.run_id, runs.begun_at, parts.cause, sa.func.count(), sa.func.sum(sa.func.abs(parts.units))
        )
        .select_from(sa.join(reconcile_parts, reconcile_runs, parts.run_id == runs.run_id))
        .where(runs.begun_at >= first, runs.state != REFUSED)
        .group_by(runs.run_id, runs.begun_at, parts.cause)
    )
    with reading(engine) as connection:
        return [(*row[:4], int(row[4])) for row in connection.execute(query)]


def _by_node(engine: Engine, first: float) -> dict[str, tuple[int, int]]:
    found, runs = reconcile_variances.c, reconcile_runs.c
    query = (
        sa.select(found.node, sa.func.count(), sa.func.sum(sa.func.abs(found.variance)).label("units"))
        .select_from(sa.join(reconcile_variances, reconcile_runs, found.run_id == runs.run_id))
        .where(runs.begun_at >= first, runs.state != REFUSED)
        .group_by(found.node)
        .order_by(sa.func.count().desc(), found.node)
        .limit(NODES_SHOWN)
    )
    with reading(engine) as connection:
        return {node or "several": (count, int(units)) for node, count, units in connection.execute(query)}


def _worst(engine: Engine, first: float) -> tuple[Worst, ...]:
    found, runs = reconcile_variances.c, reconcile_runs.c
    joined = sa.join(reconcile_variances, reconcile_runs, found.run_id == runs.run_id)
    recent = sa.and_(runs.begun_at >= first, runs.state != REFUSED)
    query = (
        sa.select(
            found.sku,
            sa.func.count().label("variances"),
            sa.func.sum(sa.func.abs(found.variance)).label("units"),
            sa.func.count(sa.distinct(found.node)).label("nodes"),
            sa.func.min(found.node).label("node"),
        )
        .select_from(joined)
        .where(recent)
        .group_by(found.sku)
        .order_by(sa.desc("units"), found.sku)
        .limit(WORST)
    )
    made = []
    with reading(engine) as connection:
        for row in connection.execute(query).all():
            last = connection.execute(
                sa.select(found.run_id, found.number, found.cause)
                .select_from(joined)
                .where(recent, found.sku == row.sku)
                .order_by(runs.begun_at.desc(), sa.func.abs(found.variance).desc())
                .limit(1)
            ).one()
            parts = reconcile_parts.c
            sentence = connection.execute(
                sa.select(parts.sentence)
                .where(parts.run_id == last.run_id, parts.number == last.number)
                .order_by(parts.part)
                .limit(1)
            ).scalar()
            made.append(
                Worst(
                    sku=row.sku,
                    nodes=row.node if row.nodes == 1 else f"{row.nodes} nodes",
                    variances=row.variances,
                    units=int(row.units),
                    cause=last.cause,
                    sentence=sentence or "",
                )
            )
    return tuple(made)


def write_parquet(engine: Engine, now: float, days: int, target: Path) -> None:
    """Write every part of every variance of the last days, a row each."""
    import polars as pl

    first = (int(now) // DAY_S - days + 1) * DAY_S
    found, runs, parts = reconcile_variances.c, reconcile_runs.c, reconcile_parts.c
    joined = sa.join(reconcile_variances, reconcile_runs, found.run_id == runs.run_id).join(
        reconcile_parts, sa.and_(parts.run_id == found.run_id, parts.number == found.number)
    )
    columns = (
        runs.run_id, runs.snapshot, runs.source, runs.begun_at, found.kind, found.sku, found.node, found.reason,
        found.order_source, found.order_ref, found.line, found.said, found.ledger, found.variance, found.state,
        found.hold, found.message, parts.cause, parts.units, parts.sentence, parts.evidence,
    )  # fmt: skip
    query = (
        sa.select(*columns)
        .select_from(joined)
        .where(runs.begun_at >= first)
        .order_by(runs.begun_at, runs.run_id, found.number, parts.part)
    )
    numbers = {"said", "ledger", "variance", "units"}
    schema = {
        column.name: pl.Int64
        if column.name in numbers
        else pl.Float64
        if column.name == "begun_at"
        else pl.String
        for column in columns
    }
    frames = [pl.DataFrame(schema=schema)]
    with reading(engine) as connection:
        frames.extend(
            pl.DataFrame([tuple(row) for row in rows], schema=schema, orient="row")
            for rows in connection.execute(query).partitions(ROWS_AT_ONCE)
        )
    written = target.with_name(target.name + ".part")
    pl.concat(frames).write_parquet(written)
    written.replace(target)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
