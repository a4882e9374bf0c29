"""Mirror mode against the double: the shop sells by itself all the time, and the numbers stay right."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from availability.client import ClientError
from availability.v1 import stock_pb2 as pb
from publisher.mirror import SecondLooks, mirror_rule
from publisher.orders.book import OrderBook
from publisher.orders.facts import Rules
from publisher.orders.intake import OrderIntake
from publisher.orders.ledger import Heard
from publisher.orders.poller import OrderPoller
from publisher.settings import OrdersSettings
from publisher.shop_publisher import Parts
from publisher.testing.checkout import buy
from publisher.testing.faults import Fault, Kind
from publisher.testing.latency import Latency, Machine
from publisher.testing.order_state import Order
from publisher.testing.orders import delete_order, refund_order, set_status
from publisher.testing.server import Storefront as Double
from publisher.testing.shop import Shop
from publisher.testing.stock import Product
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.orders import WooOrders
from publisher.woocommerce.stock import WooStock
from tests.publishing import CHANNEL, KEYS, FakeLedger, Running, double_shop, publisher_of, shop_settings
from tests.shop_lab import DoubleTransport, PatientTransport, PlainLedger, open_copy

URL = "https://shop.example.test"


@dataclass(slots=True)
class MirrorLedger(PlainLedger):
    """Order facts and stock, told to the publisher's feed as sellables. Sales of other channels are ``elsewhere``."""

    feed: FakeLedger = field(default_factory=FakeLedger)
    elsewhere: dict[str, int] = field(default_factory=dict)

    def tell(self, words: Sequence[pb.Delta]) -> Heard:
        """Take words; what they move is a version of the feed."""
        heard = PlainLedger.tell(self, words)
        self.say(*{word.sku for word in words if word.sku} or self.stock)
        return Heard(version=f"1-{self.feed.version}", refused=heard.refused)

    def say(self, *skus: str) -> None:
        """Tell the feed what is left of skus."""
        self.feed.tell({sku: self.left(sku) for sku in skus})

    def left(self, sku: str) -> int:
        """Return what this channel can sell."""
        return max(0, self.stock.get(sku, 0) - self.ordered(sku) - self.elsewhere.get(sku, 0))

    def receive(self, sku: str, units: int) -> None:
        """Units come in."""
        self.stock[sku] = self.stock.get(sku, 0) + units
        self.say(sku)

    def sell_elsewhere(self, sku: str, units: int) -> None:
        """Another channel sells."""
        self.elsewhere[sku] = self.elsewhere.get(sku, 0) + units
        self.say(sku)

    def numbers(self, skus: Sequence[str], min_version: str) -> dict[str, int]:
        """Answer a read."""
        if self.away:
            raise ClientError("UNAVAILABLE", "LEDGER_UNREACHABLE", "away")
        assert not min_version or int(min_version.split("-")[1]) <= self.feed.version
        return {sku: self.left(sku) for sku in skus}


@dataclass(slots=True, kw_only=True)
class Mirrored:
    """A Mirror shop at work: what it showed over time stands in ``shown``."""

    running: Running
    shop: Shop
    ledger: MirrorLedger
    intake: OrderIntake
    shown: list[tuple[str, int]] = field(default_factory=list)

    def buy(self, sku: str = "A", units: int = 3, *, status: str = "processing") -> Order:
        """A shopper buys what the shop offers."""
        order = buy(self.shop, {sku: units}, status=status)
        assert order is not None
        return order

    async def settled(self, **shown: int) -> None:
        """Wait until the shop shows these numbers and nothing waits."""
        await self.running.until(lambda: all(self.shop.stock(sku) == units for sku, units in shown.items()))
        await self.running.quiet()
        assert {sku: self.shop.stock(sku) for sku in shown} == shown

    def written(self) -> list[int]:
        """Return the numbers of A that were stored, sales included."""
        return [units for sku, units in self.shown if sku == "A"]


