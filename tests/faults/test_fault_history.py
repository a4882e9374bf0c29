"""PostgreSQL away, historians killed: the journal is the log, and the ledger stays bounded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.domain.version import Version
from availability.history.database import HistoryError, open_database, reading
from availability.history.journal import START
from availability.history.past import Past
from availability.history.prove import prove
from availability.history.seal import Sealer
from availability.history.tables import historian, journal, packed, unpacked
from availability.ledger.embedded import EmbeddedRedis
from availability.ledger.record import Entry
from tests.faults.lab import BASE, Lab, deadline, delta, poll
from tests.postgres import Postgres, running

START_UNITS = 9
CAP = 1_500
KEPT = 200
RSS_GROWTH_MAX_KB = 40_000
PATIENCE_S = 90.0
# As in production: what is committed survives a crash of the server.
DURABLE = ("fsync=off", "max_connections=20", "shared_buffers=32MB", "listen_addresses=")


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the test may stop."""
    with running(DURABLE) as server:
        yield server


@contextlib.contextmanager
def historian_process(redis_url: str, database_url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `availability historian run` as its own process; kill it afterwards."""
    environment = {
        **os.environ,
        "AVAIL_HISTORY__DATABASE_URL": database_url,
        "AVAIL_HISTORY__CHECKPOINT_MS": "50",
        "AVAIL_REDIS__SOCKET_TIMEOUT_MS": "20000",
    }
    command = [sys.executable, "-m", "availability", "historian", "run", "--redis", redis_url]
    with (folder / "historian.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder)], stdout=log, stderr=log, env=environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Writer:
    """Changes of all kinds, as they come."""

    def __init__(self, lab: Lab, random: Random) -> None:
        self._lab = lab
        self._random = random
        self._number = 0
        self.versions: list[tuple[Version, int]] = []
        """(version, on_hand of sku a at n1 then)."""

    def write(self, count: int) -> None:
        for _ in range(count):
            self._number += 1
            self._lab.receive("a", "n1", 1)
            self.versions.append((self._lab.ledger.head().version, START_UNITS + self._number))
            if self._random.random() < 0.2:
                self._lab.reserve(f"hold {self._number}", [("a", 1)])


def place(engine: Engine) -> Version:
    """Return how far the journal has come."""
    try:
        with reading(engine) as connection:
            return unpacked(connection.scalar(sa.select(historian.c.version)) or packed(START))
    except HistoryError:
        return START


def log_of(lab: Lab) -> list[Entry]:
    found: list[Entry] = []
    while entries := lab.ledger.read(found[-1].version if found else Version(0, 0), 10_000, 0):
        found += entries
    return found


def journal_of(engine: Engine) -> list[Entry]:
    with reading(engine) as connection:
        rows = connection.execute(sa.select(journal).order_by(journal.c.version)).all()
    return [Entry(unpacked(row.version), row.chain, bytes(row.raw)) for row in rows]


def rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_historians_that_are_killed_write_the_log_once(
    make_lab: Callable[..., Lab],
    redis_server: EmbeddedRedis,
    own_postgres: Postgres,
    tmp_path: Path,
    seed: int,
    full: bool,
) -> None:
    """Killed at any moment, PostgreSQL crashing in between: every record once, in order, and proved."""
    random = Random(seed)
    lab = make_lab()
    lab.receive("a", "n1", START_UNITS)
    database_url = own_postgres.url(own_postgres.new_database())
    engine = open_database(database_url, tmp_path)
    writer = Writer(lab, random)
    kills = 20 if full else 3
    for number in range(kills):
        before = place(engine)
        with historian_process(redis_server.url, database_url, tmp_path) as process:
            writer.write(150)
            poll(lambda: place(engine) > before, "the historian writes", within_s=PATIENCE_S)  # noqa: B023
            writer.write(random.randrange(30))
            if number == kills // 2:
                own_postgres.stop()
                writer.write(150)
                own_postgres.start()
                caught_up(lab, engine)
                writer.write(random.randrange(30))
            process.kill()
    with historian_process(redis_server.url, database_url, tmp_path):
        caught_up(lab, engine)
    assert journal_of(engine) == log_of(lab)
    assert [str(one) for one in prove(engine, Sealer()).findings] == []
    past = Past(engine)
    for version, on_hand in random.sample(writer.versions, 20):
        (node,) = past.explain("web", "a", version).terms.nodes
        assert node.on_hand == on_hand
    engine.dispose()


def test_while_postgresql_is_away_log_and_memory_are_bounded(
    make_lab: Callable[..., Lab],
    redis_server: EmbeddedRedis,
    own_postgres: Postgres,
    tmp_path: Path,
    seed: int,
    full: bool,
) -> None:
    """The log waits in Redis up to its cap, then new holds are refused and facts go on; afterwards all is caught up."""
    lab = make_lab(log_records_kept=KEPT, log_records_cap=CAP)
    lab.receive("a", "n1", START_UNITS)
    database_url = own_postgres.url(own_postgres.new_database())
    engine = open_database(database_url, tmp_path)
    writer = Writer(lab, Random(seed))
    with historian_process(redis_server.url, database_url, tmp_path) as process:
        writer.write(50)
        caught_up(lab, engine)
        before_kb = rss_kb(process.pid)
        own_postgres.stop()
        for _ in range(40 if full else 2):
            writer.write(CAP // 2)
            lab.ledger.trim(deadline())
        assert lab.redis.xlen(BASE + "log") >= CAP
        assert lab.reserve("while away", [("a", 1)]).status == "LOG_FULL"
        assert lab.results(delta("RECEIPT", "a", "n1", 1)) == ["APPLIED"]
        assert rss_kb(process.pid) - before_kb < RSS_GROWTH_MAX_KB
        own_postgres.start()
        caught_up(lab, engine)
        assert rss_kb(process.pid) - before_kb < RSS_GROWTH_MAX_KB
        poll(
            lambda: not lab.ledger.trim(deadline()).full and lab.redis.xlen(BASE + "log") < CAP // 2,
            "the log is trimmed again",
            within_s=PATIENCE_S,
        )
        assert lab.reserve("afterwards", [("a", 1)]).status == "RESERVED"
        caught_up(lab, engine)
    ours = journal_of(engine)
    assert [entry.version for entry in ours] == [Version(1, seq) for seq in range(1, len(ours) + 1)]
    left = log_of(lab)
    assert ours[-len(left) :] == left
    assert prove(engine, Sealer()).count == 0
    engine.dispose()


def caught_up(lab: Lab, engine: Engine) -> None:
    head = lab.ledger.head().version
    poll(lambda: place(engine) >= head, "everything is written", within_s=PATIENCE_S)
