"""What the tests of the history share: a ledger that fails in memory, its historian, and the journal read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.domain.version import Version
from availability.history.baseline import read_baseline
from availability.history.database import open_database
from availability.history.historian import Historian, HistorianSettings
from availability.history.journal import Journal
from availability.history.rows import rows_of
from availability.history.seal import Sealer
from availability.history.tables import deltas, journal, packed, policies, position_changes
from availability.ledger.errors import LedgerUnreachable
from availability.ledger.record import Entry
from tests.fakes_ledger import FakeLedger

KEY = b"k" * 40
DAY_MS = 86_400_000
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2


class Notes:
    """The ledger's memory of its consumer, and who is told what the historian does."""

    def __init__(self, ledger: FakeLedger) -> None:
        self._ledger = ledger
        self.version: Version | None = None
        self.on_note: Callable[[], object] = lambda: None
        self.records = 0
        self.failures: list[str] = []

    def note(self, version: Version) -> None:
        if self._ledger.unreachable:
            raise LedgerUnreachable("no answer")
        self.version = version
        self.on_note()

    def wrote(self, records: int, seconds: float) -> None:
        self.records += records

    def failed(self, cause: str) -> None:
        self.failures.append(cause)


class Lab:
    """A ledger, a database, and a historian that can be killed and started again."""

    def __init__(self, url: str, folder: Path, ledger: FakeLedger | None = None) -> None:
        self.ledger = ledger or FakeLedger()
        self.ledger.clock_ms = NOON_MS
        self.engine = open_database(url, folder)
        self.notes = Notes(self.ledger)
        self.now = 100.0
        self.historian = self.start()

    def start(self, journal_of: Callable[[Engine, Sealer], Journal] = Journal, **limits: int) -> Historian:
        """Start a historian anew, as after a crash: it knows what the database says and nothing else."""
        options = {"gather_ms": 0, "checkpoint_ms": 0, **limits}
        self.historian = Historian(
            self.ledger,
            self.notes,
            journal_of(self.engine, Sealer(KEY)),
            HistorianSettings(**options),
            baseline=lambda head: read_baseline(self.ledger, head, Random(1), stopped=lambda: False),
            monotonic=lambda: self.now,
            wall_ms=lambda: 77,
            random_source=Random(1),
            observer=self.notes,
        )
        return self.historian

    def catch_up(self, steps: int = 200) -> None:
        """Step until everything is written."""
        for _ in range(steps):
            self.historian.step()
            if self.historian.caught_up:
                return
        raise AssertionError(f"not caught up: {self.historian.place}, {self.notes.failures[-3:]}")

    def journal(self) -> list[Entry]:
        """Return the journal as log entries, oldest first."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(journal).order_by(journal.c.version)).all()
        return [Entry(unpack(row.version), row.chain, row.raw) for row in rows]

    def assert_equals_log(self, after: Version | None = None) -> None:
        """Hold journal and log together, record by record; and what stands in columns with the records."""
        log = [entry for entry in self.ledger.now.log if after is None or entry.version > after]
        ours = [entry for entry in self.journal() if after is None or entry.version > after]
        assert ours == log
        self.assert_columns_follow(ours)

    def assert_columns_follow(self, entries: list[Entry]) -> None:
        """Make the rows of the records again, and compare with what the tables hold."""
        first = packed(entries[0].version) if entries else 0
        expected = rows_of(entries, 0)
        with self.engine.connect() as connection:
            for table, rows in (
                (position_changes, expected.position_changes),
                (deltas, expected.deltas),
                (policies, expected.policies),
            ):
                query = sa.select(table).where(table.c.version >= first)
                if table is policies:
                    query = query.where(table.c.number >= 0)
                found = [tuple(row) for row in connection.execute(query)]
                assert sorted(found, key=repr) == sorted(rows, key=repr), table.name


def unpack(version: int) -> Version:
    return Version(version >> 44, version & ((1 << 44) - 1))
