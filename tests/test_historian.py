"""The journal equals the log: once, in order, proved; whatever fails and whenever. On SQLite and PostgreSQL."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa

from availability.domain.version import Version
from availability.history.database import DatabaseUnreachable, HistoryError
from availability.history.journal import Journal, OtherLedger, Place
from availability.history.rows import UNREADABLE, Rows
from availability.history.seal import Sealer
from availability.history.tables import (
    baselines,
    journal,
    journal_days,
    journal_forks,
    journal_lost,
    packed,
    positions,
    unpacked,
)
from availability.ledger.record import Kind, PositionChange
from tests.fakes_ledger import FakeLedger
from tests.history_lab import DAY_MS, Lab
from tests.postgres import database_url, history_url, postgres, shared_database

__all__ = ["database_url", "history_url", "postgres", "shared_database"]


@pytest.fixture
def lab(history_url: str, tmp_path: Path) -> Lab:
    """A ledger with two nodes, a channel, a kit and a fence, and its historian."""
    made = Lab(history_url, tmp_path)
    made.ledger.set_node("a")
    made.ledger.set_node("b", safety_stock=1)
    made.ledger.set_channel("web", ["b", "a"], buffer_units=1)
    made.ledger.put(("x", "a", (5, 0, 0, 0, -1)), ("x", "b", (4, 0, 0, 0, -1)), ("y", "a", (2, 0, 0, 0, -1)))
    made.ledger.set_kit("k", x=1, y=2)
    made.ledger.set_fence("web", "x", 2)
    return made


def test_the_journal_is_the_log(lab: Lab) -> None:
    """Every record stands in the journal with its bytes and chain, and what it says in columns."""
    lab.catch_up()
    lab.ledger.reserve_fenced("web", "x", "a", 1)
    lab.ledger.clear_override("web", "x")
    lab.catch_up()
    lab.assert_equals_log()
    assert lab.notes.version == lab.ledger.version
    assert lab.notes.records == lab.ledger.now.seq


def test_what_was_written_is_not_written_again(lab: Lab) -> None:
    """A historian that starts anew goes on from the place that the database has."""
    lab.catch_up()
    lab.start()
    lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.assert_equals_log()


def test_two_historians_write_nothing_twice(lab: Lab) -> None:
    """Two that run by mistake take turns: the second finds the place moved and writes nothing from its own."""
    first, second = lab.start(), lab.start()
    for number in range(1, 12):
        lab.ledger.reserve("x", "a", 1)
        for historian in (first, second) if number % 2 else (second, first):
            historian.step()
    lab.catch_up()
    lab.assert_equals_log()
    assert "place" in lab.notes.failures


class Torn(Journal):
    """Loses its connection at random, before or after the commit: the caller cannot know which."""

    random = Random(0)

    def append(self, at: Place, rows: Rows, after: Place) -> None:
        luck = self.random.random()
        if luck < 0.3:
            raise DatabaseUnreachable("gone before")
        super().append(at, rows, after)
        if luck < 0.6:
            raise DatabaseUnreachable("gone after")


def test_a_database_that_breaks_off_anywhere_costs_and_doubles_nothing(lab: Lab, seed: int) -> None:
    """Rows and place are one transaction: after each break the database itself says how far it came."""
    Torn.random = Random(seed)
    for round_number in range(40):
        lab.ledger.clock_ms += DAY_MS // 10
        lab.ledger.reserve("x", "a", 1)
        if round_number % 7 == 0:
            lab.start(Torn, batch_changes=3)
        lab.historian.step()
    lab.start()
    lab.catch_up()
    lab.assert_equals_log()
    days = rows_of_table(lab, journal_days)
    assert sum(day.records for day in days) == len(lab.ledger.now.log)
    assert [bool(day.seal) for day in days] == [True] * (len(days) - 1) + [False]
    for earlier, later in pairwise(days):
        assert later.chain_before == earlier.last_chain


def test_a_database_that_is_away_is_waited_for(lab: Lab) -> None:
    """Nothing is read ahead of it: the pauses grow to their limit, and the log waits in the ledger."""
    lab.catch_up()
    lab.start(Away)
    reads = lab.ledger.calls.count("read")
    pauses = [lab.historian.step() for _ in range(12)]
    assert lab.notes.failures == ["database"] * 12
    assert pauses == sorted(pauses) or max(pauses) <= 5.0
    assert 2.5 <= max(pauses) <= 5.0
    assert lab.ledger.calls.count("read") == reads
    lab.start()
    lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.assert_equals_log()


class Away(Journal):
    def place(self, ledger_id: str) -> Place:
        raise DatabaseUnreachable("away")


def test_records_that_a_failover_took_back_are_taken_back_and_kept_aside(lab: Lab) -> None:
    """The journal follows the ledger's history; what was lost is named, record by record."""
    lab.catch_up()
    before = lab.ledger.now.copy()
    lab.ledger.put(("x", "a", (9, 0, 0, 0, -1)), ("z", "b", (1, 0, 0, 0, -1)))
    lab.ledger.set_override("web", "z", units=3)
    lost = lab.ledger.now.log[-2:]
    lab.catch_up()
    lab.ledger.now = before
    lab.ledger.hand_shake()
    lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.assert_equals_log()
    (fork,) = rows_of_table(lab, journal_forks)
    assert (fork.kept_version, fork.seen_version, fork.records) == (
        packed(lost[0].version) - 1,
        packed(lost[1].version),
        2,
    )
    assert [row.raw for row in rows_of_table(lab, journal_lost)] == [entry.raw for entry in lost]
    assert ("z", "b") not in {(row.sku, row.node) for row in rows_of_table(lab, positions)}


