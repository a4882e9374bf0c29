"""One shop's publisher: waits until the shop is ours, then follows the ledger and delivers until it is lost or stopped.

Another process may stand by with the same settings: it takes over when the first one gives the shop up, or when its
lease has run out. What the first one was writing then is left alone for a while and read back before it is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field

import structlog
from sqlalchemy.engine import Engine

from availability.history.database import DatabaseUnreachable
from availability.telemetry import ChannelFigures, PublishMetrics
from publisher.catalogue import Catalogue
from publisher.coalescer import Coalescer
from publisher.delivery import Delivery, Guard
from publisher.feed import Feed, Ledger
from publisher.keeper import Keeper
from publisher.letters import Letters
from publisher.listing_rows import ListingRows
from publisher.numbers import Rule
from publisher.outcomes import Outcomes
from publisher.pace import Breaker, Pace
from publisher.records import Records
from publisher.settings import Mode, ShopSettings
from publisher.shop import Shop
from publisher.state import OPEN, RUNNING, STOPPED, OwnerLost, State
from publisher.storefront import FailureKind, ShopFailure, Storefront
from publisher.traces import Traces

_LOG = structlog.get_logger(__name__)

LEASE_S = 5.0
"""A killed publisher's shop is free after so long; who stands by looks three times as often."""
ASKED_S = 1.0
FIGURES_S = 1.0
START_PAUSE_S = 5.0
START_PAUSE_MAX_S = 60.0


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a running shop consists of; made anew each time that the shop becomes ours."""

    shop: Shop
    letters: Letters
    outcomes: Outcomes
    delivery: Delivery
    feed: Feed
    keeper: Keeper


RuleMaker = Callable[[Parts], Rule]
"""Makes the rule of a shop whose parts are there: Mirror's reads through delivery, and folds orders."""
Companion = Callable[[Parts, asyncio.Event], Awaitable[None]]
"""What runs beside delivery while the shop is ours: orders in, rolling verification."""


