"""The journal as its one writer sees it: append, take back what a fork took back, begin anew after a gap.

Each is one transaction with the place that was reached, and refuses to work from another place than it was told: two
historians, or one that was killed after its commit, write nothing twice. It judges no log (`historian` does, with
`replica.order`) and explains nothing (`past`). What the rows are: `rows`, `tables`; how they travel: `writer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.domain.version import Version
from availability.history.database import HistoryError, reading, upsert, writing
from availability.history.digest import RowsDigest, baseline_fields, day_fields, fork_fields
from availability.history.partitions import BY_DAY, ensure_days
from availability.history.rows import PolicyState, Row, Rows, policy_row
from availability.history.seal import Sealer
from availability.history.tables import (
    DAY_MS,
    baseline_positions,
    baselines,
    deltas,
    historian,
    journal,
    journal_days,
    journal_forks,
    journal_lost,
    packed,
    policies,
    policy_names,
    position_changes,
    positions,
    unpacked,
)
from availability.history.writer import TextRefused, insert_names, insert_rows

START = Version(1, 0)
"""Where every ledger begins; its first record is 1-1, and the chain before it empty."""
JOURNAL = "JOURNAL"
"""Name of the journal's place in the table ``historian``."""
GAP = "GAP"
RETENTION = "RETENTION"
BASELINE_NUMBER = -1
"""``number`` of a policy that a baseline noted: no record said it."""
CHUNK_ROWS = 10_000
_SKU = itemgetter(list(position_changes.c.keys()).index("sku"))


class PlaceMoved(HistoryError):
    """Somebody else wrote meanwhile: read the place again. Nothing was written."""

    reason = "PLACE_MOVED"


