"""Runs, variances and approvals in the database: what a killed run goes on from, and what reports are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading, upsert, writing
from availability.history.reconcile_tables import (
    reconcile_approvals,
    reconcile_locks,
    reconcile_parts,
    reconcile_runs,
    reconcile_variances,
)

OPEN, CORRECTING, HELD, DONE = "OPEN", "CORRECTING", "HELD", "DONE"
REPORTED, REFUSED, SUPERSEDED = "REPORTED", "REFUSED", "SUPERSEDED"
PENDING, CORRECTED = "PENDING", "CORRECTED"
ROWS_AT_ONCE = 1_000
UNFINISHED = (OPEN, CORRECTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run as it stands. Times: seconds since 1970."""

    run_id: str
    snapshot: str
    source: str
    kind: str
    state: str
    file: str
    checksum: str
    snapshot_id: str
    as_of: Mapping[str, int]
    point_kind: str
    point_version: int
    point_at: float | None
    nodes: tuple[str, ...]
    rank: int
    absent: str
    rows: int
    positions: int
    counts: Mapping[str, Any]  # Any: JSON's own types
    findings: tuple[Mapping[str, str], ...]
    reason: str
    folder: str
    begun_at: float
    compared_at: float | None
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVariance:
    """One variance as it is kept. ``parts``: (cause, units, sentence, evidence as JSON)."""

    number: int
    kind: str
    sku: str
    node: str
    reason: str = ""
    order_source: str = ""
    order_ref: str = ""
    line: str = ""
    said: int
    ledger: int
    variance: int
    cause: str
    state: str
    hold: str = ""
    delta: bytes = b""
    message: str = ""
    parts: tuple[tuple[str, int, str, str], ...] = ()


_JSON = ("as_of", "nodes", "counts", "findings")
_VARIANCE = tuple(name for name in KeptVariance.__slots__ if name != "parts")


