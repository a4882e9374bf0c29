"""Sources side by side: a long file of one keeps no other waiting, and what fails for one fails for it alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from availability.client import Client, ClientError
from ingest import carrying
from ingest.app import IngestDesk
from ingest.database import open_database
from ingest.formats import line_blocks
from ingest.pipeline import Pipeline
from ingest.runs import Outcome, Progress
from ingest.settings import read_sources
from tests.conftest import Names, Server
from tests.ingest_lab import plain_source

HEADER = "type,sku,node,quantity"
WAIT_S = 30.0


class Yard:
    """Several sources over one database, and a desk that carries them."""

    def __init__(self, folder: Path, server: Server, names: Names, sources: tuple[str, ...]) -> None:
        self.names, self._folder = names, folder
        self.client = Client(server.grpc)
        self.engine = open_database(str(folder / "ingest.db"))
        self.by_name = {name: names.id(name) for name in sources}
        for name, source in self.by_name.items():
            (folder / name).mkdir()
            (folder / f"{name}.toml").write_text(
                plain_source(source, top="batch_deltas = 10\nunacked_batches = 2", folder=name)
            )
        self.desk = IngestDesk(read_sources(folder), self.engine, self.client)
        self.told: list[str] = []
        self.over = threading.Event()

    def write(self, name: str, file: str, rows: int, sku: str = "tea") -> None:
        line = f"RECEIPT,{self.names.sku(sku)},{self.names.node('east')},1"
        path = self._folder / name / f"{file}.tmp"
        path.write_text("\n".join((HEADER, *[line] * rows, "")))
        path.rename(path.with_suffix(".csv"))

    def files(self) -> list[str]:
        """Files that were carried, in order."""
        return [line.split(": ")[1].removesuffix(".csv") for line in self.told]


@pytest.fixture
def yard(tmp_path: Path, server: Server, names: Names) -> Iterator[Yard]:
    made = Yard(tmp_path, server, names, ("erp", "hooks", "third"))
    yield made
    made.client.close()


def test_a_long_file_keeps_no_other_source_waiting(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that comes while a file goes in is in before its end; the file holds no more than its few batches."""
    monkeypatch.setattr(line_blocks, "BLOCK_BYTES", 1_024)
    hooks_in = threading.Event()
    most_ahead = 0

    def watch(source: str, progress: Progress) -> None:
        nonlocal most_ahead
        if source != yard.by_name["erp"]:
            return
        most_ahead = max(most_ahead, progress.rows - progress.applied)
        if progress.applied == 50:  # in its midst: its next ack is not taken before the event is in
            yard.write("hooks", "event", 1)
            assert hooks_in.wait(WAIT_S), "the event waits for the long file"

    def told(line: str) -> None:
        yard.told.append(line)
        if yard.by_name["hooks"] in line:
            hooks_in.set()

    yard.write("erp", "long", 500)
    yard.desk.run(once=False, stopped=lambda: len(yard.told) == 2, watch=watch, told=told)
    assert yard.files() == ["event", "long"]
    assert [line.partition(": DONE: ")[2] for line in yard.told] == ["1 applied", "500 applied"]
    assert most_ahead <= 100, "two batches on their way, one in hand, and a block"


