"""A shop's day, compressed: sales, merchants, the warehouse, the shop's failures, and a publisher that is killed.

Two hours of a busy shop happen in a minute or two with --full, some twenty minutes of them otherwise; the shops, the
ledger and the publisher's process are real, and so are their clocks. At quiet each shop shows the ledger's number of
every sku, and the ledger's is that of an independent count.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from availability.client import Client, ClientError
from availability.history.database import SQLITE_FILE, open_database
from publisher.orders.book import OrderBook
from publisher.testing.keys import ApiKey
from publisher.testing.latency import Latency
from publisher.testing.server import serve
from publisher.testing.shop import Shop
from tests.conftest import Names, Server
from tests.day_books import Books, Cause
from tests.day_shops import Day, Side, open_ledger, stock

KEY, SECRET, HOOK_SECRET = "ck_day", "cs_day", "a secret of sixteen bytes and more"
SKUS, SECONDS, EVENTS_PER_S, KILLS = 24, 8.0, 14.0, 1
SKUS_FULL, SECONDS_FULL, EVENTS_PER_S_FULL, KILLS_FULL = 120, 240.0, 25.0, 12
"""The full day is two busy hours of some 1,500 events each, in four minutes; the short one is a part of it."""
MIRROR_SHARE_MAX = 0.02
"""Of the units that a Mirror shop sells, so many at most may go in the window between reading and writing."""
STALE_MAX = 3
"""Writes above the truth that a short day may have: the window's. A Mirror that folds no orders has more."""
QUIET_S = 90.0
AGE_MAX_S = 45.0
"""No shopper is sold what went so long ago: kills, pauses of an open breaker and time-outs together take less."""
SHOP = """
[shops."{channel}"]
url = "{url}"
key = {{ env = "SHOP_KEY" }}
secret = {{ env = "SHOP_SECRET" }}
mode = "{mode}"
timeout_ms = 4000
orphan_ms = 1000
recheck_ms = 1500
verify_ms = 5000
zero_guard_percent = 100
[shops."{channel}".pace]
retry_ms = 50
retry_ms_max = 1000
open_ms = 100
open_ms_max = 1000
attempts_max = 1000
items_per_s_max = 10000
[shops."{channel}".orders]
poll_ms = 400
overlap_s = 5
check_ms = 3000
settle_ms = 500
[shops."{channel}".orders.webhooks]
public_url = "http://127.0.0.1:{port}"
secret = {{ env = "HOOK_SECRET" }}
check_ms = 1000
"""


@dataclass(slots=True)
class Publisher:
    """The publisher's process: started, killed, started again."""

    folder: Path
    server: Server
    port: int
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start it, or start it again."""
        secrets = {"SHOP_KEY": KEY, "SHOP_SECRET": SECRET, "HOOK_SECRET": HOOK_SECRET}
        with (self.folder / "publisher.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "availability", "publish", "run"),
                    *("--shops", str(self.folder / "shops.toml"), "--data-dir", str(self.folder / "data")),
                    *("--listen", f"127.0.0.1:{self.port}"),
                ],
                env={**os.environ, "AVAIL_TARGET": self.server.grpc, **secrets},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self.process is not None
        assert self.process.poll() is None, self.last_words()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1

    def last_words(self) -> str:
        """Return the end of its log."""
        return (self.folder / "publisher.log").read_text(errors="replace")[-4_000:]


@contextmanager
def shops(names: Names, rng: random.Random, skus: int) -> Iterator[list[Side]]:
    """Run two doubles, one that counts its own sales and one that leaves it to the ledger."""
    with ExitStack() as stack:
        sides = []
        for owner in (False, True):
            shop = Shop(clock=time.time, keys={KEY: ApiKey(secret=SECRET)})
            shop.settings.reduces_stock = not owner
            front = stack.enter_context(serve(shop, latency=Latency(factor=0.1)))
            side = Side(
                channel=names.channel("owner" if owner else "mirror"),
                node=names.node("owner's hall" if owner else "mirror's hall"),
                front=front,
                owner=owner,
            )
            stock(side, skus, rng)
            sides.append(side)
        yield sides


def free_port() -> int:
    """Return a port that nobody listens on now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.timeout(900)
def test_a_shop_s_day_ends_with_the_ledger_s_numbers(
    tmp_path: Path, server: Server, names: Names, seed: int, full: bool
) -> None:
    """Shop = ledger = books for every sku; Owner sold nothing that was not there, Mirror explains what it did."""
    rng = random.Random(seed)
    publisher = Publisher(tmp_path, server, free_port())
    seconds, kills = (SECONDS_FULL, KILLS_FULL) if full else (SECONDS, KILLS)
    with Client(server.grpc) as client, shops(names, rng, SKUS_FULL if full else SKUS) as sides:
        (tmp_path / "data").mkdir()
        (tmp_path / "shops.toml").write_text(
            "".join(
                SHOP.format(
                    channel=side.channel,
                    url=side.front.url,
                    mode="OWNER" if side.owner else "MIRROR",
                    port=publisher.port,
                )
                for side in sides
            )
        )
        for side in sides:
            open_ledger(client, side)
            side.watch()
        publisher.start()
        try:
            await_orders_read(tmp_path / "data", sides, publisher)
            for side in sides:
                settle(client, side, publisher)
            day = Day(client, sides, rng)
            due = sorted(rng.uniform(0.1, 0.9) for _ in range(kills))

            def killing(passed: float) -> None:
                while due and passed >= due[0]:
                    due.pop(0)
                    publisher.kill()
                    publisher.start()

            day.run(seconds, events_per_s=EVENTS_PER_S_FULL if full else EVENTS_PER_S, between=killing)
            day.quiet()
            for side in sides:
                settle(client, side, publisher)
        finally:
            if publisher.process is not None:
                publisher.process.kill()
                publisher.process.wait()
        report(day, sides, publisher)
        mirror, owner = sides
        assert publisher.kills == kills
        assert not owner.books.oversold, owner.books.told()
        assert all(one.cause is not Cause.UNEXPLAINED for one in mirror.books.oversold), mirror.books.told()
        assert all(one.age_s < AGE_MAX_S for one in mirror.books.oversold), mirror.books.told()
        for side in sides:
            assert not side.front.shop.overlaps, side.front.shop.overlaps[:5]
        missing = sum(one.units for one in mirror.books.oversold)
        assert missing <= max(2, MIRROR_SHARE_MAX * mirror.books.units_sold), mirror.books.told()
        stale = mirror.books.writes_above
        assert stale <= max(STALE_MAX, MIRROR_SHARE_MAX * mirror.books.units_sold), (
            f"{stale} writes over sales"
        )
        acts = ("sale", "delta", "order cancelled", "shipment", "webhooks delivered")
        assert all(day.happened[act] for act in (acts if full else acts[:2])), day.happened