class Store:
    """The reconciliation's tables."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    # --- Runs ---------------------------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Note a new run."""
        with writing(self.engine) as connection:
            connection.execute(sa.insert(reconcile_runs).values(**_row(run)))

    def change(self, run_id: str, **values: Any) -> Run:  # Any: columns
        """Change columns of a run; JSON ones as they are. Return it."""
        with writing(self.engine) as connection:
            made = {name: json.dumps(value) if name in _JSON else value for name, value in values.items()}
            connection.execute(
                sa.update(reconcile_runs).where(reconcile_runs.c.run_id == run_id).values(**made)
            )
        return self.run(run_id)

    def run(self, run_id: str) -> Run:
        """Return a run by its whole id. Raises LookupError."""
        found = self.find_runs(sa.literal(run_id) == reconcile_runs.c.run_id)
        if not found:
            raise LookupError(run_id)
        return found[0]

    def beginning_with(self, prefix: str) -> list[Run]:
        """Return the runs whose id begins so, at most two."""
        end = prefix + "\uffff"
        column = reconcile_runs.c.run_id
        return self.find_runs(sa.and_(column >= prefix, column < end), limit=2)

    def runs(self, snapshot: str = "", limit: int = 20) -> list[Run]:
        """Return the latest runs, the newest first."""
        wanted = reconcile_runs.c.snapshot == snapshot if snapshot else sa.true()
        return self.find_runs(wanted, limit=limit)

    def of_file(self, snapshot: str, checksum: str) -> Run | None:
        """Return the latest run of this very file with this very point."""
        table = reconcile_runs.c
        found = self.find_runs(sa.and_(table.snapshot == snapshot, table.checksum == checksum), limit=1)
        return found[0] if found else None

    def unfinished(self) -> list[Run]:
        """Return the runs that a kill may have left, the newest first."""
        return self.find_runs(reconcile_runs.c.state.in_(UNFINISHED))

    def waiting(self) -> list[Run]:
        """Return the runs that wait for approval, the newest first."""
        return self.find_runs(reconcile_runs.c.state == HELD)

    def settled(self, source: str, limit: int = 14) -> list[Run]:
        """Return the latest runs of a source that were compared and acted on, the newest first."""
        table = reconcile_runs.c
        states = (DONE, HELD)
        wanted = sa.and_(table.source == source, table.state.in_(states), table.kind == "POSITIONS")
        return self.find_runs(wanted, limit=limit)

    def find_runs(self, wanted: sa.ColumnElement[bool], limit: int = 100) -> list[Run]:
        """Return runs, the newest first."""
        query = (
            sa.select(reconcile_runs).where(wanted).order_by(reconcile_runs.c.begun_at.desc()).limit(limit)
        )
        with reading(self.engine) as connection:
            return [_run(dict(row)) for row in connection.execute(query).mappings()]

    # --- Variances ----------------------------------------------------------------------------------------

    def keep(
        self, run_id: str, variances: Sequence[KeptVariance], **values: Any
    ) -> None:  # Any: columns of the run
        """Write what was found and the run's new state, all or nothing; what an earlier attempt wrote is replaced.

        Other runs of the snapshot that wait for approval are superseded in the same moment, unless this one was
        refused: a file that says nothing takes no other's word away.
        """
        with writing(self.engine) as connection:
            if values.get("state") != REFUSED:
                _supersede(connection, run_id)
            for table in (reconcile_parts, reconcile_variances):
                connection.execute(sa.delete(table).where(table.c.run_id == run_id))
            for first in range(0, len(variances), ROWS_AT_ONCE):
                batch = variances[first : first + ROWS_AT_ONCE]
                connection.execute(
                    sa.insert(reconcile_variances),
                    [{"run_id": run_id} | {name: getattr(one, name) for name in _VARIANCE} for one in batch],
                )
                parts = [
                    {
                        "run_id": run_id,
                        "number": one.number,
                        "part": part,
                        "cause": cause,
                        "units": units,
                        "sentence": sentence,
                        "evidence": evidence,
                    }
                    for one in batch
                    for part, (cause, units, sentence, evidence) in enumerate(one.parts)
                ]
                if parts:
                    connection.execute(sa.insert(reconcile_parts), parts)
            made = {name: json.dumps(value) if name in _JSON else value for name, value in values.items()}
            connection.execute(
                sa.update(reconcile_runs).where(reconcile_runs.c.run_id == run_id).values(**made)
            )

    def variances(
        self, run_id: str, *, state: str = "", limit: int = 1_000_000, worst: bool = False
    ) -> list[KeptVariance]:
        """Return variances in order, or the largest first; without their parts."""
        table = reconcile_variances
        query = sa.select(*(table.c[name] for name in _VARIANCE)).where(table.c.run_id == run_id)
        if state:
            query = query.where(table.c.state == state)
        order = (sa.func.abs(table.c.variance).desc(), table.c.number) if worst else (table.c.number,)
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(*order).limit(limit)).mappings()
            return [KeptVariance(**row) for row in rows]

    def parts(self, run_id: str, number: int) -> list[tuple[str, int, str, str]]:
        """Return the parts of one variance."""
        table = reconcile_parts
        query = (
            sa.select(table.c.cause, table.c.units, table.c.sentence, table.c.evidence)
            .where(table.c.run_id == run_id, table.c.number == number)
            .order_by(table.c.part)
        )
        with reading(self.engine) as connection:
            return [tuple(row) for row in connection.execute(query)]

    def states(self, run_id: str) -> dict[str, int]:
        """Return how many variances are in each state."""
        table = reconcile_variances
        query = (
            sa.select(table.c.state, sa.func.count()).where(table.c.run_id == run_id).group_by(table.c.state)
        )
        with reading(self.engine) as connection:
            return {str(row[0]): int(row[1]) for row in connection.execute(query)}

    def settle(self, run_id: str, outcomes: Iterable[tuple[int, str, str]]) -> None:
        """Note what became of variances: (number, state, message), together."""
        table = reconcile_variances
        statement = (
            sa.update(table)
            .where(table.c.run_id == run_id, table.c.number == sa.bindparam("at"))
            .values(state=sa.bindparam("to"), message=sa.bindparam("said_so"))
        )
        rows = [{"at": number, "to": state, "said_so": message} for number, state, message in outcomes]
        if rows:
            with writing(self.engine) as connection:
                connection.execute(statement, rows)

    def not_agreed(self, run_id: str, places: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return which of these positions differed in a run and were not corrected."""
        table = reconcile_variances
        wanted, found = sorted(set(places)), set()
        with reading(self.engine) as connection:
            for first in range(0, len(wanted), ROWS_AT_ONCE):
                skus = sorted({sku for sku, _ in wanted[first : first + ROWS_AT_ONCE]})
                query = sa.select(table.c.sku, table.c.node).where(
                    table.c.run_id == run_id, table.c.sku.in_(skus), table.c.state != CORRECTED
                )
                found |= {(sku, node) for sku, node in connection.execute(query)}
        return found

    # --- Approvals ----------------------------------------------------------------------------------------

    def approve(
        self, run_id: str, author: str, reason: str, now: float, kept_back: Sequence[int] = ()
    ) -> int:
        """Let held variances be corrected, but for those kept back; return how many. All or nothing."""
        table = reconcile_variances
        with writing(self.engine) as connection:
            for number in kept_back:
                connection.execute(
                    sa.update(table)
                    .where(table.c.run_id == run_id, table.c.number == number, table.c.state == HELD)
                    .values(state=REPORTED, hold="ARRIVED")
                )
            changed = connection.execute(
                sa.update(table)
                .where(table.c.run_id == run_id, table.c.state == HELD, table.c.delta != b"")
                .values(state=PENDING)
            ).rowcount
            connection.execute(
                sa.insert(reconcile_approvals).values(
                    run_id=run_id, author=author, reason=reason, variances=changed, approved_at=now
                )
            )
            connection.execute(
                sa.update(reconcile_runs).where(reconcile_runs.c.run_id == run_id).values(state=CORRECTING)
            )
        return int(changed)

    def approvals(self, run_id: str) -> list[tuple[str, str, int, float]]:
        """Return (author, reason, variances, when) of a run's approvals."""
        table = reconcile_approvals.c
        query = (
            sa.select(table.author, table.reason, table.variances, table.approved_at)
            .where(table.run_id == run_id)
            .order_by(table.approval)
        )
        with reading(self.engine) as connection:
            return [tuple(row) for row in connection.execute(query)]

    # --- One at a time ------------------------------------------------------------------------------------

    def take_lock(self, name: str, holder: str, now: float, lease_s: float) -> str:
        """Take or renew the lock; return "" then, else who holds it."""
        table = reconcile_locks
        with writing(self.engine) as connection:
            insert = upsert(connection, table).values(name=name, holder=holder, until=now + lease_s)
            free = sa.or_(table.c.until <= now, table.c.holder == holder)
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["name"],
                    set_={"holder": insert.excluded.holder, "until": insert.excluded.until},
                    where=free,
                )
            )
            held = connection.execute(sa.select(table.c.holder).where(table.c.name == name)).scalar_one()
        return "" if held == holder else str(held)

    def drop_lock(self, name: str, holder: str) -> None:
        """Give the lock back."""
        table = reconcile_locks
        with writing(self.engine) as connection:
            connection.execute(sa.delete(table).where(table.c.name == name, table.c.holder == holder))


