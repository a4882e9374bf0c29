"""Prove that the history is as it was written: chain, columns, counts and seals. It names every row that is not.

The journal's bytes and chain are the truth; day by day they are walked, the chain is computed anew, and all other rows
are made again from the bytes and compared. What no record says (days, baselines, forks) has seals; so whoever alters
the chain as a whole breaks the seal of its day. It reads only, one moment of the database, a chunk at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.history.archive import ArchiveFailed, digest_of, read_day
from availability.history.database import reading
from availability.history.digest import baseline_fields, day_fields, fork_fields
from availability.history.journal import GAP, JOURNAL, RETENTION, START, chain_at
from availability.history.partitions import day_text
from availability.history.prove_names import names_findings
from availability.history.retention import baseline_digest, row_chunks
from availability.history.rows import Rows, add_entry
from availability.history.seal import Sealer
from availability.history.tables import (
    baselines,
    deltas,
    historian,
    journal,
    journal_days,
    journal_forks,
    journal_lost,
    packed,
    policies,
    position_changes,
    positions,
    unpacked,
)
from availability.ledger.record import Entry, chain_after

FINDINGS_MAX = 200
"""More are counted, not listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A row that is not as it was written: its table, where, and what is wrong."""

    table: str
    where: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proved. ``findings`` are the first ones; ``count`` of them there are."""

    records: int
    days: int
    sealed_days: int
    keyed: bool
    findings: tuple[Finding, ...]
    count: int


