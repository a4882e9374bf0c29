"""Letters, unknown skus, refused files and failing feeds reach the list of exceptions, until they are over."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest

from availability.client import Client, ClientError
from availability.telemetry import IngestMetrics
from availability.v1 import exception_pb2 as exc
from ingest.alarms import REFUSED_FILES_S, TOLD_AGAIN_S, Alarms
from ingest.app import IngestDesk
from ingest.database import open_database
from ingest.feed_health import FeedHealth
from ingest.figures import source_figures
from ingest.settings import SourceSettings, read_sources
from ingest.sources.feed import FeedFailed, FeedThread
from tests.conftest import Names, Server

SOURCE = """
source = "{source}"
all_or_nothing = {all_or_nothing}

[format]
kind = "csv"

[mapping]
version = "1"
author = "ingest"
other_skus = "refuse"

[mapping.skus]
{known}

[mapping.columns]
type = "type"
sku = "sku"
node = "node"
quantity = "quantity"

[alarms]
letters = 3
letter_age_s = 100
unknown_skus = 2
feed_failing_s = 60

[drop]
folder = "drop"
settle_ms = 0
"""
HEADER = "type,sku,node,quantity"


class Floor:
    """A desk on a real server, and a clock that the test moves."""

    def __init__(self, folder: Path, server: Server, names: Names, all_or_nothing: str = "false") -> None:
        self.folder, self.names = folder, names
        self.source = names.id("wms")
        text = SOURCE.format(
            source=self.source, all_or_nothing=all_or_nothing, known=f'"ALIAS" = "{names.sku("tea")}"'
        )
        (folder / "source.toml").write_text(text)
        self.client = Client(server.grpc)
        self.engine = open_database(str(folder / "ingest.db"))
        self.desk = IngestDesk(read_sources(folder), self.engine, self.client)
        self.settings: SourceSettings = self.desk.sources[self.source]
        self.late_s = 0.0
        self.reports: list[int] = []

    def now(self) -> float:
        import time

        return time.time() + self.late_s

    def report_exceptions(
        self, source: str, wrong: list[exc.ReportedException], over: list[exc.ReportedException]
    ) -> object:
        self.reports.append(len(wrong))
        return self.client.report_exceptions(source, wrong, over)

    def alarms(self) -> Alarms:
        return Alarms(
            self.engine, FeedHealth(self.engine, self.now), {self.source: self.settings}, self, self.now
        )

    def put(self, name: str, *rows: str) -> None:
        (self.folder / "drop").mkdir(exist_ok=True)
        (self.folder / "drop" / name).write_text("\n".join([HEADER, *rows, ""]))

    def run(self) -> None:
        self.desk.run(once=True, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)

    def listed(self) -> dict[str, exc.Exception]:
        found = [one for one in self.client.list_exceptions() if one.source == self.source]
        return {f"{exc.ExceptionCategory.Name(one.category)[19:]}": one for one in found}


@pytest.fixture
def floor(tmp_path: Path, server: Server, names: Names) -> Iterator[Floor]:
    made = Floor(tmp_path, server, names)
    yield made
    made.engine.dispose()
    made.client.close()


def test_letters_are_told_when_they_are_many_or_old(floor: Floor) -> None:
    """Three of a category may wait a while; a fourth is an exception, or one that waits too long, until closed."""
    tea = floor.names.sku("tea")
    floor.put("a.csv", *(f"RECEIPT,{tea},n,1/{n}" for n in range(3)))
    floor.run()
    alarms = floor.alarms()
    alarms.look()
    assert floor.listed() == {}
    floor.late_s = 101
    alarms.look()
    (one,) = floor.listed().values()
    assert (one.category, one.quantity, one.owner) == (exc.EXCEPTION_CATEGORY_DEAD_LETTER, 3, "feeds")
    assert "3 dead letters" in one.message
    floor.desk.discard(floor.desk.letters.find(), "they were a test")
    alarms.look()
    assert floor.listed() == {}
    floor.late_s = 0
    floor.put("b.csv", *(f"RECEIPT,{tea},n,2/{n}" for n in range(4)))
    floor.run()
    alarms.look()
    assert floor.listed()["DEAD_LETTER"].quantity == 4


def test_unknown_skus_above_the_limit_are_one_exception(floor: Floor) -> None:
    """Two skus that the mapping does not know are letters; three are an exception, however many rows name them. An
    alias and what it means are known."""
    tea = floor.names.sku("tea")
    floor.put(
        "a.csv",
        f"RECEIPT,{tea},n,1",
        "RECEIPT,ALIAS,n,1",
        "RECEIPT,u1,n,1",
        "RECEIPT,u1,n,2",
        "RECEIPT,u2,n,1",
    )
    floor.run()
    alarms = floor.alarms()
    alarms.look()
    assert "UNKNOWN_SKU" not in floor.listed()
    assert {letter.reason for letter in floor.desk.letters.find()} == {"UNKNOWN_SKU"}
    floor.put("b.csv", "RECEIPT,u3,n,1")
    floor.run()
    alarms.look()
    assert floor.listed()["UNKNOWN_SKU"].quantity == 3


def test_what_is_over_ends_while_others_last(floor: Floor) -> None:
    """Letters of one category are closed: their exceptions end, another category's stays."""
    tea = floor.names.sku("tea")
    rows = [*(f"RECEIPT,{tea},n,1/{n}" for n in range(4)), *(f"RECEIPT,u{n},n,1" for n in range(4))]
    floor.put("a.csv", *rows)
    floor.run()
    alarms = floor.alarms()
    alarms.look()

    def open_ones() -> list[tuple[int, int]]:
        return sorted(
            (one.category, one.quantity)
            for one in floor.client.list_exceptions()
            if one.source == floor.source
        )

    letters, unknown = exc.EXCEPTION_CATEGORY_DEAD_LETTER, exc.EXCEPTION_CATEGORY_UNKNOWN_SKU
    assert open_ones() == [(letters, 4), (letters, 4), (unknown, 4)]
    floor.desk.discard(floor.desk.letters.find(category="MAPPING"), "they were a test")
    alarms.look()
    assert open_ones() == [(letters, 4)]


