"""Carries numbers to one shop: take what goes next, find its place, note it, write it, compare the echo, note that.

At most one write of a product is under way: a sku is taken once until it is given back, a product is busy meanwhile,
and the shop belongs to one publisher process at a time (`state`). Nothing is sent without a note that it is; what has
an unknown outcome is read back, then written with the number that is current by then, and looked at once more later.
What becomes of answers is in `outcomes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from availability.history.database import DatabaseUnreachable
from publisher.catalogue import Problem, Target, Trouble
from publisher.coalescer import Lane, Taken
from publisher.numbers import Decision, OwnerRule, Rule, Seen
from publisher.outcomes import Outcomes
from publisher.pace import Breaker
from publisher.settings import SettingsRefused
from publisher.shop import Shop
from publisher.state import OPEN, RUNNING, STOPPED, Sending
from publisher.storefront import (
    FailureKind,
    Listing,
    ShopFailure,
    StockWrite,
)

_LOG = structlog.get_logger(__name__)

BUSY_S = 0.05
"""A product that is being written is looked for again after so long."""
KEYS_S = 5.0
"""So often a stopped shop's keys are looked at: whether they are others by now."""
IDLE_S = 1.0
MISSING_S = 3_600.0
"""A sku that the shop does not have is not asked for again within so long, unless the catalogue says otherwise."""


class Guard(Protocol):
    """Says which numbers wait for an operator."""

    def holds(self, sku: str, quantity: int, shown: int | None, *, stop_sale: bool = False) -> bool:
        """Say whether this number may not be written yet; ``shown``: what the shop shows, None: not known.

        ``stop_sale``: somebody blocked it by name.
        """
        ...


class NoGuard:
    """Holds nothing."""

    def holds(self, sku: str, quantity: int, shown: int | None, *, stop_sale: bool = False) -> bool:
        """See ``Guard``."""
        return False


@dataclass(frozen=True, slots=True)
class _Job:
    """One number on its way to its place."""

    taken: Taken
    target: Target