def _supersede(connection: sa.Connection, newer_id: str) -> None:
    """End the runs of the same snapshot that wait: two approvals of one difference would correct it twice."""
    table = reconcile_runs
    newer = connection.execute(sa.select(table).where(table.c.run_id == newer_id)).one()
    wanted = (table.c.snapshot == newer.snapshot, table.c.state == HELD, table.c.run_id != newer_id)
    for run_id in connection.scalars(sa.select(table.c.run_id).where(*wanted)).all():
        why = f"run {newer_id[:8]} looked again"
        ended = {"state": SUPERSEDED, "reason": why, "ended_at": newer.begun_at}
        connection.execute(sa.update(table).where(table.c.run_id == run_id).values(**ended))
        _report_held(connection, run_id)


def _report_held(connection: sa.Connection, run_id: str) -> None:
    table = reconcile_variances
    connection.execute(
        sa.update(table).where(table.c.run_id == run_id, table.c.state == HELD).values(state=REPORTED)
    )


def _row(run: Run) -> dict[str, Any]:  # Any: columns
    return {
        name: json.dumps(getattr(run, name)) if name in _JSON else getattr(run, name)
        for name in Run.__slots__
    }


def _run(row: Mapping[str, Any]) -> Run:  # Any: columns
    found = {name: json.loads(row[name]) if name in _JSON else row[name] for name in Run.__slots__}
    found["nodes"], found["findings"] = tuple(found["nodes"]), tuple(found["findings"])
    return Run(**found)