def test_no_more_sources_than_there_are_slots(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way is bounded however many sources have files; each has its turn, its own files in order."""
    monkeypatch.setattr(carrying, "SOURCES_AT_ONCE", 2)
    for name in yard.by_name:
        for number in range(3):
            yard.write(name, f"{name}{number}", 30)
            time.sleep(0.01)  # files are ordered by their times
    under_way: set[str] = set()
    most = 0

    def watch(source: str, progress: Progress) -> None:
        nonlocal most
        under_way.discard(source) if progress.applied == 30 else under_way.add(source)
        most = max(most, len(under_way))

    yard.desk.run(once=False, stopped=lambda: len(yard.told) == 9, watch=watch, told=yard.told.append)
    assert most <= 2
    for name in yard.by_name:
        assert [file for file in yard.files() if file.startswith(name)] == [f"{name}{n}" for n in range(3)]


def test_what_people_have_to_mend_ends_the_run(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may not is raised, from whichever source's thread; nobody's file is put away for it."""

    def refuse(*_: object, **__: object) -> None:
        raise ClientError("PERMISSION_DENIED", "PERMISSION_DENIED", "not yours")

    pipeline = yard.desk.pipeline

    def of(source: str) -> Pipeline:
        made = pipeline(source)
        if source == yard.by_name["third"]:
            monkeypatch.setattr(made, "carry", refuse)
        return made

    monkeypatch.setattr(yard.desk, "pipeline", of)
    yard.write("third", "refused", 1)
    with pytest.raises(ClientError, match="not yours"):
        yard.desk.run(once=False, stopped=lambda: False, watch=lambda *_: None, told=yard.told.append)
    assert (yard._folder / "third" / "refused.csv").exists()


def test_who_hears_the_ledger_again_wakes_the_others(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One source sits out a long pause; another's file goes in, and the first tries again at once."""
    monkeypatch.setattr(carrying, "OUTAGE_PAUSE_S", 60.0)
    pipeline, away = yard.desk.pipeline, list[bool]()
    monkeypatch.setattr(yard.desk.metrics, "ledger_away", away.append)

    def once_away(source: str) -> Pipeline:
        made = pipeline(source)
        carry = made.carry

        def tried(*arguments: object, **named: object) -> object:
            if True not in away:
                raise ClientError("UNAVAILABLE", "LEDGER_UNREACHABLE", "away")
            return carry(*arguments, **named)  # type: ignore[arg-type]  # handed through

        if source == yard.by_name["erp"]:
            made.carry = tried  # type: ignore[method-assign,assignment]
        return made

    monkeypatch.setattr(yard.desk, "pipeline", once_away)
    yard.write("erp", "late", 1)
    began, written = time.monotonic(), list[bool]()

    def stopped() -> bool:
        if True in away and not written:
            written.append(True)
            yard.write("hooks", "other", 1)
        return len(yard.told) == 2 or time.monotonic() - began > 50

    yard.desk.run(once=False, stopped=stopped, watch=lambda *_: None, told=yard.told.append)
    assert sorted(yard.files()) == ["late", "other"]


def test_who_finds_the_ledger_away_waits_alone(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One source's calls fail twice: the metric says so meanwhile, other sources go on, and it catches up by itself."""
    monkeypatch.setattr(carrying, "OUTAGE_PAUSE_S", 0.05)
    failures = [2]
    pipeline = yard.desk.pipeline
    away: list[bool] = []
    monkeypatch.setattr(yard.desk.metrics, "ledger_away", away.append)

    def flaky(source: str) -> object:
        made = pipeline(source)
        carry = made.carry

        def tried(*arguments: object, **named: object) -> object:
            if failures[0]:
                failures[0] -= 1
                raise ClientError("UNAVAILABLE", "LEDGER_UNREACHABLE", "away")
            return carry(*arguments, **named)  # type: ignore[arg-type]  # handed through

        if source == yard.by_name["erp"]:
            made.carry = tried  # type: ignore[method-assign,assignment]
        return made

    monkeypatch.setattr(yard.desk, "pipeline", flaky)
    yard.write("erp", "late", 1)
    yard.write("hooks", "other", 1)
    yard.desk.run(
        once=False, stopped=lambda: len(yard.told) == 2, watch=lambda *_: None, told=yard.told.append
    )
    assert sorted(yard.files()) == ["late", "other"]
    assert True in away
    assert away[-1] is False


def test_names_that_are_no_text_are_told_as_text(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads what is told, logged and kept of a file can print it; one that cannot be read is told so too."""
    yard.write("erp", os.fsdecode(b"m\xfcnchen"), 1)
    yard.write("hooks", os.fsdecode(b"k\xf6ln"), 1)
    pipeline, hooks = yard.desk.pipeline, yard.by_name["hooks"]

    def broken(path: Path, **_: object) -> Outcome:
        raise PermissionError(13, "Permission denied", str(path))

    def of(source: str) -> Pipeline:
        made = pipeline(source)
        if source == hooks:
            monkeypatch.setattr(made, "carry", broken)
        return made

    monkeypatch.setattr(yard.desk, "pipeline", of)

    def failing() -> list[str]:
        return [one.message for one in yard.desk.health.all(hooks) if one.failing_since is not None]

    until = time.monotonic() + WAIT_S
    yard.desk.run(
        once=False,
        stopped=lambda: bool(yard.told and failing()) or time.monotonic() > until,
        watch=lambda *_: None,
        told=yard.told.append,
    )
    (line,), (message,) = yard.told, failing()
    assert "m\\xfcnchen.csv: DONE" in line
    assert "k\\xf6ln.csv" in message