def await_orders_read(data: Path, sides: list[Side], publisher: Publisher) -> None:
    """Wait until the publisher has read each shop's orders once: what was cancelled before that is not its business."""
    deadline = time.monotonic() + QUIET_S
    engine: Engine | None = None
    try:
        while True:
            assert time.monotonic() < deadline, publisher.last_words()
            time.sleep(0.2)
            if engine is None and (data / SQLITE_FILE).exists():
                engine = open_database("", data)
            if engine is not None and all(OrderBook(engine, side.channel).place() for side in sides):
                return
    finally:
        if engine is not None:
            engine.dispose()


def settle(client: Client, side: Side, publisher: Publisher) -> None:
    """Wait until shop, ledger and books agree on every sku, for a while and not by chance."""
    deadline = time.monotonic() + QUIET_S
    agreed = 0
    while agreed < 3:
        different = differences(client, side)
        agreed = 0 if different else agreed + 1
        if different and time.monotonic() > deadline:
            orders = "\n".join(orders_apart(client, side))
            pytest.fail(
                f"{side.channel}: {different[:8]} of {len(different)}\n{orders}\n{publisher.last_words()}"
            )
        time.sleep(0.3)


def differences(client: Client, side: Side) -> list[str]:
    """Return the skus whose numbers differ, with the three numbers."""
    ledger = client.batch_get(side.channel, side.skus, strong=True).sellable_quantities
    with side.front.shop.lock:
        return [
            f"{sku}: shop {side.front.shop.stock(sku)}, ledger {units}, books {side.books.expected(sku)}"
            for sku, units in zip(side.skus, ledger, strict=True)
            if not (side.front.shop.stock(sku) == units == side.books.expected(sku))
        ]


def orders_apart(client: Client, side: Side) -> list[str]:
    """Return the orders that the ledger and the books count differently."""
    found = []
    for order in list(side.front.shop.orders.values()):
        lines = [(str(line.sku), f"line {line.id}") for line in order.lines]
        books = {sku: side.books[sku].wanted.get(name, [0, 0]) for sku, name in lines}
        try:
            told = client.get_order(side.channel, str(order.id))
        except ClientError as error:
            if any(ordered for ordered, _ in books.values()):
                found.append(f"order {order.id} {order.status}: books {books}, ledger {error.reason}")
            continue
        committed = Counter[str]()
        for line in told.lines:
            committed[line.sku] += sum(node.committed for node in line.nodes)
        wanted = Counter({sku: max(0, ordered - shipped) for sku, (ordered, shipped) in books.items()})
        if +committed != +wanted or told.holds:
            found.append(f"order {order.id} {order.status}: books {books}, ledger {told}")
    return found[:10]


def report(day: Day, sides: list[Side], publisher: Publisher) -> None:
    """Print what the day was made of; pytest shows it with -s and after a failure."""
    print(f"{sum(day.happened.values())} events: {dict(day.happened)}; {publisher.kills} kills")
    for side in sides:
        calls = Counter(f"{one.method} {one.status}" for one in side.front.shop.log)
        print(
            f"{side.channel}: {dict(calls)}; {side.books.told()}; {side.books.writes_above} writes above the truth"
        )


def test_the_books_count_and_explain() -> None:
    """A sale out of units that a stale write brought back is oversold and names the write; one within is not."""
    books = Books()
    books.opened("a", 5)
    assert books.sold(1.0, "a", "1", 3) == 0
    books.shows("a", 5, written=True)
    assert books.sold(2.0, "a", "2", 3) == 1
    assert [(one.units, one.cause, one.age_s) for one in books.oversold] == [(1, Cause.RACE, 1.0)]
    books.shows("a", 0, written=True)
    books.received(3.0, "a", -1)
    assert (books.true("a"), books.expected("a")) == (-2, 0)
    assert books.sold(4.5, "a", "3", 1) == 1
    assert (books.oversold[-1].cause, books.oversold[-1].age_s) == (Cause.LAG, 1.5)
    books.received(5.0, "a", 10)
    books.shipped("a", "1", 3)
    assert books.true("a") == 7
    books.ordered(6.0, "a", "2", 0)
    assert books.true("a") == 10
    other = Books()
    other.opened("b", 0)
    other.shows("b", 9, written=True)
    assert other.sold(1.0, "b", "1", 2) == 2
    assert other.oversold[0].cause is Cause.UNEXPLAINED
