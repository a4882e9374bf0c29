"""What the publisher's metrics say of a shop, while it is slow and after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from availability.client import Client
from availability.history.database import open_database
from availability.telemetry import ChannelFigures, PublishMetrics
from publisher.app import storefront_of
from publisher.assembly import Surroundings, assemble
from publisher.coalescer import Coalescer
from publisher.storefront import StockWrite, WriteResult
from publisher.testing.server import serve
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.stock import WooStock
from tests.publishing import CHANNEL, KEYS, FakeLedger, double_shop, publishing, shop_settings


class Gated(WooStock):
    """A shop whose writes wait for a gate."""

    gate: asyncio.Event

    async def write_stock(self, writes: Sequence[StockWrite]) -> list[WriteResult]:
        await self.gate.wait()
        return await super().write_stock(writes)


def breaches(metrics: PublishMetrics) -> list[float]:
    """Values that came late, in high and in normal demand."""
    name = "availability_publish_breaches_total"
    return [
        metrics.registry.get_sample_value(name, {"channel": CHANNEL, "demand": demand}) or 0.0
        for demand in ("high", "normal")
    ]


def test_best_sellers_are_told_apart(tmp_path: Path) -> None:
    """While the shop does not answer, backlog and both lags grow; then they are 0, and what was late is counted."""

    async def scenario() -> None:
        engine = open_database("", tmp_path)
        (tmp_path / "best").write_text("hot\n")
        ledger, metrics = FakeLedger(), PublishMetrics()
        with serve(double_shop(hot=9, slow=9), tls=False) as double:
            storefront = Gated(WooClient(shop_settings(double.url), lambda: KEYS))
            storefront.gate = asyncio.Event()
            storefront.gate.set()
            ledger.tell({"hot": 9, "slow": 9})
            async with publishing(
                engine, ledger, double, storefront=storefront, high_demand=tmp_path / "best", agreed_ms=1,
                metrics=metrics,
            ) as running:  # fmt: skip
                await running.quiet()
                publisher, late = running.publisher, breaches(metrics)
                storefront.gate.clear()

                def now() -> ChannelFigures:
                    assert publisher.figures is not None
                    return publisher.figures

                ledger.tell({"slow": 8})
                await running.until(lambda: now().lag_s > 0)
                assert (now().backlog, now().high_demand_lag_s) == (1, 0)
                ledger.tell({"hot": 8})
                await running.until(lambda: now().high_demand_lag_s > 0)
                assert now().backlog == 2
                storefront.gate.set()
                await running.quiet()
                await running.until(lambda: now().backlog == 0)
                assert (now().lag_s, now().high_demand_lag_s) == (0, 0)
                assert breaches(metrics) == [late[0] + 1, late[1] + 1]
        engine.dispose()

    asyncio.run(scenario())


def test_a_shops_counts_begin_at_zero(tmp_path: Path) -> None:
    """From the moment that it is put together: the first late value is an increase, and seen by an alert."""
    engine, metrics = open_database("", tmp_path), PublishMetrics()
    settings = shop_settings("http://127.0.0.1:1")
    environment = {"K": "ck_of-the-test", "S": "cs_of-the-test"}
    with Client("127.0.0.1:1") as client:
        around = Surroundings(
            engine=engine, client=client, environment=environment, metrics=metrics, owner="test"
        )
        assemble(CHANNEL, settings, storefront_of(settings, environment), None, around)
    for demand in ("high", "normal"):
        labels = {"channel": CHANNEL, "demand": demand}
        assert metrics.registry.get_sample_value("availability_publish_breaches_total", labels) == 0
    engine.dispose()


def test_the_oldest_of_some() -> None:
    """Of those that are named and wait; none: nothing."""
    coalescer = Coalescer(skip_equal=True)
    for at, sku in enumerate(("a", "b", "c")):
        coalescer.offer(sku, 5, "1-1", float(at))
    assert coalescer.oldest_since() == 0
    assert coalescer.oldest_since(frozenset({"b", "c", "gone"})) == 1
    assert coalescer.oldest_since(frozenset({f"x{n}" for n in range(9)} | {"c"})) == 2
    assert coalescer.oldest_since(frozenset()) is None