class OtherLedger(HistoryError):
    """The database holds the history of another ledger; the message names both."""

    reason = "OTHER_LEDGER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far the journal has come: the last record, the chain after it, its ledger clock."""

    ledger_id: str
    version: Version
    chain: str
    clock_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Everything as it stood at one version, where records before it are missing. Positions by bytewise name."""

    version: Version
    chain: str
    clock_ms: int
    positions: Iterable[tuple[str, str, int, int, int, int, int]]
    """sku, node, on_hand, quarantined, reserved, committed, safety_stock."""
    policies: Iterable[tuple[str, str, str, PolicyState]]


class Journal:
    """Writes the journal. ``sealer`` closes days, baselines and forks."""

    def __init__(self, engine: Engine, sealer: Sealer) -> None:
        self._engine = engine
        self._sealer = sealer
        self._days: set[int] = set()

    def place(self, ledger_id: str) -> Place:
        """Return how far the journal has come; START in a new database. Raises OtherLedger, HistoryError."""
        with writing(self._engine) as connection:
            row = connection.execute(sa.select(historian).where(historian.c.name == JOURNAL)).first()
            if row is None:
                values = {"ledger_id": ledger_id, "version": packed(START), "chain": "", "clock_ms": 0}
                connection.execute(sa.insert(historian).values(name=JOURNAL, **values))
                return Place(ledger_id=ledger_id, version=START, chain="", clock_ms=0)
        if row.ledger_id != ledger_id:
            raise OtherLedger(
                f"this database holds the history of ledger {row.ledger_id!r}, and Redis holds {ledger_id!r}: "
                "give each ledger a database of its own"
            )
        return Place(
            ledger_id=ledger_id, version=unpacked(row.version), chain=row.chain, clock_ms=row.clock_ms
        )

    # --- Going on ----------------------------------------------------------------------------------------

    def append(self, at: Place, rows: Rows, after: Place) -> None:
        """Write the rows of the records after ``at``; ``after`` is the last one. Raises PlaceMoved."""
        try:
            self._append(at, rows, after)
        except TextRefused:
            self._append(at, rows.without_nul(), after)
        self._days.update(rows.days)

    def _append(self, at: Place, rows: Rows, after: Place) -> None:
        with writing(self._engine) as connection:
            ensure_days(connection, [day for day in rows.days if day not in self._days])
            self._move(connection, at, after)
            insert_rows(connection, journal, rows.journal)
            # By sku: its indexes begin with it, and neighbours cost a third less than leaps.
            insert_rows(connection, position_changes, sorted(rows.position_changes, key=_SKU))
            insert_rows(connection, deltas, rows.deltas)
            insert_rows(connection, policies, rows.policies)
            insert_names(connection, positions, rows.new_positions)
            insert_names(connection, policy_names, rows.policy_names)
            self._count_days(connection, rows.journal, at)

    def _move(self, connection: Connection, at: Place, after: Place) -> None:
        """Take the place, first of all: whoever comes from the same one waits here and finds it moved."""
        moved = connection.execute(
            sa.update(historian)
            .where(
                historian.c.name == JOURNAL,
                historian.c.ledger_id == at.ledger_id,
                historian.c.version == packed(at.version),
                historian.c.chain == at.chain,
            )
            .values(version=packed(after.version), chain=after.chain, clock_ms=after.clock_ms)
        )
        if moved.rowcount != 1:
            raise PlaceMoved(f"the journal is not at {at.version} any more: another historian writes")

    def _count_days(self, connection: Connection, rows: Sequence[Row], at: Place) -> None:
        """Note what the rows add to their days; close the days that are over."""
        chain = at.chain
        counted: dict[int, list[Row]] = {}
        for row in rows:
            counted.setdefault(row[0], []).append(row)  # type: ignore[arg-type]  # the first column is the day
        for day, its_rows in counted.items():
            first, last = its_rows[0], its_rows[-1]
            insert = upsert(connection, journal_days).values(
                day=day,
                first_version=first[1],
                last_version=last[1],
                records=len(its_rows),
                first_clock_ms=first[2],
                last_clock_ms=last[2],
                chain_before=chain,
                last_chain=last[7],
                state="KEPT",
                seal="",
                archive="",
                archive_digest="",
            )
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=[journal_days.c.day],
                    set_={
                        "last_version": insert.excluded.last_version,
                        "records": journal_days.c.records + insert.excluded.records,
                        "last_clock_ms": insert.excluded.last_clock_ms,
                        "last_chain": insert.excluded.last_chain,
                    },
                )
            )
            chain = str(last[7])
        if counted:
            seal_days(connection, self._sealer, at.ledger_id, before=max(counted))

    # --- Forks -------------------------------------------------------------------------------------------

    def chain_at(self, version: Version) -> str | None:
        """Return the chain after a record of the journal or at a baseline; None for one that it does not have."""
        with reading(self._engine) as connection:
            return chain_at(connection, packed(version))

    def last_before(self, version: Version) -> Version:
        """Return the latest record before a version; START where there is none."""
        with reading(self._engine) as connection:
            found = connection.scalar(
                sa.select(sa.func.max(journal.c.version)).where(journal.c.version < packed(version))
            )
        return unpacked(found) if found else START

    def rewind(self, at: Place, kept: Version, chain: str, *, reason: str, noticed_ms: int) -> Place:
        """Take back every record after ``kept``: the ledger no longer has them. They are kept in journal_lost.

        Returns the place at ``kept``. ``chain`` is the one that the ledger goes on from. Raises PlaceMoved.
        """
        with writing(self._engine) as connection:
            point, seen = packed(kept), packed(at.version)
            clock_ms = connection.scalar(
                sa.select(journal.c.clock_ms)
                .where(journal.c.version <= point, journal.c.day == _last_day(connection, point))
                .order_by(journal.c.version.desc())
                .limit(1)
            )
            place = Place(ledger_id=at.ledger_id, version=kept, chain=chain, clock_ms=clock_ms or 0)
            self._move(connection, at, place)
            self._keep_lost(connection, point, seen, reason, noticed_ms)
            _delete_after(connection, point)
            self._recount_days(connection, point)
            return place

    def _keep_lost(self, connection: Connection, point: int, seen: int, reason: str, noticed_ms: int) -> None:
        fork = (connection.scalar(sa.select(sa.func.max(journal_forks.c.fork))) or 0) + 1
        columns = [column for column in journal_lost.c if column.name != "fork"]
        records = connection.scalar(sa.select(sa.func.count()).where(journal.c.version > point))
        connection.execute(
            sa.insert(journal_lost).from_select(
                ["fork", *(column.name for column in columns)],
                sa.select(sa.literal(fork), *(journal.c[column.name] for column in columns)).where(
                    journal.c.version > point
                ),
            )
        )
        row = {
            "fork": fork,
            "kept_version": point,
            "seen_version": seen,
            "records": records,
            "reason": reason,
            "noticed_ms": noticed_ms,
        }
        seal = self._sealer.seal("journal_forks", fork_fields(row))
        connection.execute(sa.insert(journal_forks).values(**row, seal=seal))

    def _recount_days(self, connection: Connection, point: int) -> None:
        connection.execute(sa.delete(journal_days).where(journal_days.c.first_version > point))
        for day in connection.scalars(
            sa.select(journal_days.c.day).where(journal_days.c.last_version > point)
        ).all():
            count = connection.scalar(sa.select(sa.func.count()).where(journal.c.day == day))
            last = connection.execute(
                sa.select(journal).where(journal.c.day == day).order_by(journal.c.version.desc()).limit(1)
            ).one()
            connection.execute(
                sa.update(journal_days)
                .where(journal_days.c.day == day)
                .values(
                    records=count,
                    last_version=last.version,
                    last_clock_ms=last.clock_ms,
                    last_chain=last.chain,
                    seal="",
                )
            )

    # --- Gaps --------------------------------------------------------------------------------------------

    def rebase(self, at: Place, baseline: Baseline) -> Place:
        """Begin anew at a baseline: the records between ``at`` and it are missing. Raises PlaceMoved."""
        place = Place(
            ledger_id=at.ledger_id,
            version=baseline.version,
            chain=baseline.chain,
            clock_ms=baseline.clock_ms,
        )
        version = packed(baseline.version)
        with writing(self._engine) as connection:
            self._move(connection, at, place)
            digest, count = RowsDigest(), 0
            for chunk in _chunks(baseline.positions):
                rows = [(sku, node, version, version, *figures) for sku, node, *figures in chunk]
                insert_rows(connection, baseline_positions, rows)
                insert_names(connection, positions, {(sku, node) for sku, node, *_ in chunk})
                digest.add(rows)
                count += len(rows)
            noted = sorted(
                policy_row(
                    what, channel, sku, version, BASELINE_NUMBER, baseline.clock_ms, "", "as it stood", state
                )
                for what, channel, sku, state in baseline.policies
            )
            insert_rows(connection, policies, noted)
            insert_names(connection, policy_names, {row[:3] for row in noted})
            digest.add(noted)
            self.add_baseline(
                connection,
                {
                    "version": version,
                    "day": baseline.clock_ms // DAY_MS,
                    "clock_ms": baseline.clock_ms,
                    "chain": baseline.chain,
                    "after_version": packed(at.version),
                    "reason": GAP,
                    "positions": count,
                    "digest": digest.hexdigest(),
                },
            )
        return place

    def add_baseline(self, connection: Connection, row: dict[str, object]) -> None:
        """Write a baseline's own row, sealed."""
        seal = self._sealer.seal("baselines", baseline_fields(row))
        connection.execute(sa.insert(baselines).values(**row, seal=seal))