def test_a_refused_file_is_in_the_list_for_a_day(tmp_path: Path, server: Server, names: Names) -> None:
    """A file that is refused as a whole is told with its name and reason."""
    floor = Floor(tmp_path, server, names, all_or_nothing="true")
    floor.put("bad.csv", "RECEIPT,u1,n,1")
    floor.run()
    alarms = floor.alarms()
    alarms.look()
    one = floor.listed()["DEAD_LETTER"]
    assert "bad.csv" in one.message
    floor.late_s = REFUSED_FILES_S + 1
    floor.desk.discard(floor.desk.letters.find(), "a test")
    alarms.look()
    assert floor.listed() == {}
    floor.engine.dispose()
    floor.client.close()


class Fetches:
    """A feed that fails as it is told."""

    kind, interval_s, eager = "sftp", 0.0, False

    def __init__(self, source: str) -> None:
        self.source = source
        self.failing = True
        self.looked = threading.Semaphore(0)

    def fetch(self, *, once: bool) -> int:
        self.looked.release()
        if self.failing:
            raise FeedFailed("UNREACHABLE", "nobody answers at the warehouse")
        return 0


def test_a_failing_feed_is_in_status_metrics_and_exceptions(floor: Floor) -> None:
    """Since when and why it fails is noted with the first failure; after the set time it is an exception; it works
    again: all three say so."""
    feed = Fetches(floor.source)
    waits = threading.Semaphore(0)
    health = FeedHealth(floor.engine, floor.now)
    thread = FeedThread(
        feed, told=lambda _: None, health=health, rand=lambda: 0.0, waited=lambda _: waits.release()
    )
    try:
        assert waits.acquire(timeout=20)
        (state,) = floor.desk.operations.status(floor.settings).feeds
        assert (state.kind, state.reason, state.failures, state.worked_at) == ("sftp", "UNREACHABLE", 1, 0.0)
        alarms = floor.alarms()
        alarms.look()
        assert floor.listed() == {}
        floor.late_s = 61
        alarms.look()
        one = floor.listed()["FEED_FAILED"]
        assert one.severity == exc.EXCEPTION_SEVERITY_CRITICAL
        assert "nobody answers at the warehouse" in one.message
        metrics = IngestMetrics()
        metrics.watch(lambda: source_figures(floor.engine, {floor.source: None}, floor.now()))
        labels = {"source": floor.source, "kind": "sftp"}
        assert (
            metrics.registry.get_sample_value("availability_ingest_feed_failing_seconds", labels) or 0
        ) >= 61
        feed.failing = False
        assert waits.acquire(timeout=20)
        (state,) = floor.desk.operations.status(floor.settings).feeds
        assert (state.failing_since, state.reason) == (None, "")
        alarms.look()
        assert floor.listed() == {}
        assert b"feed_failing_seconds" in generate_latest(metrics.registry)
        assert metrics.registry.get_sample_value("availability_ingest_feed_failing_seconds", labels) == 0
    finally:
        thread.stop()
        thread.join(5.0)


