"""Entries of a Redis stream, each once: over restarts, trimmed streams, payloads that are none, a full folder."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from availability.client import Client
from availability.ledger.embedded import EmbeddedRedis
from ingest.app import IngestDesk
from ingest.database import open_database
from ingest.settings import SettingsRefused, read_source, read_sources
from ingest.sources.feed import FeedFailed
from ingest.sources.redis_stream import BEGINNING, RedisStreamFeed
from tests.conftest import Names, Server
from tests.ingest_lab import carry_ready, killed_in, on_hand

SOURCE = """
source = "{source}"

[format]
kind = "json_lines"

[mapping]
version = "1"
author = "ingest"

[mapping.columns]
type = "type"
sku = "sku"
quantity = "quantity"

[mapping.constants]
node = "{node}"

[drop]
folder = "drop"

[redis_stream]
url = "{url}"
stream = "stock"
entries_max = 10
interval_ms = 10
{more}
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    yield embedded
    embedded.stop()


class Bench:
    """A source, its stream and its desk; ``feed()`` is a fresh start."""

    def __init__(self, folder: Path, store: EmbeddedRedis, server: Server, names: Names, more: str) -> None:
        self.source, self.node, self.sku = names.id("erp"), names.id("east"), names.sku("tea")
        text = SOURCE.format(source=self.source, node=self.node, url=store.url, more=more)
        (folder / "erp.toml").write_text(text)
        self.redis = redis.Redis.from_url(store.url)
        self.client = Client(server.grpc)
        self.engine = open_database(str(folder / "ingest.db"))
        self.desk = IngestDesk(read_sources(folder), self.engine, self.client)
        self.drop = folder / "drop"

    def feed(self) -> RedisStreamFeed:
        (feed,) = self.desk.feeds()
        assert isinstance(feed, RedisStreamFeed)
        return feed

    def add(self, quantity: object) -> str:
        entry_id = self.redis.xadd("stock", {"type": "RECEIPT", "sku": self.sku, "quantity": str(quantity)})
        return entry_id.decode() if isinstance(entry_id, bytes) else str(entry_id)

    def carry(self) -> int:
        return carry_ready(self.desk, self.source)

    def on_hand(self) -> int:
        return on_hand(self.client, self.source, self.sku, self.node)


@pytest.fixture
def make(
    tmp_path: Path, store: EmbeddedRedis, server: Server, names: Names
) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(more: str = "") -> Bench:
        made.append(Bench(tmp_path, store, server, names, more))
        return made[-1]

    yield bench
    for one in made:
        one.client.close()
        one.redis.close()


def test_entries_go_in_and_the_place_moves_after_the_ack(make: Callable[..., Bench]) -> None:
    """Written is not settled: the place counts only once the ledger has the entries, in chunks of ten."""
    bench = make()
    ids = [bench.add(n) for n in range(1, 26)]
    feed = bench.feed()
    assert feed.fetch(once=True) == 3
    assert feed.settled == BEGINNING
    assert bench.carry() == 3
    assert feed.settled == ids[-1]
    assert bench.on_hand() == sum(range(1, 26))
    assert bench.feed().fetch(once=True) == 0
    bench.add(5)
    assert bench.feed().fetch(once=True) == 1
    bench.carry()
    assert bench.on_hand() == sum(range(1, 26)) + 5