class Delivery:
    """See the module. ``rule`` decides what is written; ``keys``: a fingerprint of the shop's keys as they are now."""

    def __init__(
        self,
        shop: Shop,
        outcomes: Outcomes,
        *,
        rule: Rule | None = None,
        keys: Callable[[], str],
        guard: Guard | None = None,
    ) -> None:
        self._shop = shop
        self.rule: Rule = rule or OwnerRule()
        self._outcomes = outcomes
        self._keys = keys
        self._guard = guard or NoGuard()
        self._busy: set[str] = set()
        self._missing: dict[str, float] = {}
        self._under_way = 0
        self._refused_keys = ""
        self._told = ""
        self.wake = asyncio.Event()
        self.stopped_reason = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until ``stop``, then until nothing is under way. Raises OwnerLost."""
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                await self._tell()
                wait_s = await self._next(group)
                if wait_s > 0:
                    self.wake.clear()
                    if not stop.is_set():
                        await self._sleep(wait_s)

    async def _next(self, group: asyncio.TaskGroup) -> float:
        """Start one call where that may be; return how long nothing can be started otherwise."""
        shop, now = self._shop, self._shop.monotonic()
        if self.stopped_reason and not self._keys_changed():
            return KEYS_S
        self._look_again(now)
        next_at = shop.coalescer.next_at()
        if not shop.coalescer.ready() and (next_at is None or next_at > now):
            return IDLE_S if next_at is None else min(IDLE_S, next_at - now)
        permit = shop.pace.permit(now, self._under_way, shop.coalescer.ready())
        if not permit.items:
            return permit.wait_s or IDLE_S
        taken = shop.coalescer.take(permit.items, now)
        if not taken:
            return BUSY_S
        shop.pace.sent(now, len(taken))
        self._under_way += 1
        group.create_task(
            self._carry(taken, full=len(taken) >= shop.pace.items or shop.coalescer.ready() > 0)
        )
        await asyncio.sleep(0)
        return 0.0

    async def _sleep(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self.wake.wait()
        except TimeoutError:
            return

    def _look_again(self, now: float) -> None:
        """A second look at what had an unknown outcome: a write of ours may have been stored late."""
        for sku, quantity, version in self._outcomes.second_looks(now):
            self._shop.coalescer.force(sku, quantity, version, self._shop.now(), read_first=True)

    # --- One call -----------------------------------------------------------------------------------------

    async def _carry(self, taken: Sequence[Taken], *, full: bool) -> None:
        busy: set[str] = set()
        try:
            jobs = await self._placed(taken, busy)
            if jobs:
                await self._write(jobs, busy, full=full)
        finally:
            self._busy -= busy
            self._under_way -= 1
            self.wake.set()

    async def _placed(self, taken: Sequence[Taken], busy: set[str]) -> list[_Job]:
        """Find where each goes; look up those that are nowhere. What has no place becomes a dead letter."""
        shop = self._shop
        found = {one.sku: shop.catalogue.resolve(one.sku) for one in taken}
        lost = [
            sku for sku, place in found.items() if isinstance(place, Problem) and self._worth_asking(place)
        ]
        if lost:
            try:
                await self.read(lost)
            except ShopFailure as failure:
                await self._failed(taken, failure, sent=False)
                return []
            found |= {sku: shop.catalogue.resolve(sku) for sku in lost}
        jobs: list[_Job] = []
        nowhere: list[tuple[Taken, Problem]] = []
        for one in taken:
            place = found[one.sku]
            if isinstance(place, Problem):
                if place.trouble is Trouble.MISSING:
                    if one.attempts == 0 and one.sku in lost:  # once may be a shop that answers an empty list
                        await self._outcomes.not_found(one)
                        continue
                    self._missing[one.sku] = shop.now()
                nowhere.append((one, place))
            elif place.stock_id in self._busy:
                self._outcomes.untouched(one, shop.monotonic() + BUSY_S)
            else:
                busy.add(place.stock_id)
                self._busy.add(place.stock_id)
                jobs.append(_Job(one, place))
        await self._outcomes.no_place(nowhere)
        return jobs

    def _worth_asking(self, problem: Problem) -> bool:
        if problem.trouble is Trouble.NO_STOCK:
            return False
        asked_at = self._missing.get(problem.sku)
        return asked_at is None or self._shop.now() - asked_at > MISSING_S

    def catalogue_changed(self) -> None:
        """Ask again for what was missing: the shop's catalogue is another one."""
        self._missing.clear()

    async def read(self, skus: Sequence[str]) -> dict[str, Listing]:
        """Read skus (the ledger's names) at the shop; the catalogue learns from it. Raises ShopFailure."""
        shop = self._shop
        names = {shop.catalogue.shop_sku(sku): sku for sku in skus}
        begun = shop.monotonic()
        try:
            listings = await shop.storefront.read_skus(list(names), shop.catalogue.ids(names))
        except ShopFailure as failure:
            self._requested(failure, shop.monotonic() - begun)
            raise
        self._requested(None, shop.monotonic() - begun)
        changed, gone = shop.catalogue.seen(list(names), listings)
        if changed:
            await shop.records.insist(shop.rows.keep, changed, shop.now())
        if gone:
            await shop.records.insist(shop.rows.drop, gone)
        return {names[one.sku]: one for one in listings if one.sku in names}

    async def _looked(self, jobs: Sequence[_Job], busy: set[str]) -> tuple[list[_Job], dict[str, Listing]]:
        """Read what has to be read before it is written; a listing that moved is placed anew."""
        shop = self._shop
        read = {
            job.taken.sku
            for job in jobs
            if self.rule.reads or job.taken.read_first or job.taken.acked is None or job.target.parent_id
        }
        if not read:
            return list(jobs), {}
        listings = await self.read(sorted(read))
        placed: list[_Job] = []
        nowhere: list[tuple[Taken, Problem]] = []
        for job in jobs:
            place: Target | Problem = job.target
            if job.taken.sku in read:
                place = shop.catalogue.resolve(job.taken.sku)
            if isinstance(place, Problem):
                nowhere.append((job.taken, place))
            elif job.taken.sku in read and job.taken.sku not in listings:
                await self._outcomes.not_found(job.taken)
            elif place.stock_id != job.target.stock_id and place.stock_id in self._busy:
                self._outcomes.untouched(job.taken, shop.monotonic() + BUSY_S)
            else:
                busy.add(place.stock_id)
                self._busy.add(place.stock_id)
                placed.append(_Job(job.taken, place))
        await self._outcomes.no_place(nowhere)
        return placed, listings

    async def _write(self, jobs: Sequence[_Job], busy: set[str], *, full: bool) -> None:
        shop, rest = self._shop, {job.taken.sku: job.taken for job in jobs}
        begun = shop.monotonic()
        try:
            placed, listings = await self._looked(jobs, busy)
            rest = {job.taken.sku: job.taken for job in placed}
            decided = await self.rule.decide([self._seen(job, listings.get(job.taken.sku)) for job in placed])
        except ShopFailure as failure:
            await self._failed(list(rest.values()), failure, sent=False)
            return
        writes: list[tuple[_Job, Decision]] = []
        shown = [(job.taken, decided[job.taken.sku]) for job in placed if not decided[job.taken.sku].write]
        await self._outcomes.shown_already(shown)
        for job in placed:
            decision = decided[job.taken.sku]
            if not decision.write:
                continue
            if self._held(job, decision):
                await self._outcomes.held(job.taken)
            else:
                writes.append((job, decision))
        if not writes:
            if listings:
                shop.pace.succeeded(shop.monotonic(), len(placed), shop.monotonic() - begun, full=full)
            return
        sendings = [Sending(sku=job.taken.sku, quantity=decision.quantity) for job, decision in writes]
        try:
            await shop.records.call(shop.state.begin, sendings, shop.now())
        except DatabaseUnreachable as error:
            _LOG.warning("nothing is sent without a note", channel=shop.channel, reason=str(error))
            for job, _ in writes:
                self._outcomes.untouched(job.taken, shop.monotonic() + IDLE_S)
            return
        calls: dict[tuple[str, str], list[tuple[Taken, StockWrite]]] = {}
        for job, decision in writes:
            write = StockWrite(
                sku=job.taken.sku,
                listing_id=job.target.listing_id,
                quantity=decision.quantity,
                parent_id=job.target.parent_id,
                manage=job.target.manage,
            )
            apart = write.sku if self._outcomes.goes_alone(write.sku) else ""
            calls.setdefault((shop.storefront.route(write), apart), []).append((job.taken, write))
        for call in calls.values():
            await self._call(call, full=full)

    async def _call(self, call: Sequence[tuple[Taken, StockWrite]], *, full: bool) -> None:
        shop, begun = self._shop, self._shop.monotonic()
        try:
            with shop.traces.writing([taken.sku for taken, _ in call]) as correlation_ids:
                _LOG.debug("writing", channel=shop.channel, items=len(call), correlation_ids=correlation_ids)
                results = await shop.storefront.write_stock([write for _, write in call])
        except ShopFailure as failure:
            self._requested(failure, shop.monotonic() - begun)
            await self._failed([taken for taken, _ in call], failure, sent=True)
            return
        elapsed_s = shop.monotonic() - begun
        self._requested(None, elapsed_s)
        stored = await self._outcomes.answered([taken for taken, _ in call], results)
        if stored:
            shop.pace.succeeded(shop.monotonic(), len(call), elapsed_s, full=full)
        else:  # 200, and nothing of it took effect: a read-only database answers so
            shop.pace.failed(shop.monotonic(), FailureKind.BROKEN)

    def _seen(self, job: _Job, listing: Listing | None) -> Seen:
        return Seen(
            sku=job.taken.sku,
            desired=job.taken.quantity,
            listing=listing,
            explained=job.taken.acked,
            torn=listing is not None
            and listing.torn
            and not self._outcomes.accepts_torn(job.taken.sku, listing),
        )

    def _held(self, job: _Job, decision: Decision) -> bool:
        shown = decision.shown.quantity if decision.shown is not None else job.taken.acked
        stop_sale = job.taken.lane is Lane.STOP_SALE
        return self._guard.holds(job.taken.sku, decision.quantity, shown, stop_sale=stop_sale)

    # --- Failures -----------------------------------------------------------------------------------------

    async def _failed(self, taken: Sequence[Taken], failure: ShopFailure, *, sent: bool) -> None:
        """A call failed as a whole. ``sent``: it was a write, which may have been done all the same."""
        shop = self._shop
        now = shop.monotonic()
        _LOG.warning(
            "a call to the shop failed",
            channel=shop.channel,
            reason=failure.reason,
            status=failure.status,
            message=failure.message,
            items=len(taken),
        )
        if failure.kind is FailureKind.AUTHENTICATION:
            self._stop(failure)
        else:
            shop.pace.failed(now, failure.kind, failure.retry_after_s)
        await self._outcomes.failed(taken, failure, sent=sent)

    def _stop(self, failure: ShopFailure) -> None:
        self.stopped_reason = failure.message
        try:
            self._refused_keys = self._keys()
        except SettingsRefused:
            self._refused_keys = ""
        _LOG.error(
            "the shop refuses the keys: nothing is published until they change",
            channel=self._shop.channel,
            reason=failure.reason,
            message=failure.message,
        )

    def _keys_changed(self) -> bool:
        try:
            changed = self._keys() != self._refused_keys
        except SettingsRefused:
            return False
        if changed:
            _LOG.info("other keys: publishing goes on", channel=self._shop.channel)
            self.stopped_reason = ""
        return changed

    def _requested(self, failure: ShopFailure | None, seconds: float) -> None:
        status = "2xx"
        if failure is not None:
            status = f"{failure.status // 100}xx" if failure.status else failure.kind.value.lower()
        self._shop.metrics.requested(self._shop.channel, status, seconds)

    async def _tell(self) -> None:
        """Keep the shop's state in the database current, for whoever asks."""
        shop = self._shop
        if self.stopped_reason:
            state, reason = STOPPED, self.stopped_reason
        elif shop.pace.breaker is not Breaker.CLOSED:
            state, reason = OPEN, self._outcomes.last_failure
        else:
            state, reason = RUNNING, ""
        if f"{state} {reason}" != self._told:
            self._told = f"{state} {reason}"
            await shop.records.insist(shop.state.tell, state, reason, shop.now())
