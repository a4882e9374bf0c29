"""Keeps the catalogue current: walks it whole at the first start and nightly, looks for changes while nothing waits.

What is found missing, moved or doubled in between is read anew by delivery itself. A walk that fails leaves the
catalogue as it was: a listing is forgotten only by a whole walk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from publisher.catalogue import Problem
from publisher.letters import Letters
from publisher.shop import Shop
from publisher.storefront import Category, FailureKind, ShopFailure

_LOG = structlog.get_logger(__name__)

POLL_S = 5.0
ATTEMPTS_MAX = 5
PAUSE_S = 1.0
OVERLAP_S = 120.0
"""Clocks differ, and the shop counts in whole seconds: changes are asked for again so far back."""
DAY_S = 86_400.0


class Keeper:
    """See the module. ``changed`` is called after the catalogue has become another one."""

    def __init__(
        self,
        shop: Shop,
        letters: Letters,
        changed: Callable[[], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._shop = shop
        self._letters = letters
        self._changed = changed
        self._sleep = sleep
        self.walked_at: float | None = None
        self.changes_since: float | None = None

    async def start(self) -> None:
        """Load what is kept; walk where nothing is. Raises ShopFailure where the first walk fails."""
        shop = self._shop
        shop.catalogue.put(await shop.records.insist(shop.rows.all))
        kept = await shop.records.insist(shop.state.shop)
        if kept is not None:
            self.walked_at, self.changes_since = kept.catalogue_at, kept.changes_since
        if self.walked_at is None:
            await self.walk()

    async def run(self) -> None:
        """Keep it current for ever."""
        while True:
            await self._sleep(POLL_S)
            try:
                if self._walk_is_due():
                    await self.walk()
                elif self._look_is_due() and not len(self._shop.coalescer):
                    await self.look()
            except ShopFailure as failure:
                _LOG.warning("the catalogue cannot be read", channel=self._shop.channel, reason=str(failure))
                if failure.kind is not FailureKind.AUTHENTICATION:
                    await self._sleep(max(PAUSE_S, failure.retry_after_s))
                else:
                    await self._sleep(60 * PAUSE_S)

    def _walk_is_due(self) -> bool:
        if self.walked_at is None:
            return True
        now = datetime.fromtimestamp(self._shop.now(), UTC)
        due = now.replace(
            hour=self._shop.settings.catalogue.refresh_hour_utc, minute=0, second=0, microsecond=0
        ).timestamp()
        if due > now.timestamp():
            due -= DAY_S
        return self.walked_at < due

    def _look_is_due(self) -> bool:
        since = self.changes_since
        every_s = self._shop.settings.catalogue.changed_ms / 1000
        return since is not None and self._shop.now() - since >= every_s

    async def walk(self) -> int:
        """Page the whole catalogue; return how many listings it has. Raises ShopFailure."""
        shop = self._shop
        for attempt in range(1, ATTEMPTS_MAX + 1):
            begun = shop.now()
            seen: set[str] = set()
            try:
                async for page in shop.storefront.listings():
                    shop.catalogue.put(page)
                    seen.update(one.listing_id for one in page)
                    await shop.records.insist(shop.rows.keep, page, begun)
                break
            except ShopFailure as failure:
                if failure.kind is FailureKind.AUTHENTICATION or attempt == ATTEMPTS_MAX:
                    raise
                _LOG.warning("a walk of the catalogue broke off", channel=shop.channel, reason=str(failure))
                await self._sleep(max(PAUSE_S * 2.0**attempt, failure.retry_after_s))
        shop.catalogue.keep_only(seen)
        await shop.records.insist(shop.rows.end_walk, begun)
        self.walked_at = self.changes_since = begun
        _LOG.info("the catalogue was read", channel=shop.channel, listings=len(seen))
        await self.take_up()
        return len(seen)

    async def look(self) -> None:
        """Read what changed since the last look. Raises ShopFailure."""
        shop, begun = self._shop, self._shop.now()
        assert self.changes_since is not None
        changed = 0
        async for page in shop.storefront.changed_since(self.changes_since - OVERLAP_S):
            moved = shop.catalogue.put(page)
            changed += len(moved)
            await shop.records.insist(shop.rows.keep, moved, begun)
        self.changes_since = begun
        await shop.records.insist(shop.rows.note_changes, begun)
        if changed:
            await self.take_up()

    async def take_up(self) -> None:
        """Try again what had no place in the catalogue and has one now."""
        shop = self._shop
        self._changed()
        lost = await shop.records.insist(self._letters.waiting_skus, shop.channel, Category.MAPPING)
        found = [sku for sku in lost if not isinstance(shop.catalogue.resolve(sku), Problem)]
        if found:
            await shop.records.insist(shop.state.ask, found)