@pytest.mark.parametrize("dies_in", ["_write", "_publish", "put"])
def test_killed_around_the_commit_nothing_is_lost_or_doubled(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    """Before the note the chunk is read again; after it, it gets its name at the next start."""
    bench = make()
    for n in range(1, 16):
        bench.add(n)
    feed = bench.feed()
    with killed_in(monkeypatch, feed._chunks, dies_in):
        feed.fetch(once=True)
    assert bench.carry() == 0
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == sum(range(1, 16))
    assert all(run.repeated == 0 for run in bench.desk.runs(10))


def test_a_drop_folder_that_is_lost_is_read_again(make: Callable[..., Bench]) -> None:
    """The stream still has what was written and never carried."""
    bench = make()
    for n in range(1, 16):
        bench.add(n)
    bench.feed().fetch(once=True)
    for path in bench.drop.glob("*.jsonl"):
        path.unlink()
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == sum(range(1, 16))


def test_json_payloads_and_what_is_none(make: Callable[..., Bench]) -> None:
    """An object goes in under its entry's id, whatever it calls itself; anything else is one dead letter each."""
    bench = make('json_field = "event"')
    good = {"type": "RECEIPT", "sku": bench.sku, "quantity": 3, "_entry_id": "mine"}
    bad = [b"{", b"[1]", b"", b"\xff", b"{}"]
    for payload in (json.dumps(good, indent=1).encode(), json.dumps(good).encode(), *bad):
        bench.redis.xadd("stock", {"event": payload})
    bench.redis.xadd("stock", {"other": "1"})
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == 6
    letters = bench.desk.letters.find()
    assert len(letters) == len(bad) + 1
    assert {letter.reason for letter in letters} == {"MALFORMED_ROW", "MOVEMENT_CODE"}


def test_a_letter_is_replayed_under_its_entry(make: Callable[..., Bench]) -> None:
    """Once its mapping is mended: an effect, however often, and the entry itself adds none."""
    bench = make()
    bench.redis.xadd("stock", {"type": "101", "sku": bench.sku, "quantity": "4"})
    bench.feed().fetch(once=True)
    bench.carry()
    mended = bench.drop.parent / "erp.toml"
    mended.write_text(mended.read_text() + '[mapping.movements]\n"101" = { type = "RECEIPT" }\n')
    desk = IngestDesk(read_sources(mended.parent), bench.engine, bench.client)
    letters = desk.letters.find()
    assert desk.replay(letters).applied == 1
    again = desk.replay(letters)
    assert (again.applied, again.repeated, bench.on_hand()) == (0, 1, 4)


def test_what_was_trimmed_unread_is_a_dead_letter(make: Callable[..., Bench]) -> None:
    """Once; and what is left goes on."""
    bench = make()
    bench.add(1)
    feed = bench.feed()
    feed.fetch(once=True)
    for n in range(5):
        bench.add(n + 10)
    bench.redis.xtrim("stock", maxlen=2, approximate=False)
    feed.fetch(once=True)
    bench.feed().fetch(once=True)
    bench.carry()
    assert bench.on_hand() == 1 + 13 + 14
    (letter,) = bench.desk.letters.find()
    assert (letter.reason, letter.category, letter.count) == ("ENTRIES_TRIMMED", "SEQUENCE_GAP", 1)
    assert letter.message.startswith("3 entries")


def test_another_stream_of_the_name_is_refused(make: Callable[..., Bench]) -> None:
    """Ids that begin anew would be passed over in silence."""
    bench = make()
    bench.add(1)
    bench.feed().fetch(once=True)
    bench.redis.delete("stock")
    with pytest.raises(FeedFailed) as gone:
        bench.feed().fetch(once=True)
    bench.redis.xadd("stock", {"type": "RECEIPT"}, id="1-1")
    with pytest.raises(FeedFailed) as anew:
        bench.feed().fetch(once=True)
    bench.redis.delete("stock")
    bench.redis.set("stock", "text")
    with pytest.raises(FeedFailed) as other:
        bench.feed().fetch(once=True)
    assert [one.value.reason for one in (gone, anew, other)] == [
        "STREAM_GONE",
        "STREAM_BEGAN_ANEW",
        "NO_STREAM",
    ]


def test_a_full_folder_slows_the_stream(make: Callable[..., Bench]) -> None:
    """What waits for the ledger is bounded; the rest waits in Redis."""
    bench = make("waiting_bytes_max = 1500")
    for n in range(1, 101):
        bench.add(n)
    feed = bench.feed()
    assert 0 < feed.fetch(once=True) < 5
    while bench.carry():
        feed.fetch(once=True)
    assert bench.on_hand() == 5050


def test_a_redis_that_is_away_is_told_without_secrets(tmp_path: Path, make: Callable[..., Bench]) -> None:
    """Also one that does not let us in; and the next try works."""
    (tmp_path / "password").write_text("hunter2hunter2\n")
    bench = make('password_file = "password"')
    bench.add(1)
    bench.redis.config_set("requirepass", "another")
    with pytest.raises(FeedFailed) as refused:
        bench.feed().fetch(once=True)
    assert refused.value.reason == "AUTHENTICATION"
    assert "hunter2" not in f"{refused.value}{refused.value.__cause__}"
    bench.redis.config_set("requirepass", "hunter2hunter2")
    assert bench.feed().fetch(once=True) == 1
    bench.redis.config_set("requirepass", "")


def test_a_password_in_the_address_is_refused(tmp_path: Path) -> None:
    """It belongs into a file; so does a folder for the entries into the settings."""
    text = SOURCE.format(source="s", node="n", url="redis://:secret@host", more="")
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SettingsRefused, match="password_file") as refused:
        read_source(tmp_path / "s.toml")
    assert ":secret@" not in str(refused.value)


def test_killed_at_random_moments_under_load(make: Callable[..., Bench], server: Server) -> None:
    """kill -9 of the whole command, again and again while entries arrive: every unit once."""
    bench = make()
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    command = [sys.executable, "-m", "availability", "ingest", "run", "--target", server.grpc]
    command += ["--sources", str(bench.drop.parent), "--database", str(bench.drop.parent / "ingest.db")]
    total = 0
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 1.5 + 2 * chance.random()
        while time.monotonic() < until:
            for _ in range(20):
                total += 1
                bench.add(1)
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--once"], check=True, timeout=60, capture_output=True)
    bench.carry()
    assert bench.on_hand() == total