def prove(
    engine: Engine,
    sealer: Sealer,
    *,
    archive_dir: Path | None = None,
    first_day: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Proof:
    """Prove the history. Records of days before ``first_day`` are not walked; their seals are checked all the same.

    ``archive_dir``: archived days are walked too. ``progress`` gets the records of each chunk. Raises HistoryError.
    """
    with reading(engine) as connection:
        walk = _Walk(connection, sealer, archive_dir, first_day, progress)
        walk.run()
    return Proof(
        records=walk.records,
        days=walk.days,
        sealed_days=walk.sealed,
        keyed=sealer.keyed,
        findings=tuple(walk.findings),
        count=walk.count,
    )


class _Walk:
    """One proof, table by table."""

    def __init__(
        self,
        connection: Connection,
        sealer: Sealer,
        archive_dir: Path | None,
        first_day: int,
        progress: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._sealer = sealer
        self._archive_dir = archive_dir
        self._first_day = first_day
        self._progress = progress
        self.findings: list[Finding] = []
        self.count = self.records = self.days = self.sealed = 0
        self._made: Counter[tuple[str, int]] = Counter()
        """Rows that the walked records make, by table and day."""
        self._made_policies = 0
        self._held = 0
        self._at = packed(START)
        self._chain = ""
        self._clock_ms = 0

    def run(self) -> None:
        place = self._connection.execute(sa.select(historian).where(historian.c.name == JOURNAL)).first()
        others = self._connection.scalar(
            sa.select(sa.func.count()).select_from(historian).where(historian.c.name != JOURNAL)
        )
        if others:
            self._find("historian", "a row", "has a name that nothing writes")
        if place is None:
            if self._connection.scalar(sa.select(sa.func.count()).select_from(journal_days)):
                self._find("historian", JOURNAL, "its place is missing")
            return
        self._ledger_id: str = place.ledger_id
        self._known = self._connection.execute(sa.select(baselines).order_by(baselines.c.version)).all()
        self._check_baselines()
        self._check_days()
        if (self._at, self._chain) != (place.version, place.chain) or (
            self._clock_ms and self._clock_ms != place.clock_ms
        ):
            self._find(
                "historian",
                JOURNAL,
                f"says {unpacked(place.version)}, and the journal ends at {unpacked(self._at)} with another "
                "version, chain or clock",
            )
        if self.sealed and not self._held:
            self._find(
                "historian", JOURNAL, "no day's seal holds: its ledger_id was altered, or the key is another"
            )
        self._check_forks()
        for table, where, what in names_findings(self._connection):
            self._find(table, where, what)

    def _find(self, table: str, where: str, what: str) -> None:
        self.count += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(table=table, where=where, what=what))

    # --- Baselines, days, forks ---------------------------------------------------------------------------

    def _check_baselines(self) -> None:
        retained = max((row.version for row in self._known if row.reason == RETENTION), default=0)
        for row in self._known:
            where = str(unpacked(row.version))
            if not self._sealer.holds(row.seal, "baselines", baseline_fields(row._asdict())):
                self._find("baselines", where, "its seal does not hold")
            if row.version < retained:
                continue  # a gap in days that left: its positions are in what is retained
            digest, count = baseline_digest(self._connection, row.reason, row.version)
            if (digest, count) != (row.digest, row.positions):
                self._find(
                    "baseline_positions", f"baseline {where}", "its positions or policies are not those noted"
                )
                self._find(
                    "policies", f"up to baseline {where}", "its positions or policies are not those noted"
                )

    def _jump(self, baseline: sa.Row[Any]) -> None:  # Any: a row of baselines
        if baseline.after_version != self._at:
            missing = f"after {unpacked(self._at)} up to {unpacked(baseline.after_version)}"
            self._find("journal_days", missing, "records are missing, or their day, before a gap")
        self._at, self._chain, self._clock_ms = baseline.version, baseline.chain, baseline.clock_ms

    def _check_days(self) -> None:
        rows = self._connection.execute(sa.select(journal_days).order_by(journal_days.c.day)).all()
        last = rows[-1].day if rows else -1
        for row in rows:
            self.days += 1
            self._check_seal(row, last)
            name = day_text(row.day)
            if row.chain_before != self._chain_before(row):
                self._find("journal_days", name, "does not follow the day before it")
            if row.state == "KEPT" and row.day >= self._first_day:
                self._walk_day(row)
                continue
            self._at, self._chain, self._clock_ms = row.last_version, row.last_chain, row.last_clock_ms
            if row.state == "KEPT":
                continue
            if not any(one.reason == RETENTION and one.version >= row.last_version for one in self._known):
                self._find("journal_days", name, f"is {row.state}, and no baseline stands for it")
            elif row.state == "ARCHIVED":
                self._walk_archive(row)
        for baseline in self._known:
            if baseline.reason == GAP and baseline.version > self._at:
                self._jump(baseline)
        self._check_counts({row.day for row in rows if row.state == "KEPT"})

    def _check_seal(self, row: sa.Row[Any], last: int) -> None:  # Any: a row of journal_days
        if not row.seal:
            if row.day != last:
                self._find("journal_days", day_text(row.day), "is over and has no seal")
            return
        self.sealed += 1
        held = self._sealer.holds(row.seal, "journal_days", day_fields(row._asdict(), self._ledger_id))
        self._held += held
        if not held:
            self._find("journal_days", day_text(row.day), "its seal does not hold")

    def _check_counts(self, kept: set[int]) -> None:
        """Find rows that no record makes: more of a day than its records make, or of a day that is not kept."""
        for table in (journal, position_changes, deltas):
            query = sa.select(table.c.day, sa.func.count()).group_by(table.c.day)
            for day, count in self._connection.execute(query).all():
                name = day_text(day)
                if day not in kept:
                    self._find(table.name, name, f"{count} rows of a day that is not kept")
                elif day >= self._first_day and count != self._made[table.name, day]:
                    expected = self._made[table.name, day]
                    self._find(table.name, name, f"{count} rows, and its records make {expected}")
        after = max((row.version for row in self._known if row.reason == RETENTION), default=0)
        gaps = {row.version for row in self._known if row.reason == GAP}
        own = policies.c
        count = self._connection.scalar(
            sa.select(sa.func.count()).where(own.version > after, own.version.not_in(gaps))
        )
        if not self._first_day and count != self._made_policies:
            self._find("policies", "all", f"{count} rows, and the records make {self._made_policies}")

    def _check_forks(self) -> None:
        known: set[int] = set()
        for row in self._connection.execute(sa.select(journal_forks)).all():
            known.add(row.fork)
            where = f"fork {row.fork}"
            if not self._sealer.holds(row.seal, "journal_forks", fork_fields(row._asdict())):
                self._find("journal_forks", where, "its seal does not hold")
            self._walk_lost(row, where)
        strays = self._connection.scalars(
            sa.select(journal_lost.c.fork).where(journal_lost.c.fork.not_in(known)).distinct()
        ).all()
        for fork in strays:
            self._find("journal_lost", f"fork {fork}", "records of a fork that there was not")

    def _walk_lost(self, fork: sa.Row[Any], where: str) -> None:  # Any: a row of journal_forks
        columns = [column for column in journal_lost.c if column.name != "fork"]
        rows = self._connection.execute(
            sa.select(*columns).where(journal_lost.c.fork == fork.fork).order_by(journal_lost.c.version)
        ).all()
        if len(rows) != fork.records:
            self._find("journal_lost", where, f"{len(rows)} records, and there were {fork.records}")
        chain = chain_at(self._connection, fork.kept_version)
        clock_ms = 0
        for row in rows:
            entry = Entry(unpacked(row.version), row.chain, row.raw)
            made = Rows()
            clock_ms = add_entry(made, entry, clock_ms or row.clock_ms)
            if chain is not None and chain_after(chain, str(entry.version), row.raw) != row.chain:
                self._find("journal_lost", f"{where}, {entry.version}", "the chain breaks")
            if _plain(made.journal[0][1:]) != _plain(tuple(row)):
                self._find(
                    "journal_lost", f"{where}, {entry.version}", "its columns are not what its bytes say"
                )
            chain = row.chain

    # --- Records ------------------------------------------------------------------------------------------

    def _walk_day(self, day: sa.Row[Any]) -> None:  # Any: a row of journal_days
        self._clock_ms = self._clock_ms or day.first_clock_ms
        records, first = 0, None
        query = sa.select(journal).where(journal.c.day == day.day).order_by(journal.c.version)
        for chunk in row_chunks(self._connection, query):
            first = first or chunk[0]
            records += len(chunk)
            self._walk_chunk(day.day, chunk)
        told = (records, self._at, self._chain, self._clock_ms)
        if day.archive or day.archive_digest:
            self._find("journal_days", day_text(day.day), "is kept, and names an archive")
        if told != (day.records, day.last_version, day.last_chain, day.last_clock_ms) or (
            first is not None and (first[1], first[2]) != (day.first_version, day.first_clock_ms)
        ):
            self._find("journal_days", day_text(day.day), "its records are others than it says")

    def _chain_before(self, day: sa.Row[Any]) -> str:  # Any: as above
        """Return the chain that a day must go on from: that of the day before it, or of a gap between them."""
        for baseline in self._known:
            if baseline.reason == GAP and self._at < baseline.version < day.first_version:
                self._jump(baseline)
        return self._chain

    def _walk_chunk(self, day: int, chunk: Sequence[tuple[Any, ...]]) -> None:  # Any: rows of the journal
        made = Rows()
        low = self._at
        gaps = {row.version: row for row in self._known if row.reason == GAP}
        for row in chunk:
            _, version, _, _, _, _, _, chain, raw = row
            entry = Entry(unpacked(version), chain, bytes(raw))
            for gap, baseline in gaps.items():
                if self._at < gap < version:
                    self._jump(baseline)
            at = unpacked(self._at)
            follows = (
                entry.version.seq == at.seq + 1 if entry.version.epoch == at.epoch else entry.version > at
            )
            if not follows:
                self._find("journal", str(entry.version), f"does not follow {at}")
            if chain_after(self._chain, str(entry.version), entry.raw) != chain:
                self._find(
                    "journal", str(entry.version), "the chain breaks: this record or its chain was altered"
                )
            self._clock_ms = add_entry(made, entry, self._clock_ms)
            if _plain(made.journal[-1]) != _plain(row):
                self._find("journal", str(entry.version), "its columns are not what its bytes say")
            self._at, self._chain = version, chain
        self._compare_made(day, low, made)
        self.records += len(chunk)
        self._progress(len(chunk))

    def _compare_made(self, day: int, low: int, made: Rows) -> None:
        """Hold the rows of a chunk's versions against what its records make."""
        self._made["journal", day] += len(made.journal)
        for table, rows in (
            (position_changes, made.position_changes),
            (deltas, made.deltas),
            (policies, made.policies),
        ):
            where = [table.c.version > low, table.c.version <= self._at]
            if table is policies:
                where.append(table.c.number >= 0)
                self._made_policies += len(rows)
            else:
                where.append(table.c.day == day)
                self._made[table.name, day] += len(rows)
            found = Counter(
                _plain(tuple(row)) for row in self._connection.execute(sa.select(table).where(*where))
            )
            expected = Counter(_plain(row) for row in rows)
            place = 3 if table is policies else 1
            for row in (expected - found).keys() | (found - expected).keys():
                self._find(table.name, str(unpacked(row[place])), "is not what its record says")
        if made.new_positions:
            self._find_missing(made.new_positions)

    def _find_missing(self, names: Iterable[tuple[str, str]]) -> None:
        wanted = {_plain(name) for name in names}
        skus = list({sku for sku, _ in wanted})
        known = {
            tuple(row)
            for first in range(0, len(skus), 500)
            for row in self._connection.execute(
                sa.select(positions).where(positions.c.sku.in_(skus[first : first + 500]))
            )
        }
        for sku, node in wanted - known:
            self._find("positions", f"{sku} at {node}", "is missing, and records name it")

    def _walk_archive(self, day: sa.Row[Any]) -> None:  # Any: a row of journal_days
        if self._archive_dir is None:
            return
        folder = self._archive_dir / day.archive
        chain, records = day.chain_before, 0
        try:
            if digest_of(folder) != day.archive_digest:
                self._find("archive", day.archive, "its files are not those that were written")
            for rows in read_day(folder):
                for row in rows:
                    chain = chain_after(chain, str(unpacked(row[1])), row[8])
                records += len(rows)
                self._progress(len(rows))
        except ArchiveFailed as error:
            self._find("archive", day.archive, str(error))
            return
        self.records += records
        gap = any(one.reason == GAP for one in self._known)
        if records != day.records or (chain != day.last_chain and not gap):
            self._find("archive", day.archive, "its records are others than the day says")


def _plain(row: Sequence[Any]) -> tuple[Any, ...]:  # Any: values of columns
    """Return a row with bytes as bytes, and text as PostgreSQL keeps it."""
    return tuple(
        bytes(value)
        if isinstance(value, memoryview)
        else value.replace("\0", "\ufffd")
        if isinstance(value, str)
        else value
        for value in row
    )
