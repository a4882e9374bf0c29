"""Whatever is altered in the history is found and named; and days that leave take no answer with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa

from availability.domain.version import Version
from availability.history.moment import NotInHistory
from availability.history.past import Past
from availability.history.prove import Proof, prove
from availability.history.retention import Retention
from availability.history.seal import Sealer, SealKeyError
from availability.history.story import Story
from availability.history.tables import (
    baseline_positions,
    baselines,
    deltas,
    historian,
    journal,
    journal_days,
    journal_forks,
    journal_lost,
    policies,
    policy_names,
    position_changes,
    positions,
)
from availability.ledger.record import Cause, DeltasBody, Kind
from tests.history_lab import DAY_MS, KEY, NOON_MS, Lab
from tests.postgres import history_url, postgres, shared_database
from tests.test_past import CHANNELS, SKUS, assert_adds_up, random_change

__all__ = ["history_url", "postgres", "shared_database"]

TODAY = NOON_MS // DAY_MS
TABLES = (
    historian, journal, position_changes, positions, deltas, policies, policy_names, journal_days, baselines,
    baseline_positions, journal_forks, journal_lost,
)  # fmt: skip


@pytest.fixture
def lab(history_url: str, tmp_path: Path) -> Lab:
    """Five eventful days, in each kind of database."""
    return eventful(history_url, tmp_path)


@pytest.fixture
def sqlite_lab(tmp_path: Path) -> Lab:
    """The same, in SQLite only."""
    return eventful(f"sqlite:///{tmp_path / 'history.sqlite'}", tmp_path)


def eventful(url: str, folder: Path) -> Lab:
    """Write five days with everything in them: a gap, a fork, a fence, a delta with all its fields."""
    made = Lab(url, folder)
    ledger = made.ledger
    ledger.clock_ms -= 5 * DAY_MS
    ledger.set_node("a")
    ledger.set_channel("web", buffer_units=1)
    ledger.put(("x", "a", (9, 0, 0, 0, -1)), ("y", "a", (3, 0, 0, 0, -1)), ("gone", "a", (1, 0, 0, 0, 2)))
    ledger.set_fence("web", "x", 4)
    for _ in range(3):
        ledger.reserve_fenced("web", "x", "a", 1)
        ledger.clock_ms += DAY_MS // 2
    made.catch_up()
    ledger.put(("z", "a", (7, 1, 0, 0, -1)))
    ledger.set_override("web", "z", units=2)
    ledger.reserve("z", "a", 1)
    ledger.trim(1)
    made.catch_up()
    ledger.clock_ms += DAY_MS
    cause = Cause(
        "s", 7, "", 1, "x", "a", "", 5, 0, "shop", "1001", "", 0, -1, "PO-1", "found", 0, 99, "c", "ann"
    )
    ledger.emit(
        Kind.DELTAS, [ledger._change("x", "a", (14, 0, 3, 0, -1))], DeltasBody("wms", [cause], [], [], [], [])
    )
    made.catch_up()
    before = ledger.now.copy()
    ledger.reserve("x", "a", 2)
    ledger.set_stop("web", "y")
    made.catch_up()
    ledger.now = before
    ledger.hand_shake()
    ledger.clock_ms += DAY_MS
    ledger.set_kit("kit", x=2)
    ledger.reserve("z", "a", 1)
    made.catch_up()
    ledger.clock_ms = NOON_MS
    ledger.reserve("y", "a", 1)
    made.catch_up()
    return made


def retained(lab: Lab, folder: Path, keep_days: int, archive: bool = True) -> Any:
    retention = Retention(
        lab.engine, Sealer(KEY), keep_days=keep_days, archive_dir=folder / "archive" if archive else None
    )
    return retention.run(TODAY)


def proved(lab: Lab, folder: Path, key: bytes = KEY) -> Proof:
    return prove(lab.engine, Sealer(key), archive_dir=folder / "archive")


def told(proof: Proof) -> list[str]:
    return [f"{one.table} {one.where}: {one.what}" for one in proof.findings]


@pytest.mark.parametrize("keep_days", [0, 3, 1])
def test_what_was_written_is_proved(lab: Lab, tmp_path: Path, keep_days: int) -> None:
    """A history that nobody touched has no finding, however many of its days have left."""
    retained(lab, tmp_path, keep_days)
    proof = proved(lab, tmp_path)
    assert told(proof) == []
    assert proof.days == 5
    assert proof.sealed_days == 4
    assert proof.keyed


def altered(value: object) -> object:
    if isinstance(value, int):
        return value + 1
    if isinstance(value, bytes | memoryview):
        return bytes(value) + b"x"
    assert isinstance(value, str)
    return value + "x"


def alterations(
    lab: Lab, table: sa.Table, columns: list[sa.Column[Any]], random: Random
) -> Iterator[tuple[str, sa.Row[Any]]]:
    """Alter one value of a random row in each column in turn, and put it back."""
    with lab.engine.connect() as connection:
        rows = connection.execute(sa.select(table)).all()
    for column in columns:
        row = random.choice(rows)
        old, new = getattr(row, column.name), altered(getattr(row, column.name))
        same = [
            one == getattr(row, one.name) for one in table.c if one.name not in (column.name, "raw", "state")
        ]
        try:
            with lab.engine.begin() as connection:
                found = connection.execute(
                    sa.update(table).where(*same, column == old).values({column.name: new})
                )
        except sa.exc.DBAPIError:
            continue  # the database itself refuses: a day without a partition, a key that is taken
        assert found.rowcount >= 1, (table.name, column.name)
        yield column.name, row
        with lab.engine.begin() as connection:
            connection.execute(sa.update(table).where(*same, column == new).values({column.name: old}))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_any_altered_row_is_found_and_named(
    sqlite_lab: Lab, tmp_path: Path, seed: int, table: sa.Table
) -> None:
    """Of every table, a value of any column."""
    retained(sqlite_lab, tmp_path, 3)
    columns = 0
    for column, row in alterations(sqlite_lab, table, list(table.c), Random(seed)):
        found = {one.table for one in proved(sqlite_lab, tmp_path).findings}
        assert table.name in found, (column, row, found)
        columns += 1
    assert columns >= len(table.c) - 1
    assert told(proved(sqlite_lab, tmp_path)) == []


def test_an_altered_row_of_each_table_is_found_in_each_database(lab: Lab, tmp_path: Path, seed: int) -> None:
    """Partitions, binary columns and collations of PostgreSQL hide nothing."""
    retained(lab, tmp_path, 3)
    random = Random(seed)
    for table in TABLES:
        columns = [column for column in table.c if column.name != "day"]
        for column, row in alterations(lab, table, [random.choice(columns)], random):
            found = {one.table for one in proved(lab, tmp_path).findings}
            assert table.name in found, (table.name, column, row, found)


@pytest.mark.parametrize("day", range(4))
def test_a_day_that_was_taken_out_is_found(sqlite_lab: Lab, tmp_path: Path, day: int) -> None:
    """The first one, one before a gap, an archived one, a kept one: none can vanish."""
    retained(sqlite_lab, tmp_path, 3)
    with sqlite_lab.engine.begin() as connection:
        days = connection.scalars(sa.select(journal_days.c.day).order_by(journal_days.c.day)).all()
        connection.execute(sa.delete(journal_days).where(journal_days.c.day == days[day]))
    assert "journal_days" in {one.table for one in proved(sqlite_lab, tmp_path).findings}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_row_that_was_taken_out_is_found(
    sqlite_lab: Lab, tmp_path: Path, seed: int, table: sa.Table
) -> None:
    """A history with a row less is not the one that was written."""
    retained(sqlite_lab, tmp_path, 3)
    with sqlite_lab.engine.begin() as connection:
        row = Random(seed).choice(connection.execute(sa.select(table)).all())
        same = [one == getattr(row, one.name) for one in table.c if one.name not in ("raw", "state")]
        assert connection.execute(sa.delete(table).where(*same)).rowcount == 1
    assert proved(sqlite_lab, tmp_path).count > 0, row


def test_whoever_makes_the_chain_anew_lacks_the_key(lab: Lab, tmp_path: Path) -> None:
    """A day sealed with another key, or with none, does not pass."""
    assert told(proved(lab, tmp_path)) == []
    for key in (b"", b"o" * 40):
        assert {one.table for one in proved(lab, tmp_path, key).findings} >= {"journal_days", "baselines"}


def test_an_archived_day_is_proved_from_its_files(lab: Lab, tmp_path: Path) -> None:
    """A file that was altered or is gone is named."""
    done = retained(lab, tmp_path, 3)
    assert len(done.days) == 2
    assert told(proved(lab, tmp_path)) == []
    part = tmp_path / "archive" / done.days[0] / "part-0000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-20] + b"\0" * 20)
    assert {one.table for one in proved(lab, tmp_path).findings} == {"archive"}
    part.unlink()
    assert any(done.days[0] in line for line in told(proved(lab, tmp_path)))


def test_days_leave_once_and_never_the_last(lab: Lab, tmp_path: Path) -> None:
    """A second run finds nothing to do, and whoever writes goes on."""
    assert len(retained(lab, tmp_path, 1).days) == 3
    assert retained(lab, tmp_path, 1).days == ()
    lab.ledger.reserve("y", "a", 1)
    lab.start()
    lab.catch_up()
    assert told(proved(lab, tmp_path)) == []


def test_a_run_that_ended_after_the_files_is_done_again(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between archive and database: the next run writes the same files and finishes."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("availability.history.retention.drop_day", killed)
        with pytest.raises(KeyboardInterrupt):
            retained(lab, tmp_path, 3)
    assert told(proved(lab, tmp_path)) == []
    assert len(retained(lab, tmp_path, 3).days) == 2
    assert told(proved(lab, tmp_path)) == []


def test_a_moment_before_the_kept_days_is_refused(lab: Lab, tmp_path: Path) -> None:
    """It says where the history begins; the story says that earlier days left."""
    retained(lab, tmp_path, 2, archive=False)
    with pytest.raises(NotInHistory, match="it begins at"):
        Past(lab.engine).explain("web", "x", Version(1, 3))
    last = Story(lab.engine).page("x", "a").chapters[-1]
    assert (last.origin.event, last.origin.reason) == ("BASELINE", "days before it left the database")


@pytest.mark.parametrize("round_number", range(1))
def test_answers_of_kept_days_stay_exact_when_others_leave(
    history_url: str, tmp_path: Path, seed: int, full: bool, round_number: int
) -> None:
    """Random days leave in several runs; every later answer is what it was, to the unit."""
    random = Random(f"{seed} {round_number}")
    lab = Lab(history_url, tmp_path)
    ledger = lab.ledger
    ledger.clock_ms = NOON_MS - 12 * DAY_MS
    answered = []
    for _ in range(400 if full else 90):
        ledger.clock_ms = min(NOON_MS, ledger.clock_ms + random.choice([1, DAY_MS // 5]))
        random_change(ledger, random)
        if random.random() < 0.05:
            lab.catch_up()
        if random.random() < 0.03:
            ledger.trim(1)
        now = {(channel, sku): ledger.answer(channel, sku) for channel in CHANNELS for sku in SKUS}
        answered.append((ledger.version, ledger.clock_ms // DAY_MS, now))
    lab.catch_up()
    past, exact = Past(lab.engine), 0
    for keep_days in (9, 6, 3):
        retained(lab, tmp_path, keep_days)
        for version, day, then in (*random.sample(answered, 60), *answered[-5:]):
            channel, sku = random.choice(CHANNELS), random.choice(SKUS)
            try:
                answer = past.explain(channel, sku, version)
            except NotInHistory:
                continue
            assert day >= TODAY - keep_days or version == answer.terms.version
            assert (answer.terms.sellable, answer.terms.state) == then[channel, sku], (version, channel, sku)
            assert_adds_up(answer)
            exact += 1
    assert exact >= 5
    assert told(proved(lab, tmp_path)) == []


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Also one that is too short; the message names the file, never the key."""
    file = tmp_path / "key"
    file.write_bytes(b"s3cret" * 8)
    file.chmod(0o640)
    with pytest.raises(SealKeyError, match="chmod 600"):
        Sealer.from_file(file)
    file.chmod(0o600)
    assert Sealer.from_file(file).keyed
    file.write_bytes(b"s3cret")
    with pytest.raises(SealKeyError, match="fewer than 32") as caught:
        Sealer.from_file(file)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SealKeyError, match="cannot read"):
        Sealer.from_file(tmp_path / "none")
