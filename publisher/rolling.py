"""Read the shop back all the time, a few skus after the other, and mend what it shows otherwise than acknowledged.

Reading a hundred skus costs a shop a tenth of writing them. Nothing is read while the shop is in trouble, and a sku
that is on its way anyway is left alone. What differs is read again a moment later before it counts: a Mirror shop sells
by itself, and its orders take as long to arrive as a poll.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from publisher.pace import Breaker
from publisher.shop_publisher import Parts
from publisher.state import Kept
from publisher.storefront import ShopFailure

_LOG = structlog.get_logger(__name__)

SKUS_PER_LOOK = 100
PAUSE_MIN_S = 0.5
DOUBT_PAUSE_S = 1.0
TOLD_MAX = 5


class Rolling:
    """One shop's walk. ``round_s``: how long one walk over all skus takes, at the shortest. ``doubt_s``: what differs
    counts when it differs so much later as well."""

    def __init__(self, round_s: float, doubt_s: float = 0.0) -> None:
        self._round_s = round_s
        self._doubt_s = doubt_s
        self._doubted: dict[str, float] = {}
        self._queue: list[str] = []
        self._pause_s = PAUSE_MIN_S
        self._next_at = 0.0
        self.looks = 0
        self.differences = 0
        self.rounds = 0
        self.began_at: float | None = None
        self.ended_at: float | None = None

    async def run(
        self,
        parts: Parts,
        stop: asyncio.Event,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Walk until ``stop`` or cancelled."""
        while not stop.is_set():
            if self._may(parts):
                try:
                    await self.look(parts)
                except ShopFailure as failure:
                    _LOG.info(
                        "the shop cannot be read back now", channel=parts.shop.channel, reason=failure.reason
                    )
            await sleep(min(self._pause_s, DOUBT_PAUSE_S) if self._doubted else self._pause_s)

    @staticmethod
    def _may(parts: Parts) -> bool:
        return not parts.delivery.stopped_reason and parts.shop.pace.breaker is Breaker.CLOSED

    async def look(self, parts: Parts) -> int:
        """Read the next skus back, and what was in doubt; return how many differed. Raises ShopFailure."""
        shop, now = parts.shop, parts.shop.monotonic()
        due = [sku for sku, at in self._doubted.items() if at <= now][:SKUS_PER_LOOK]
        if due:
            differing = await self._differing(parts, due)
            for sku in due:
                del self._doubted[sku]
            if differing:
                self._mend(parts, differing)
            return len(differing)
        if now < self._next_at:
            return 0
        if not self._queue:
            self._begin(parts)
        self._next_at = now + self._pause_s
        skus = [self._queue.pop() for _ in range(min(SKUS_PER_LOOK, len(self._queue)))]
        for row in await self._differing(parts, skus):
            self._doubted.setdefault(row.sku, now + self._doubt_s)
        if not self._queue:
            self.rounds += 1
            self.ended_at = shop.now()
        return 0

    async def _differing(self, parts: Parts, skus: list[str]) -> list[Kept]:
        """Read skus back; return those that show another number than they should."""
        shop = parts.shop
        # What changes while we read is no difference: its number is looked up before and after.
        before = {sku: shop.coalescer.acked(sku) for sku in skus if sku not in shop.coalescer}
        if not before:
            return []
        listings = await parts.delivery.read(list(before))
        self.looks += 1
        await shop.records.insist(shop.state.saw, list(listings.items()), shop.now())
        return [
            row
            for row in await shop.records.insist(shop.state.rows, list(listings))
            if before[row.sku] is not None
            and row.sku not in shop.coalescer
            and shop.coalescer.acked(row.sku) == before[row.sku]
            and (listings[row.sku].quantity != row.wanted or listings[row.sku].torn)
        ]

    def _begin(self, parts: Parts) -> None:
        self._queue = sorted((sku for sku in parts.feed.skus if parts.feed.allows(sku)), reverse=True)
        looks = max(1, -(-len(self._queue) // SKUS_PER_LOOK))
        self._pause_s = max(PAUSE_MIN_S, self._round_s / looks)
        self.began_at = parts.shop.now()

    def _mend(self, parts: Parts, rows: list[Kept]) -> None:
        shop = parts.shop
        self.differences += len(rows)
        shop.metrics.differed(shop.channel, len(rows))
        _LOG.warning(
            "the shop shows other numbers than it should",
            channel=shop.channel,
            count=len(rows),
            skus=[row.sku for row in rows[:TOLD_MAX]],
        )
        for row in rows:
            shop.coalescer.force(
                row.sku, row.wanted, row.wanted_version, shop.now(), blocked=row.blocked, read_first=True
            )
        parts.delivery.wake.set()
