"""A shop that fails at random while numbers change and publishers end: at quiet it shows the ledger's numbers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import open_database
from availability.history.shop_tables import shops
from publisher.testing.faults import Fault, Kind
from publisher.testing.latency import Latency
from publisher.testing.server import Storefront as Double
from publisher.testing.server import serve
from publisher.testing.shop import Shop
from tests.publishing import FakeLedger, Running, double_shop, publishing

STEPS, STEPS_FULL = 60, 2_000
SIMPLE, VARIATIONS = 10, 4
QUICK = Latency(request_s=0.001, write_item_s=0.0005, read_item_s=0.0001)
"""Fifty times as quick as a real shop; what a failure says of waiting is waited."""
FAULTS = (
    Kind.FATAL_EARLY,
    Kind.FATAL_AT_ITEM,
    Kind.HOOK_EXCEPTION,
    Kind.LOCK_TIMEOUT,
    Kind.READ_ONLY,
    Kind.DATABASE_DOWN,
    Kind.TOO_MANY_REQUESTS,
    Kind.HTML_BEFORE_JSON,
    Kind.CHALLENGE_PAGE,
    Kind.EMPTY_LIST,
    Kind.BAD_GATEWAY,
    Kind.GATEWAY_TIMEOUT,
    Kind.HANG,
    Kind.CUT_ANSWER,
    Kind.TORN_STATUS,
    Kind.STALE_READ,
    Kind.SLOW,
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database("", tmp_path)
    yield engine
    engine.dispose()


class Chaos:
    """What happens, by chance alone."""

    def __init__(self, chance: random.Random, shop: Shop, ledger: FakeLedger, engine: Engine) -> None:
        self.chance, self.shop, self.ledger, self.engine = chance, shop, ledger, engine
        self.parents = [shop.add(f"P{number}", None, kind="variable") for number in range(2)]
        self.skus = [f"S{number}" for number in range(SIMPLE)]
        for sku in self.skus:
            shop.add(sku, 1)
        for number in range(VARIATIONS):
            sku = f"V{number}"
            shop.add(sku, 1, kind="variation", parent=self.parents[number % 2].id)
            self.skus.append(sku)

    def change(self) -> None:
        """Say new numbers; small ones, so that they come back to what they were."""
        skus = self.chance.sample(self.skus, self.chance.randrange(1, 6))
        self.ledger.tell({sku: self.chance.randrange(4) for sku in skus}, blocked=self.chance.random() < 0.1)

    def fail(self) -> None:
        """Arm a failure for the next calls."""
        kind = self.chance.choice(FAULTS)
        self.shop.faults.add(
            Fault(
                kind=kind,
                path=self.chance.choice(["batch", "products"]),
                times=self.chance.randrange(1, 4),
                items=self.chance.randrange(3),
                seconds=self.chance.choice([0.02, 0.1, 0.7]),
                factor=5.0,
                ids=frozenset(self.chance.sample(sorted(self.shop.products), 2)),
            )
        )

    def move(self) -> None:
        """Give a variation another parent."""
        with self.shop.lock:
            variation = self.shop.find(f"V{self.chance.randrange(VARIATIONS)}")[0]
            self.shop.move(variation, self.chance.choice(self.parents).id)

    def lose(self) -> None:
        """Let somebody else take the shop for a moment."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(shops).values(owner="another", owned_until=0.0))

    def wrong(self) -> list[str]:
        """Return the skus that the shop shows otherwise than the ledger says, in number or status."""
        with self.shop.lock:
            found = []
            for sku, quantity in self.ledger.sellable().items():
                product = self.shop.find(sku)[0]
                status = "instock" if quantity > 0 else "outofstock"
                if (product.quantity, product.stock_status) != (quantity, status):
                    found.append(f"{sku}: {product.quantity} {product.stock_status}, not {quantity}")
            return found


def test_at_quiet_the_shop_shows_the_ledgers_numbers(engine: Engine, seed: int, full: bool) -> None:
    """Whatever failed before: number, status and the books are right, and no two writes of a product ever met."""
    chance = random.Random(seed)

    async def scenario() -> None:
        ledger = FakeLedger()
        shop = double_shop()
        chaos = Chaos(chance, shop, ledger, engine)
        ledger.tell(dict.fromkeys(chaos.skus, 2))
        with serve(shop, latency=QUICK, tls=False) as double:
            done = 0
            while done < (STEPS_FULL if full else STEPS):
                turn = chance.randrange(10, 40)
                async with AsyncExitStack() as stack:
                    running = await stack.enter_async_context(started(engine, ledger, double, chance))
                    for _ in range(turn):
                        done += 1
                        await asyncio.sleep(chance.choice([0.0, 0.01, 0.05]))
                        what = chance.random()
                        if what < 0.55:
                            chaos.change()
                        elif what < 0.9:
                            chaos.fail()
                        elif what < 0.96:
                            chaos.move()
                        else:
                            chaos.lose()
                    if chance.random() < 0.5:
                        continue  # ended in the middle of everything
                    shop.faults.clear()
                    await settled(running, chaos)
            async with started(engine, ledger, double, chance) as running:
                shop.faults.clear()
                await settled(running, chaos)
        assert shop.overlaps == []

    asyncio.run(scenario())


def started(engine: Engine, ledger: FakeLedger, double: Double, chance: random.Random):  # type: ignore[no-untyped-def]  # a context
    return publishing(
        engine,
        ledger,
        double,
        owner=f"process {chance.randrange(10**9)}",
        timeout_ms=500,
        orphan_ms=900,
        recheck_ms=100,
        pace={"attempts_max": 50, "open_ms": 10, "open_ms_max": 50, "retry_ms": 5, "retry_ms_max": 50},
    )


async def settled(running: Running, chaos: Chaos) -> None:
    """Wait until it is quiet and everything that was in doubt has been looked at again; then nothing may be wrong."""
    await running.until(lambda: running.is_quiet() and not chaos.wrong())
    assert chaos.wrong() == []
    assert running.pending() == 0
    assert running.letters() == []