@asynccontextmanager
async def mirrored(
    engine: Engine,
    shop: Shop,
    ledger: MirrorLedger,
    *,
    poll_ms: int = 150,
    settle_ms: int = 300,
    latency: Latency | None = None,
    storefront: Callable[[WooClient], WooStock] = WooStock,
    **more: object,
) -> AsyncIterator[Mirrored]:
    """Publish to the shop until the block ends; with a ``latency`` the shop takes its time."""
    double = Double(shop=shop, url=URL, tls=True, machine=Machine(latency or Latency(factor=0)))
    settings = shop_settings(URL, mode="MIRROR", **more)
    transport = DoubleTransport(double) if latency is None else PatientTransport(double)
    woo = WooClient(settings, lambda: KEYS, transport=transport)
    orders = OrdersSettings.model_validate({"poll_ms": poll_ms, "settle_ms": settle_ms, "check_ms": 3_000})
    looks = SecondLooks(settle_ms / 1000, time.monotonic)
    poller = OrderPoller(
        shop=CHANNEL,
        source="shop",
        orders=WooOrders(woo),
        book=OrderBook(engine, CHANNEL),
        ledger=ledger,
        now=time.time,
        rules=Rules(shop_reduces=True),
    )
    intake = OrderIntake(poller, orders, monotonic=time.monotonic, touched=looks.touched)

    async def orders_in(_: Parts, stop: asyncio.Event) -> None:
        await intake.run(stop)

    async def look_again(parts: Parts, _: asyncio.Event) -> None:
        await looks.run(parts)

    publisher = publisher_of(
        engine,
        ledger.feed,
        settings,
        storefront=storefront(woo),
        rule=lambda parts: mirror_rule(parts, intake, ledger.numbers),
        companions=(orders_in, look_again),
    )
    stop = asyncio.Event()
    task = asyncio.create_task(publisher.run(stop))
    running = Running(publisher=publisher, engine=engine, ledger=ledger.feed, stop=stop)
    made = Mirrored(running=running, shop=shop, ledger=ledger, intake=intake)

    def watch(product: Product) -> None:
        made.shown.append((product.sku, int(product.quantity or 0)))

    shop.listeners.append(watch)
    try:
        await running.quiet()
        yield made
    finally:
        stop.set()
        if publisher.parts is not None:
            publisher.parts.delivery.wake.set()
        await asyncio.wait_for(task, 20)


def play(folder: Path, day: Callable[[Mirrored], object], *, poll_ms: int = 150, **stock: int) -> None:
    """Run a day of a shop and a ledger that begin with the same stock."""
    engine = open_copy(folder)
    ledger = MirrorLedger(stock=dict(stock))
    ledger.say(*stock)

    async def whole() -> None:
        async with mirrored(engine, double_shop(**stock), ledger, poll_ms=poll_ms) as made:
            done = day(made)
            assert asyncio.iscoroutine(done)
            await done

    asyncio.run(whole())
    engine.dispose()


NEVER_MS = 3_600_000


def test_a_number_that_moved_is_a_sale_first(tmp_path: Path) -> None:
    """A: the shop sold 3 that nobody heard of; 10 sold elsewhere make 87, and 90 is never written."""

    async def day(made: Mirrored) -> None:
        made.buy()
        made.shown.clear()
        made.ledger.sell_elsewhere("A", 10)
        await made.settled(A=87)
        assert made.written() == [87]

    play(tmp_path, day, poll_ms=NEVER_MS, A=100)


def test_a_cancel_on_top_of_a_stale_write_ends_right(tmp_path: Path) -> None:
    """A2: a sale in the window of a write is overwritten, then cancelled; the shop ends with the ledger's number."""

    async def day(made: Mirrored) -> None:
        sold: list[Order] = []
        fault = Fault(kind=Kind.BEFORE_ITEM, path="batch", action=lambda: sold.append(made.buy()))
        made.shop.faults.add(fault)
        made.ledger.receive("A", 1)
        await made.running.until(lambda: bool(sold))
        await made.settled(A=98)
        set_status(made.shop, sold[0], "cancelled")
        await made.settled(A=101)

    play(tmp_path, day, A=100)


def test_payment_of_a_pending_order_is_not_subtracted_twice(tmp_path: Path) -> None:
    """B: while payment is open the shop keeps the units itself and nothing is written; 94 is never shown."""

    async def day(made: Mirrored) -> None:
        order = made.buy(status="pending")
        await asyncio.sleep(0.5)
        assert made.shop.stock("A") == 100
        made.ledger.sell_elsewhere("A", 10)
        await made.settled(A=90)
        set_status(made.shop, order, "processing")
        await made.running.until(lambda: made.ledger.ordered("A") == 3)
        await made.settled(A=87)
        assert min(made.written()) == 87
        set_status(made.shop, order, "cancelled")
        await made.settled(A=90)

    play(tmp_path, day, A=100)


