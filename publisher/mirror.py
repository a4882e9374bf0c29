"""Mirror mode put together for one shop: orders are folded before a write over a number that moved.

What an order moved is read again a moment later (`settle_ms`): an order is stored before its stock is taken, so a
number may have been written between the two; and a sale in the window of a write shows then at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from availability.client import Client, ClientError
from availability.domain.limits import BATCH_SKUS_MAX
from publisher.numbers import MirrorRule
from publisher.orders.intake import OrderIntake
from publisher.orders.poller import Moved
from publisher.shop_publisher import Parts
from publisher.storefront import FailureKind, ShopFailure

LOOK_S = 0.2

Sellables = Callable[[Sequence[str], str], Mapping[str, int]]
"""What a channel sells of skus at a version or later; it blocks and raises ClientError."""


def sellables_of(client: Client, channel: str) -> Sellables:
    """Return what asks the ledger."""

    def ask(skus: Sequence[str], min_version: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for at in range(0, len(skus), BATCH_SKUS_MAX):
            part = skus[at : at + BATCH_SKUS_MAX]
            answer = client.batch_get(channel, part, min_version=min_version)
            found |= dict(zip(part, answer.sellable_quantities, strict=True))
        return found

    return ask


def mirror_rule(parts: Parts, intake: OrderIntake, sellables: Sellables) -> MirrorRule:
    """Return the rule of a shop that subtracts its sales itself."""

    async def fold(_: Sequence[str]) -> str:
        try:
            return await intake.catch_up()
        except ClientError as error:
            raise _not_now(error) from error

    async def numbers(skus: Sequence[str], version: str) -> dict[str, int]:
        try:
            found = await asyncio.to_thread(sellables, skus, version or intake.poller.version)
        except ClientError as error:
            raise _not_now(error) from error
        return {sku: parts.feed.number(sku, quantity) for sku, quantity in found.items()}

    return MirrorRule(fold, parts.delivery.read, numbers)


def _not_now(error: ClientError) -> ShopFailure:
    """Without the ledger nothing is known to be right: nothing is written, and all of it is tried again."""
    return ShopFailure(FailureKind.OVERLOADED, f"the ledger: {error.message}", code=error.reason)


class SecondLooks:
    """Skus that orders moved, until they are read again. Belongs to one event loop."""

    def __init__(self, settle_s: float, monotonic: Callable[[], float]) -> None:
        self._settle_s = settle_s
        self._monotonic = monotonic
        self._due: dict[str, float] = {}

    def touched(self, moved: Moved) -> None:
        """Orders moved these: look at them when everything has settled."""
        due = self._monotonic() + self._settle_s
        self._due |= dict.fromkeys(moved.skus, due)

    def take(self) -> list[str]:
        """Return what is due."""
        now = self._monotonic()
        due = [sku for sku, at in self._due.items() if at <= now]
        for sku in due:
            del self._due[sku]
        return due

    async def run(self, parts: Parts, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Have what is due read, and written where the shop shows another number, until cancelled."""
        while True:
            await self.look(parts)
            await sleep(LOOK_S)

    async def look(self, parts: Parts) -> None:
        """Do so once."""
        shop = parts.shop
        due = [sku for sku in self.take() if parts.feed.allows(sku)]
        if not due:
            return
        for row in await shop.records.insist(shop.state.rows, due):
            shop.coalescer.force(
                row.sku, row.wanted, row.wanted_version, shop.now(), blocked=row.blocked, read_first=True
            )
        parts.delivery.wake.set()
