"""Ingest on a real PostgreSQL as on SQLite: files once, killed at each batch; letters, marks, feeds, tables."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from availability.client import Client
from ingest.app import IngestDesk
from ingest.database import metadata, open_database
from ingest.feed_health import FeedHealth
from ingest.pipeline import Pipeline
from ingest.runs import DONE
from ingest.settings import read_source
from ingest.sources.feed import Chunks
from tests.conftest import Names, Server
from tests.ingest_lab import NUMBERS, breaking, on_hand, plain_source
from tests.postgres import database_url, postgres

__all__ = ["database_url", "postgres"]


class Desk:
    """One source on a database of one kind."""

    def __init__(self, folder: Path, url: str, server: Server, names: Names, numbers: str = "") -> None:
        self.source, self.node, self.sku = names.id("wms"), names.node(), names.sku("tea")
        path = folder / "source.toml"
        path.write_text(
            plain_source(self.source, top="batch_deltas = 4", columns='occurred_time = "at"\n' + numbers)
        )
        self.settings = read_source(path)
        self.engine = open_database(url)
        self.client = Client(server.grpc)
        self.desk = IngestDesk({self.source: self.settings}, self.engine, self.client)
        self.folder = folder

    def close(self) -> None:
        self.engine.dispose()
        self.client.close()

    def file(self, name: str, rows: int, bad: int, first: int = 1) -> Path:
        lines = ["type,sku,node,quantity,at,stream,number"]
        for n in range(first, first + rows):
            quantity = "1/2" if n % bad == 0 else "1"
            lines.append(f"RECEIPT,{self.sku},{self.node},{quantity},2026-11-01T08:00:{n % 60:02d}Z,s,{n}")
        path = self.folder / name
        path.write_text("\n".join([*lines, ""]))
        return path

    def pipeline(self, breaks_after: int = -1) -> Pipeline:
        return Pipeline(
            self.settings,
            self.engine,
            self.desk.letters,
            breaking(self.client, self.source, breaks_after),
            now=time.time,
            new_run_id=lambda: uuid.uuid4().hex,
        )

    def on_hand(self) -> int:
        return on_hand(self.client, self.source, self.sku, self.node)


@pytest.fixture(params=["", NUMBERS], ids=["named", "numbered"])
def desk(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str, server: Server, names: Names
) -> Iterator[Desk]:
    made = Desk(tmp_path, database_url, server, names, request.param)
    yield made
    made.close()


def test_a_file_killed_at_each_batch_goes_in_once(desk: Desk) -> None:
    """The note and its letters are one transaction: each row counts once, each bad one is a letter."""
    path = desk.file("a.csv", rows=22, bad=7)
    kills = 0
    while True:
        try:
            assert desk.pipeline(breaks_after=1).carry(path).state == DONE
            break
        except RuntimeError:  # "killed"
            kills += 1
    assert kills >= 4, "19 good rows are five batches of four"
    assert desk.on_hand() == 19
    letters = desk.desk.letters.find(source=desk.source)
    assert [letter.position for letter in letters] == [8, 15, 22]
    assert {letter.count for letter in letters} == {1}
    again = desk.desk.pipeline(desk.source).carry(path)
    assert again.known
    assert desk.on_hand() == 19


def test_letters_are_replayed_and_discarded(desk: Desk) -> None:
    """Found by filter, closed once; what is closed is kept until its time is over, then forgotten."""
    desk.pipeline().carry(desk.file("a.csv", rows=9, bad=3))
    letters = desk.desk.letters
    found = letters.find(source=desk.source, category="VALIDATION")
    assert len(found) == 3
    assert letters.counts() == {(desk.source, "VALIDATION"): 3}
    assert desk.desk.discard(found[:1], "a test") == 1
    assert desk.desk.discard(found[:1], "again") == 0
    outcome = desk.desk.replay(found[1:])
    assert len(outcome.refused or ()) == 2, "the mapping was not mended"
    assert letters.forget(desk.source, time.time() + 1) == 1
    assert len(letters.find(source=desk.source, state="")) == 2


def test_marks_follow_what_is_settled(desk: Desk) -> None:
    """The latest time and number of a stream, never back; a gap is noted while it lasts."""
    desk.pipeline().carry(desk.file("a.csv", rows=5, bad=100))
    marks = desk.pipeline().marks
    (mark,) = marks.all()
    assert mark.watermark == 1_793_520_005.0
    marks.parked(mark.stream, 9, 77.0)
    marks.parked(mark.stream, 9, 99.0)
    assert [(one.parked_at, one.waits_for) for one in marks.all()] == [(77.0, 9)]
    with desk.engine.begin() as connection:
        marks.settled(connection, {mark.stream: [5.0, 8]}, 100.0)
    assert [(one.parked_at, one.watermark) for one in marks.all()] == [(77.0, 1_793_520_005.0)]
    with desk.engine.begin() as connection:
        marks.settled(connection, {mark.stream: [1_793_520_006.5, 9]}, 101.0)
    (mark,) = marks.all()
    assert (mark.parked_at, mark.waits_for, mark.watermark) == (None, 0, 1_793_520_006.5)


def test_feeds_keep_their_place_and_health(desk: Desk) -> None:
    """Chunks move a feed's place when they are carried; since when a feed fails stays while it does."""
    chunks = Chunks(desk.engine, desk.source, "rest", desk.folder / "chunks")
    assert chunks.put(b'{"a": 1}\n', "place 1")
    assert (chunks.position(), chunks.settled()) == ("place 1", "")
    clock = iter((10.0, 20.0, 30.0, 40.0))
    health = FeedHealth(desk.engine, lambda: next(clock))
    health.fails(desk.source, "rest", "UNREACHABLE", "nobody is there")
    health.fails(desk.source, "rest", "UNREACHABLE", "nobody is there yet")
    (state,) = health.all(desk.source)
    assert (state.failing_since, state.failures, state.message) == (10.0, 2, "nobody is there yet")
    health.works(desk.source, "rest")
    assert [(one.worked_at, one.failing_since, one.failures) for one in health.all()] == [(30.0, None, 0)]


def test_two_processes_may_make_the_tables_at_once(database_url: str) -> None:
    """Whoever comes first makes them; nobody fails."""
    failures: list[BaseException] = []

    def make() -> None:
        try:
            open_database(database_url).dispose()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    engine = open_database(database_url)
    assert {*metadata.tables} <= {*sa.inspect(engine).get_table_names()}
    engine.dispose()