def test_a_number_that_comes_back_to_what_was_sent_last_is_written(tmp_path: Path) -> None:
    """C: sold 3, received 3: the ledger is at 100 again, which was sent last; the shop, at 97, gets it."""

    async def day(made: Mirrored) -> None:
        made.buy()
        made.ledger.receive("A", 3)
        await made.settled(A=100)

    play(tmp_path, day, poll_ms=NEVER_MS, A=100)


def test_refunds_and_deletions_end_in_the_ledgers_number(tmp_path: Path) -> None:
    """D: the shop never gives a deleted order's units back; a refund of unshipped units gives them back once."""

    async def day(made: Mirrored) -> None:
        order, gone = made.buy(units=5), made.buy(units=3)
        await made.running.until(lambda: made.ledger.ordered("A") == 8)
        refund_order(made.shop, order, [(order.lines[0].id, 2)])
        delete_order(made.shop, gone)
        await made.running.until(lambda: made.ledger.ordered("A") == 6)
        await made.settled(A=94)

    play(tmp_path, day, A=100)


def test_without_the_ledger_nothing_is_written_over_a_sale(tmp_path: Path) -> None:
    """The orders cannot be folded: the shop's own number stays until they can."""

    async def day(made: Mirrored) -> None:
        made.ledger.away = True
        made.buy()
        made.shown.clear()
        made.ledger.sell_elsewhere("A", 10)
        await asyncio.sleep(1.0)
        assert made.shop.stock("A") == 97
        made.ledger.away = False
        await made.settled(A=87)
        assert made.written() == [87]

    play(tmp_path, day, A=100)


def test_a_sku_that_sells_all_the_time_is_written_all_the_same(tmp_path: Path) -> None:
    """Somebody buys at each reading: after two rounds the number is written, and ends right."""

    async def day(made: Mirrored) -> None:
        def another() -> None:
            made.buy(units=1)

        fault = made.shop.faults.add(
            Fault(kind=Kind.AFTER_READ, method="GET", path="products", times=12, action=another)
        )
        made.ledger.sell_elsewhere("A", 10)
        await made.running.until(lambda: fault.hits >= 6)
        made.shop.faults.remove(fault)
        sold = sum(order.lines[0].quantity for order in made.shop.orders.values())
        await made.settled(A=90 - sold)

    play(tmp_path, day, A=100)


@pytest.mark.parametrize("number", range(2))
def test_a_busy_day_ends_with_equal_numbers(tmp_path: Path, seed: int, number: int) -> None:
    """Sales here and elsewhere, receipts, cancels, failures at random: at quiet the shop shows what the ledger has."""
    rng = random.Random(seed * 10 + number)
    skus = [f"S{n}" for n in range(6)]

    async def day(made: Mirrored) -> None:
        orders: list[Order] = []
        for _ in range(80):
            what, sku = rng.random(), rng.choice(skus)
            if what < 0.4:
                order = buy(made.shop, {sku: rng.randint(1, 4)}, status=rng.choice(("pending", "processing")))
                orders += [order] if order is not None else []
            elif what < 0.6 and orders:
                set_status(
                    made.shop,
                    rng.choice(orders),
                    rng.choice(("processing", "completed", "cancelled", "failed")),
                )
            elif what < 0.8:
                made.ledger.sell_elsewhere(sku, rng.randint(1, 3))
            elif what < 0.95:
                made.ledger.receive(sku, rng.randint(1, 9))
            else:
                kind = rng.choice(
                    (Kind.CUT_ANSWER, Kind.TOO_MANY_REQUESTS, Kind.CHALLENGE_PAGE, Kind.LOCK_TIMEOUT)
                )
                made.shop.faults.add(Fault(kind=kind, seconds=0.05))
            await asyncio.sleep(rng.choice((0, 0, 0.01, 0.05)))
        made.shop.faults.clear()

        def equal() -> bool:
            # What elsewhere sold beyond the stock leaves nothing here; a shop may stand below 0 by itself.
            return all(made.shop.stock(sku) == made.ledger.left(sku) for sku in skus)

        await made.running.until(equal)
        await made.running.quiet()
        assert equal()

    play(tmp_path, day, **dict.fromkeys(skus, 60))
