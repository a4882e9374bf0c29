"""A shop compared with the ledger, as a whole: for `publish verify`, `publish resync` and `publish shadow`.

It writes nothing, neither to the shop nor to the ledger. The shop is paged once; what differs is read once more a
moment later, together with the ledger's numbers of that moment, and only what differs then as well is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import grpc
from sqlalchemy.engine import Engine

from publisher.catalogue import Catalogue
from publisher.feed import NOTHING_YET, Ledger
from publisher.golive import Approvals
from publisher.letters import Letters
from publisher.mirror import Sellables
from publisher.numbers import Limits, wanted
from publisher.settings import ShopSettings
from publisher.state import State
from publisher.storefront import Listing, Storefront
from publisher.verify import Difference, Known, Report, compare, lasting

SETTLE_S = 3.0
LETTERS_MAX = 1_000_000


def all_sellables(ledger: Ledger, channel: str) -> dict[str, int]:
    """Return what a channel sells of every sku now: the watch's first part. Blocks; raises ClientError."""
    found: dict[str, int] = {}
    calls: list[grpc.Call] = []
    try:
        for message in ledger.watch(channel, resume_version="", opened=calls.append):
            found |= {one.sku: one.sellable_quantity for one in message.changes}
            if not message.initial or message.as_of.version not in ("", NOTHING_YET):
                break  # only the last one of the first part names its version
    finally:
        for call in calls:
            call.cancel()
    return found


@dataclass(slots=True, kw_only=True)
class Survey:
    """One shop's comparison. ``progress`` is told how many listings were read so far."""

    channel: str
    settings: ShopSettings
    storefront: Storefront
    ledger: Ledger
    sellables: Sellables
    engine: Engine
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    settle_s: float = SETTLE_S
    progress: Callable[[int], None] = lambda _: None

    async def take(self) -> Report:
        """Compare. Raises ShopFailure, ClientError, HistoryError."""
        aliases = self.settings.aliases
        switch_on = self.settings.catalogue.manage_stock == "switch_on"
        ledger = await asyncio.to_thread(all_sellables, self.ledger, self.channel)
        catalogue = Catalogue(aliases, switch_on=switch_on, known=ledger.__contains__)
        shown = await self._walk(catalogue)
        limits = await asyncio.to_thread(self.ledger.limits, self.channel) or Limits()
        allowed = self.settings.allowed()
        skus = sorted(ledger if allowed is None else allowed.intersection(ledger))
        numbers = await asyncio.to_thread(self.sellables, skus, "")
        first = await self._differences(skus, numbers, limits, shown, catalogue)
        again = [one.sku for one in first]
        second: list[Difference] = []
        if again:
            await self.sleep(self.settle_s)
            shown |= await self._read(again, catalogue)
            numbers = await asyncio.to_thread(self.sellables, again, "")
            second = await self._differences(again, numbers, limits, shown, catalogue)
        return Report(
            compared=len(skus),
            differences=tuple(lasting(first, second)),
            on_sale=sum(1 for sku in skus if sku in shown and (shown[sku].quantity or 0) > 0),
            unknown=len(catalogue.not_in(set(ledger))),
        )

    async def _walk(self, catalogue: Catalogue) -> dict[str, Listing]:
        found: dict[str, Listing] = {}
        count = 0
        async for page in self.storefront.listings():
            catalogue.put(page)
            found |= _named(page, catalogue)
            count += len(page)
            self.progress(count)
        return found

    async def _read(self, skus: Sequence[str], catalogue: Catalogue) -> dict[str, Listing]:
        found: dict[str, Listing] = {}
        for at in range(0, len(skus), self.storefront.read_max):
            names = [catalogue.shop_sku(sku) for sku in skus[at : at + self.storefront.read_max]]
            listings = await self.storefront.read_skus(names, catalogue.ids(names))
            catalogue.seen(names, listings)
            found |= _named(listings, catalogue)
        return found

    async def _differences(
        self,
        skus: Iterable[str],
        numbers: Mapping[str, int],
        limits: Limits,
        shown: Mapping[str, Listing],
        catalogue: Catalogue,
    ) -> list[Difference]:
        settings = self.settings
        numbered = {
            sku: wanted(
                numbers[sku],
                channel=self.channel,
                limit=limits.of(sku),
                shop_limit=settings.publish_limit,
                ranked=settings.ranked,
            )
            for sku in skus
        }
        return compare(numbered, shown, catalogue, await asyncio.to_thread(self._known))

    def _known(self) -> Known:
        """Read what publishers have noted. Raises HistoryError."""
        letters = Letters(self.engine).find(channel=self.channel, limit=LETTERS_MAX)
        held = Approvals(self.engine, self.channel).find()
        return Known(
            kept={row.sku: row for row in State(self.engine, self.channel, "").rows()},
            letters={one.sku: f"{one.category}: {one.reason}" for one in letters},
            held=held is not None and held.held > 0,
        )


def _named(listings: Iterable[Listing], catalogue: Catalogue) -> dict[str, Listing]:
    """Return listings by the ledger's name of their sku."""
    named: dict[str, Listing] = {}
    for one in listings:
        sku = catalogue.ledger_sku(one.sku) if one.sku else None
        if sku is not None:
            named[sku] = one
    return named