def test_a_restart_of_redis_takes_nothing_back(lab: Lab) -> None:
    """A new epoch that begins where we are is no fork."""
    lab.catch_up()
    lab.ledger.hand_shake()
    lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.assert_equals_log()
    assert rows_of_table(lab, journal_forks) == []


def test_a_fork_that_nobody_announced_is_found_by_its_chain(lab: Lab) -> None:
    """Ids handed out again in the same epoch break the chain: journal and log are compared, record by record."""
    lab.catch_up()
    before = lab.ledger.now.copy()
    for _ in range(3):
        lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.ledger.now = before
    for _ in range(5):
        lab.ledger.reserve("x", "b", 1)
    lab.catch_up()
    lab.assert_equals_log()
    (fork,) = rows_of_table(lab, journal_forks)
    assert fork.records == 3


def test_a_ledger_that_went_back_is_made_to_say_so(lab: Lab) -> None:
    """A primary that nobody wrote to since a failover: a write that lets nothing be trimmed starts its next epoch."""
    lab.catch_up()
    before = lab.ledger.now.copy()
    lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.ledger.now = before
    noted: list[Version | None] = []

    def shake_hands() -> None:
        noted.append(lab.notes.version)
        if lab.ledger.now is before and len(noted) == 1:
            lab.ledger.hand_shake()

    lab.notes.on_note = shake_hands
    lab.catch_up()
    assert noted[0] == Version(1, 0)
    lab.assert_equals_log()
    (fork,) = rows_of_table(lab, journal_forks)
    assert fork.records == 1


def test_a_log_that_begins_later_leaves_a_gap_that_is_named(lab: Lab) -> None:
    """A first start on an old ledger notes everything as it stands and goes on from there."""
    lab.ledger.set_override("web", "x", units=2)
    lab.ledger.set_stop("", "y")
    lab.ledger.trim(3)
    lab.catch_up()
    (baseline,) = rows_of_table(lab, baselines)
    assert (baseline.after_version, baseline.reason, baseline.positions) == (packed(Version(1, 0)), "GAP", 3)
    start = lab.ledger.version
    lab.ledger.reserve("x", "a", 2)
    lab.catch_up()
    lab.assert_equals_log(after=start)


def test_another_ledger_is_refused(lab: Lab, tmp_path: Path) -> None:
    """One database, one ledger: the histories of two are never mixed."""
    lab.catch_up()
    lab.ledger = FakeLedger("ledger-2")
    lab.start()
    with pytest.raises(OtherLedger, match="ledger-1"):
        lab.historian.step()


def test_a_record_that_cannot_be_read_keeps_its_bytes(lab: Lab) -> None:
    """It stops nothing: its bytes and chain are kept for a release that can."""
    lab.ledger.append(b"\xc1 no message pack")
    lab.ledger.emit(99, [], {})
    lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.assert_equals_log()
    assert [row.kind for row in rows_of_table(lab, journal)][-3:] == [UNREADABLE, 99, Kind.RESERVED]


def test_text_with_nul_is_kept(lab: Lab) -> None:
    """PostgreSQL takes no NUL in text: there the columns show another character, the bytes all."""
    lab.ledger.emit(Kind.EXTENDED, [PositionChange("nul\0", "a", 1, 0, 0, 0, -1, 1, 0, 0, 0)], ["r", 1])
    lab.catch_up()
    assert lab.journal() == lab.ledger.now.log
    found = {row.sku for row in rows_of_table(lab, positions)}
    assert found & {"nul\0", "nul\ufffd"}


