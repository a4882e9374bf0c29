"""Mirror mode's residual window, against the storefront double with a real shop's measured latencies.

``python -m benchmarks.mirror [--seconds N] [--sales N] [--elsewhere N]``: shoppers buy in the shop and elsewhere
at random moments, while the publisher reads before every write. Told: the time from the last reading of a number to
the moment at which the shop stored ours; how many of our writes met a sale in it; for how long and with how many units
too many the shop was on sale then; and the units that were sold twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import quantile
from publisher.storefront import Listing
from publisher.testing.checkout import buy
from publisher.testing.latency import Latency
from publisher.testing.shop import Shop
from publisher.testing.stock import Product
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.stock import WooStock
from tests.publishing import double_shop
from tests.shop_lab import open_copy
from tests.test_publisher_mirror import MirrorLedger, mirrored

SKUS, STOCK = 200, 500
QUIET_S = 30.0


@dataclass(slots=True)
class Watched:
    """What the shop shows over time, held against what is left."""

    shop: Shop
    ledger: MirrorLedger
    read_at: dict[str, float] = field(default_factory=dict)
    windows: list[float] = field(default_factory=list)
    writes: int = 0
    selling: bool = False
    too_many: dict[str, tuple[float, int]] = field(default_factory=dict)
    ended: list[tuple[float, int]] = field(default_factory=list)

    def right(self, sku: str) -> int:
        """Return what is left by everything that happened, whoever knows of it."""
        sold = sum(
            line.taken for order in self.shop.orders.values() for line in order.lines if line.sku == sku
        )
        return self.ledger.stock[sku] - self.ledger.elsewhere.get(sku, 0) - sold

    def stored(self, product: Product) -> None:
        """A number was stored, by a sale or by the publisher."""
        sku, now = product.sku, time.monotonic()
        if not self.selling:
            self.writes += 1
            if sku in self.read_at:
                self.windows.append(now - self.read_at[sku])
            self.judge(sku, int(product.quantity or 0), now)

    def judge(self, sku: str, shown: int, now: float) -> None:
        """Note where the publisher's write shows units that the shop itself had sold."""
        lost = shown - self.right(sku)
        if lost > 0 and sku not in self.too_many:
            self.too_many[sku] = (now, lost)
        elif lost <= 0 and sku in self.too_many:
            began, units = self.too_many.pop(sku)
            self.ended.append((now - began, units))


class Reading(WooStock):
    """Notes when each sku was read."""

    watched: Watched

    async def read_skus(self, skus: Sequence[str], known: Mapping[str, str] | None = None) -> list[Listing]:
        found = await super().read_skus(skus, known)
        now = time.monotonic()
        self.watched.read_at |= {one.sku: now for one in found}
        return found


async def measure(seconds: float, sales: float, elsewhere: float, seed: int) -> None:
    """Run one shop for so long and print what was seen."""
    rng = random.Random(seed)
    stock = {f"S{number}": STOCK for number in range(SKUS)}
    ledger = MirrorLedger(stock=dict(stock))
    ledger.say(*stock)
    shop = double_shop(**stock)
    watched = Watched(shop, ledger)

    def storefront(woo: WooClient) -> WooStock:
        made = Reading(woo)
        made.watched = watched
        return made

    sold = 0
    with tempfile.TemporaryDirectory() as folder:
        engine = open_copy(Path(folder))
        async with mirrored(
            engine, shop, ledger, poll_ms=5_000, settle_ms=3_000, latency=Latency(), storefront=storefront,
            timeout_ms=60_000, pace={},
        ) as made:  # fmt: skip
            shop.listeners.append(watched.stored)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.sleep(rng.expovariate(sales + elsewhere))
                sku = f"S{min(SKUS - 1, int(rng.expovariate(0.03)))}"
                if rng.random() < sales / (sales + elsewhere):
                    watched.selling = True
                    sold += buy(shop, {sku: 1}) is not None
                    watched.selling = False
                else:
                    ledger.sell_elsewhere(sku, 1)
            began = time.monotonic()
            while time.monotonic() - began < QUIET_S and not all(
                shop.stock(sku) == ledger.left(sku) for sku in stock
            ):
                await asyncio.sleep(0.1)
            quiet_s = time.monotonic() - began
            equal = all(shop.stock(sku) == ledger.left(sku) for sku in stock)
            del made
        engine.dispose()
    windows = sorted(watched.windows)
    print(
        f"{seconds:g} s, {sold} sold in the shop, {sum(ledger.elsewhere.values())} elsewhere, {watched.writes} writes"
    )
    print(
        f"from reading to stored: median {quantile(windows, 0.5):.3f} s, p99 {quantile(windows, 0.99):.3f} s, "
        f"most {windows[-1]:.3f} s"
    )
    lasted = sorted(duration for duration, _ in watched.ended)
    print(
        f"writes that met a sale in it: {len(watched.ended)} ({len(watched.ended) / max(1, watched.writes):.2%}), "
        f"{sum(units for _, units in watched.ended)} units shown once more, "
        + (f"for {quantile(lasted, 0.5):.1f} s (median), {lasted[-1]:.1f} s (most)" if lasted else "never")
    )
    short = sum(max(0, -watched.right(sku)) for sku in stock)
    print(f"at quiet after {quiet_s:.1f} s: shop = ledger is {equal}; units sold twice: {short}")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--sales", type=float, default=5.0, help="sales of the shop, a second")
    parser.add_argument("--elsewhere", type=float, default=5.0, help="sales of other channels, a second")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    asyncio.run(measure(given.seconds, given.sales, given.elsewhere, given.seed))


if __name__ == "__main__":
    main()