def seal_days(connection: Connection, sealer: Sealer, ledger_id: str, *, before: int) -> int:
    """Seal the days that are over and have no seal; return how many."""
    c = journal_days.c
    days = connection.execute(sa.select(journal_days).where(c.day < before, c.seal == "")).all()
    for day in days:
        seal = sealer.seal("journal_days", day_fields(day._asdict(), ledger_id))
        connection.execute(sa.update(journal_days).where(c.day == day.day).values(seal=seal))
    return len(days)


def chain_at(connection: Connection, version: int) -> str | None:
    """Return the chain after a version that the journal or a baseline has, or None."""
    if version <= packed(START):
        return ""
    found: str | None = connection.scalar(
        sa.select(journal.c.chain).where(
            journal.c.version == version, journal.c.day == _last_day(connection, version)
        )
    )
    if found is None:
        found = connection.scalar(sa.select(baselines.c.chain).where(baselines.c.version == version))
    return found


def _last_day(connection: Connection, version: int) -> int:
    """Return the day in which a version would be; -1 before all."""
    day: int | None = connection.scalar(
        sa.select(sa.func.max(journal_days.c.day)).where(journal_days.c.first_version <= version)
    )
    return -1 if day is None else day


def _delete_after(connection: Connection, point: int) -> None:
    """Delete what records after a point left, and names that nothing else has."""
    lost_positions = connection.execute(
        sa.select(position_changes.c.sku, position_changes.c.node)
        .where(position_changes.c.version > point)
        .union(
            sa.select(baseline_positions.c.sku, baseline_positions.c.node).where(
                baseline_positions.c.baseline > point
            )
        )
    ).all()
    lost_policies = connection.execute(
        sa.select(policies.c.what, policies.c.channel, policies.c.sku)
        .where(policies.c.version > point)
        .distinct()
    ).all()
    for table in (*BY_DAY, policies):
        connection.execute(sa.delete(table).where(table.c.version > point))
    connection.execute(sa.delete(baseline_positions).where(baseline_positions.c.baseline > point))
    connection.execute(sa.delete(baselines).where(baselines.c.version > point))
    for sku, node in lost_positions:
        place = (positions.c.sku == sku, positions.c.node == node)
        changed = sa.exists().where(position_changes.c.sku == sku, position_changes.c.node == node)
        noted = sa.exists().where(baseline_positions.c.sku == sku, baseline_positions.c.node == node)
        connection.execute(sa.delete(positions).where(*place, ~changed, ~noted))
    for what, channel, sku in lost_policies:
        name = (policies.c.what == what, policies.c.channel == channel, policies.c.sku == sku)
        c = policy_names.c
        connection.execute(
            sa.delete(policy_names).where(
                c.what == what, c.channel == channel, c.sku == sku, ~sa.exists().where(*name)
            )
        )


def _chunks(
    rows: Iterable[tuple[str, str, int, int, int, int, int]],
) -> Iterable[list[tuple[str, str, int, int, int, int, int]]]:
    chunk: list[tuple[str, str, int, int, int, int, int]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) >= CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