def test_what_is_told_is_not_told_again_at_once(floor: Floor) -> None:
    """Nothing changed: told again after a minute only, so that a ledger that forgot it hears of it."""
    alarms = floor.alarms()
    alarms.look()
    alarms.look()
    assert floor.reports == [0]
    floor.late_s = TOLD_AGAIN_S
    alarms.look()
    assert floor.reports == [0, 0]


def test_a_ledger_that_is_away_is_told_later(floor: Floor) -> None:
    """A report that fails is made at the next look; a look at a database that is away raises nothing."""

    class Away:
        def __init__(self) -> None:
            self.calls = 0

        def report_exceptions(self, *_: object) -> object:
            self.calls += 1
            if self.calls == 1:
                raise ClientError("UNAVAILABLE", "LEDGER_UNREACHABLE", "away")
            return None

    away = Away()
    health = FeedHealth(floor.engine, floor.now)
    alarms = Alarms(floor.engine, health, {floor.source: floor.settings}, away, floor.now)
    alarms.look()
    alarms.look()
    alarms.look()
    assert away.calls == 2
    broken = sa.create_engine(f"sqlite:///{floor.folder}/{uuid.uuid4().hex}/none.db")
    Alarms(broken, FeedHealth(broken, floor.now), {floor.source: floor.settings}, away, floor.now).look()
    assert away.calls == 2


def test_a_folder_that_cannot_be_used_stops_no_other_source(floor: Floor) -> None:
    """One source's folder is gone: it is noted, and the other source's file goes in."""
    other = floor.names.id("other")
    text = (floor.folder / "source.toml").read_text().replace(floor.source, other)
    (floor.folder / "other.toml").write_text(text.replace('"drop"', '"other"'))
    desk = IngestDesk(read_sources(floor.folder), floor.engine, floor.client)
    other_drop = floor.folder / "other"
    told: list[str] = []

    def fails() -> bool:
        return any(one.source == floor.source and one.failing_since for one in desk.health.all())

    def stopped() -> bool:
        drop = floor.folder / "drop"
        if drop.exists():  # made at the start, gone now
            for path in (*drop.glob("*"), drop):
                path.rmdir()
        elif fails() and not list(other_drop.glob("*.csv")):
            (other_drop / "a.csv").write_text(
                f"{HEADER}\nRECEIPT,{floor.names.sku('tea')},{floor.names.node()},1\n"
            )
        return len(told) > 0

    desk.run(once=False, stopped=stopped, watch=lambda *_: None, told=told.append)
    assert "a.csv: DONE" in told[0]
    states = {(one.source, one.kind): one.reason for one in desk.health.all()}
    assert states[floor.source, "drop"] == "FOLDER_UNUSABLE"