@dataclass(slots=True, kw_only=True)
class ShopPublisher:
    """See the module. ``prepare`` is awaited before anything is written; ``companions`` run while the shop is ours, and
    one that fails ends this turn. ``verified_at``: when the last walk that read the whole shop back ended."""

    channel: str
    settings: ShopSettings
    engine: Engine
    ledger: Ledger
    storefront: Storefront
    keys: Callable[[], str]
    owner: str
    metrics: PublishMetrics
    guard: Guard | None = None
    rule: RuleMaker | None = None
    prepare: Callable[[Parts], Awaitable[None]] | None = None
    companions: tuple[Companion, ...] = ()
    verified_at: Callable[[], float | None] = lambda: None
    zeros_held: Callable[[], int] = lambda: 0
    traces: Traces = field(default_factory=Traces)
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    lease_s: float = LEASE_S
    parts: Parts | None = None
    figures: ChannelFigures | None = None
    _records: Records | None = field(default=None, init=False)

    async def run(self, stop: asyncio.Event) -> None:
        """Publish whenever the shop is ours, until ``stop``."""
        records = self._records = Records(self.channel)
        state = State(self.engine, self.channel, self.owner)
        stood_by = False
        try:
            while not stop.is_set():
                try:
                    mine = await records.call(state.acquire, self.now(), self.lease_s)
                except DatabaseUnreachable as error:
                    _LOG.warning("the database is away", channel=self.channel, reason=str(error))
                    mine = False
                if not mine:
                    if not stood_by:
                        _LOG.info("another publisher has the shop; standing by", channel=self.channel)
                    stood_by = True
                    await _wait(stop, self.lease_s / 3)
                    continue
                stood_by = False
                try:
                    await self._publish(state, records, stop)
                except* OwnerLost:
                    _LOG.warning("another publisher has taken the shop", channel=self.channel)
                finally:
                    self.parts = None
                with contextlib.suppress(DatabaseUnreachable):
                    await records.call(state.give_up)
        finally:
            await self.storefront.close()
            records.close()

    def _made(self, state: State, records: Records) -> Parts:
        settings = self.settings
        feed: Feed | None = None

        def known(sku: str) -> bool:
            return feed is not None and sku in feed.skus

        owner_mode = settings.mode is Mode.OWNER
        shop = Shop(
            channel=self.channel,
            settings=settings,
            storefront=self.storefront,
            coalescer=Coalescer(skip_equal=owner_mode),
            catalogue=Catalogue(
                settings.aliases, switch_on=settings.catalogue.manage_stock == "switch_on", known=known
            ),
            pace=Pace(settings.pace, self.monotonic(), self.chance),
            state=state,
            rows=ListingRows(self.engine, self.channel),
            records=records,
            metrics=self.metrics,
            traces=self.traces,
            now=self.now,
            monotonic=self.monotonic,
        )
        letters = Letters(self.engine)
        outcomes = Outcomes(shop, letters, settings.in_high_demand())
        delivery = Delivery(shop, outcomes, keys=self.keys, guard=self.guard)
        feed = Feed(shop, self.ledger, delivery.wake.set, always=not owner_mode, allowed=settings.allowed())
        keeper = Keeper(shop, letters, delivery.catalogue_changed)
        parts = Parts(
            shop=shop, letters=letters, outcomes=outcomes, delivery=delivery, feed=feed, keeper=keeper
        )
        if not owner_mode and self.rule is None:
            raise ValueError("mode MIRROR needs a rule that folds orders")
        if self.rule is not None:
            delivery.rule = self.rule(parts)
        return parts

    async def _publish(self, state: State, records: Records, stop: asyncio.Event) -> None:
        parts = self.parts = self._made(state, records)
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._renew(state, records))]
            await self._load(parts)
            kept = await records.insist(state.shop)
            resume = kept.resume_version if kept is not None else ""
            beside.append(group.create_task(parts.feed.run(resume)))
            beside.append(group.create_task(self._watch_figures(parts)))
            if await self._catalogue_there(parts, stop):
                if self.prepare is not None:
                    await self.prepare(parts)
                beside.append(group.create_task(parts.keeper.run()))
                beside.append(group.create_task(self._take_asked(parts)))
                beside += [
                    group.create_task(_beside(companion, parts, stop)) for companion in self.companions
                ]
                _LOG.info("publishing", channel=self.channel, waiting=len(parts.shop.coalescer))
                await parts.delivery.run(stop)
            for task in beside:
                task.cancel()

    async def _load(self, parts: Parts) -> None:
        """Take up where the last publisher was."""
        shop = parts.shop
        for sku, acked in await shop.records.insist(shop.state.acknowledged):
            parts.feed.skus.add(sku)
            shop.coalescer.learn(sku, acked)
        orphans = parts.feed.load(await shop.records.insist(shop.state.open_rows))
        if orphans:
            _LOG.warning(
                "numbers were under way when a publisher ended; they are read back",
                channel=self.channel,
                count=len(orphans),
            )
        lettered = await shop.records.insist(parts.letters.waiting_skus, self.channel)
        parts.outcomes.remember_letters(lettered)

    async def _catalogue_there(self, parts: Parts, stop: asyncio.Event) -> bool:
        """Load or walk the catalogue; try until it is there. Returns False where stopped before."""
        shop, pause_s = parts.shop, START_PAUSE_S
        while not stop.is_set():
            try:
                if not await _unless(stop, parts.keeper.start()):
                    return False
            except ShopFailure as failure:
                state = STOPPED if failure.kind is FailureKind.AUTHENTICATION else OPEN
                _LOG.error("the shop's catalogue cannot be read", channel=self.channel, reason=str(failure))
                await shop.records.insist(shop.state.tell, state, failure.message, self.now())
                await _wait(stop, max(pause_s, failure.retry_after_s))
                pause_s = min(pause_s * 2, START_PAUSE_MAX_S)
            else:
                await shop.records.insist(shop.state.tell, RUNNING, "", self.now())
                return True
        return False

    async def _renew(self, state: State, records: Records) -> None:
        """Keep the shop. Raises OwnerLost."""
        while True:
            await asyncio.sleep(self.lease_s / 3)
            try:
                if not await records.call(state.acquire, self.now(), self.lease_s):
                    raise OwnerLost(self.channel)
            except DatabaseUnreachable as error:  # without it nothing can be sent either
                _LOG.warning("the database is away", channel=self.channel, reason=str(error))

    async def _take_asked(self, parts: Parts) -> None:
        """Take up what operators asked for: replays, resyncs."""
        shop = parts.shop
        while True:
            for row in await shop.records.insist(shop.state.asked):
                if parts.feed.allows(row.sku):
                    shop.coalescer.force(
                        row.sku,
                        row.wanted,
                        row.wanted_version,
                        self.now(),
                        blocked=row.blocked,
                        read_first=True,
                    )
                    parts.delivery.wake.set()
            await asyncio.sleep(ASKED_S)

    async def _watch_figures(self, parts: Parts) -> None:
        """Keep what a scrape asks for: its thread may not look into our dictionaries."""
        shop = parts.shop
        counts: dict[tuple[str, str], int] = {}
        turn = 0
        while True:
            if turn % 10 == 0:
                with contextlib.suppress(DatabaseUnreachable):
                    counts = await shop.records.call(parts.letters.counts)
            turn += 1
            now, oldest = self.now(), shop.coalescer.oldest_since()
            demanded = shop.coalescer.oldest_since(parts.outcomes.high_demand)
            lost_at, verified_at = parts.feed.lost_at, self.verified_at()
            self.figures = ChannelFigures(
                channel=self.channel,
                backlog=len(shop.coalescer),
                lag_s=max(0.0, now - oldest) if oldest is not None else 0.0,
                high_demand_lag_s=max(0.0, now - demanded) if demanded is not None else 0.0,
                rate_limit=shop.pace.rate_limit,
                breaker_open=shop.pace.breaker is Breaker.OPEN or bool(parts.delivery.stopped_reason),
                dead_letters=sum(n for (channel, _), n in counts.items() if channel == self.channel),
                zeros_held=self.zeros_held(),
                verify_age_s=None if verified_at is None else max(0.0, now - verified_at),
                feed_age_s=0.0 if lost_at is None else max(0.0, now - lost_at),
            )
            await asyncio.sleep(FIGURES_S)


async def _beside(companion: Companion, parts: Parts, stop: asyncio.Event) -> None:
    await companion(parts, stop)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do something; return False where it was ended because we are stopped. Raises what it raises."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        for one in (task, stopped):
            one.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