def test_large_records_are_read_in_small_pieces(lab: Lab) -> None:
    """Memory is bounded by bytes, not only by the number of records."""
    for _ in range(30):
        lab.ledger.append(b"x" * 10_000)
    lab.start(batch_bytes=50_000)
    lab.catch_up()
    asked: list[str] = []
    lab.ledger.before_call = asked.append
    for _ in range(30):
        lab.ledger.append(b"x" * 10_000)
    lab.catch_up()
    assert asked.count("read") >= 6
    lab.assert_equals_log()


@pytest.mark.parametrize("round_number", range(3))
def test_whatever_happens_the_journal_becomes_the_log(
    history_url: str, tmp_path: Path, seed: int, full: bool, round_number: int
) -> None:
    """Random changes, failovers, announced or not, restarts, trims, torn transactions and kills."""
    random = Random(f"{seed} {round_number}")
    Torn.random = Random(random.random())
    lab = Lab(history_url, tmp_path)
    lab.ledger.set_node("a")
    lab.ledger.set_channel("web")
    lab.ledger.put(("x", "a", (500, 0, 0, 0, -1)))
    copies = [lab.ledger.now.copy()]
    trimmed = False
    for _ in range(600 if full else 60):
        luck = random.random()
        if luck < 0.5:
            lab.ledger.clock_ms += random.choice([0, 5, DAY_MS // 3])
            change(lab.ledger, random)
        elif luck < 0.55:
            copies.append(lab.ledger.now.copy())
        elif luck < 0.62:
            lab.ledger.now = random.choice(copies).copy()
            lab.ledger.hand_shake()
            copies = [lab.ledger.now.copy()]
        elif luck < 0.65:
            lab.ledger.hand_shake()
        elif luck < 0.67 and lab.notes.version is not None:
            held = len([entry for entry in lab.ledger.now.log if entry.version > lab.notes.version])
            lab.ledger.trim(held)
            copies = [lab.ledger.now.copy()]
            trimmed = True
        elif luck < 0.72:
            lab.start(Torn, batch_changes=random.choice([1, 3, 100]), batch_records=random.choice([1, 4, 50]))
        else:
            lab.historian.step()
    lab.start()
    lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    if not trimmed:
        lab.assert_equals_log()
    else:
        # A fork whose common point was trimmed leaves a gap: it is named, and everything after it is there.
        gaps = [unpacked(row.version) for row in rows_of_table(lab, baselines) if row.reason == "GAP"]
        ours, log = lab.journal(), lab.ledger.now.log
        if gaps:
            log = [entry for entry in log if entry.version > max(gaps)]
            ours = [entry for entry in ours if entry.version > max(gaps)]
        assert ours[len(ours) - len(log) :] == log
        assert log or max(gaps) == lab.ledger.version
        lab.assert_columns_follow(ours)


def change(ledger: FakeLedger, random: Random) -> None:
    sku = random.choice("xyz")
    choice = random.randrange(5)
    if choice == 0:
        ledger.put((sku, random.choice("ab"), (random.randrange(50), 0, 0, 0, -1)))
    elif choice == 1 and ledger.now.positions.get("x"):
        ledger.reserve("x", next(iter(ledger.now.positions["x"])), 1)
    elif choice == 2:
        ledger.set_override("web", sku, units=random.randrange(9))
    elif choice == 3:
        ledger.set_stop(random.choice(["", "web"]), sku, blocked=random.random() < 0.5)
    else:
        ledger.set_fence("web", sku, random.randrange(4))


def test_a_failure_that_waiting_cannot_mend_ends_the_historian(lab: Lab) -> None:
    """A database that refuses (permissions, a full disk of another kind) is told, not hammered."""

    class Refuses(Journal):
        def append(self, at: Place, rows: Rows, after: Place) -> None:
            raise HistoryError("refused")

    lab.start(Refuses)
    with pytest.raises(HistoryError, match="refused"):
        lab.historian.step()


def rows_of_table(lab: Lab, table: sa.Table) -> list[sa.Row]:
    order = [column for column in table.c if column.primary_key]
    with lab.engine.connect() as connection:
        return list(connection.execute(sa.select(table).order_by(*order)).all())


def test_seals_need_the_key() -> None:
    """A seal made without the key, or of other fields, does not hold; the key shows nowhere."""
    ours, other, none = Sealer(b"k" * 32), Sealer(b"o" * 32), Sealer()
    seal = ours.seal("days", [1, "a"])
    assert ours.holds(seal, "days", [1, "a"])
    assert not ours.holds(seal, "days", [2, "a"])
    assert not ours.holds(seal, "forks", [1, "a"])
    assert not ours.holds(other.seal("days", [1, "a"]), "days", [1, "a"])
    assert not ours.holds(none.seal("days", [1, "a"]), "days", [1, "a"])
    assert "kkk" not in repr(ours)
