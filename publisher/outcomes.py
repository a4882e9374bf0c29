"""What becomes of numbers that were carried: acknowledged, tried again, read back first, or a dead letter.

Everything that has happened is noted in the database before the coalescer forgets it. An item's own failures count only
while the shop takes others: nobody becomes a dead letter because a whole shop was away.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import structlog

from publisher.catalogue import Problem
from publisher.coalescer import Taken
from publisher.letters import Letter, Letters
from publisher.numbers import Decision
from publisher.shop import Shop
from publisher.state import Settled
from publisher.storefront import (
    Category,
    FailureKind,
    Listing,
    Outcome,
    ShopFailure,
    StockStatus,
    WriteResult,
)

_LOG = structlog.get_logger(__name__)

ITS_OWN = frozenset(
    {
        FailureKind.BROKEN,
        FailureKind.NOT_FOUND,
        FailureKind.OVERLOADED,
        FailureKind.REJECTED,
        FailureKind.TIMEOUT,
    }
)
"""Whole calls may fail so because of one item in them; the others are not held up for it."""
SUSPECT_AT = 3
_CATEGORY = {
    FailureKind.TIMEOUT: Category.DOWNSTREAM_TIMEOUT,
    FailureKind.BROKEN: Category.REJECTED,
}


class Outcomes:
    """See the module. One shop's."""

    def __init__(self, shop: Shop, letters: Letters, high_demand: frozenset[str] = frozenset()) -> None:
        self._shop = shop
        self._letters = letters
        self.high_demand = high_demand
        self._lettered: set[str] = set()
        self._torn: dict[str, tuple[int | None, int]] = {}
        self._looks: list[tuple[float, str]] = []
        self._unsure: dict[str, tuple[float, str]] = {}
        self._successes = 0
        self._suspects: dict[str, int] = {}
        self._failed_at: dict[str, int] = {}
        self.last_failure = ""

    def remember_letters(self, skus: Sequence[str]) -> None:
        """Know which skus have letters that a success resolves."""
        self._lettered.update(skus)

    # --- Good ends ----------------------------------------------------------------------------------------

    async def shown_already(self, shown: Sequence[tuple[Taken, Decision]]) -> None:
        """Nothing to write: the shop shows the numbers that it shall show."""
        await self._settled([(taken, decision.quantity, decision.shown) for taken, decision in shown])
        self._successes += len(shown)

    async def answered(self, taken: Sequence[Taken], results: Sequence[WriteResult]) -> bool:
        """Take a write's results, in order. Returns whether the shop stored anything, or refused by name."""
        written: list[tuple[Taken, int, Listing | None]] = []
        stored = False
        for one, result in zip(taken, results, strict=True):
            if result.outcome is not Outcome.NOT_STORED:
                stored = True
            if result.outcome is Outcome.WRITTEN and not self._repairs(one, result.shown):
                written.append((one, result.write.quantity, result.shown))
        self._successes += len(written)
        await self._settled(written)
        done = {one.sku for one, _, _ in written}
        for one, result in zip(taken, results, strict=True):
            if one.sku not in done:
                await self._not_written(one, result)
        return stored

    async def _settled(self, written: Sequence[tuple[Taken, int, Listing | None]]) -> None:
        if not written:
            return
        shop, now = self._shop, self._shop.now()
        await shop.records.insist(
            shop.state.settle,
            [
                Settled(
                    sku=taken.sku,
                    sent=taken.quantity,
                    acked=quantity,
                    version=taken.version,
                    pending=False,
                    shown=listing.quantity if listing is not None else quantity,
                    status=listing.status if listing is not None else StockStatus.UNKNOWN,
                )
                for taken, quantity, listing in written
            ],
            now,
        )
        resolved = [taken.sku for taken, _, _ in written if taken.sku in self._lettered]
        if resolved:
            await shop.records.insist(self._letters.resolve, shop.channel, resolved, now)
            self._lettered.difference_update(resolved)
        for taken, quantity, listing in written:
            superseded = not shop.coalescer.written(taken, quantity)
            self._failed_at.pop(taken.sku, None)
            self._suspects.pop(taken.sku, None)
            if listing is not None and not listing.torn:
                self._torn.pop(taken.sku, None)
            late = now - taken.since > shop.settings.agreed_ms / 1000
            high = taken.sku in self.high_demand
            shop.metrics.acknowledged(shop.channel, max(0.0, now - taken.since), high_demand=high, late=late)
            if superseded:
                shop.metrics.written(shop.channel, "superseded")
        shop.metrics.written(shop.channel, "acknowledged", len(written))

    # --- Torn status --------------------------------------------------------------------------------------

    def accepts_torn(self, sku: str, listing: Listing) -> bool:
        """Say whether number and status were seen to contradict each other after a repair too: the shop's own rule."""
        return self._torn.get(sku) == (listing.quantity, 2)

    def _repairs(self, taken: Taken, shown: Listing | None) -> bool:
        """Say whether a written number has to be written once more, because the status beside it is another's."""
        if shown is None or not shown.torn:
            return False
        quantity, seen = self._torn.get(taken.sku, (None, 0))
        if quantity == shown.quantity and seen >= 1:
            if seen == 1:
                _LOG.warning(
                    "the shop's status contradicts its number after a repair too: its own threshold",
                    channel=self._shop.channel,
                    sku=taken.sku,
                    quantity=shown.quantity,
                    status=shown.status.value,
                )
            self._torn[taken.sku] = (shown.quantity, 2)
            return False
        self._torn[taken.sku] = (shown.quantity, 1)
        return True

    # --- Other ends ---------------------------------------------------------------------------------------

    async def _not_written(self, taken: Taken, result: WriteResult) -> None:
        shop, now = self._shop, self._shop.monotonic()
        if result.outcome is Outcome.WRITTEN:  # stored, with a status that contradicts it
            await self._again([taken], now, count=False)
        elif result.outcome is Outcome.NOT_STORED:
            await self._tried(taken, result.category, result.reason, result.message, unknown=False)
        elif (
            result.outcome is Outcome.REFUSED and taken.attempts == 0 and result.category is Category.MAPPING
        ):
            # The catalogue is old: read the sku anew, and write it to where it is now.
            await self._again([taken], now, unknown=True)
        elif result.outcome is Outcome.UNKNOWN and taken.attempts == 0:
            # An item's error may come from behind the storing: the shop's number tells.
            await self._again([taken], now, unknown=True)
        else:
            shop.metrics.written(shop.channel, "refused")
            await self.given_up(taken, result.category, result.reason, result.message, unknown=True)

    def goes_alone(self, sku: str) -> bool:
        """Say whether a sku was in so many calls that failed as a whole that it is tried without others."""
        return self._suspects.get(sku, 0) >= SUSPECT_AT

    async def failed(self, taken: Sequence[Taken], failure: ShopFailure, *, sent: bool) -> None:
        """A whole call failed: what may have been done is read back, the rest goes out when the shop is well."""
        shop, now = self._shop, self._shop.monotonic()
        self.last_failure = f"{failure.reason}: {failure.message}"
        if len(taken) > 1 and sent and failure.kind in ITS_OWN:
            for one in taken:
                self._suspects[one.sku] = self._suspects.get(one.sku, 0) + 1
        shop.metrics.written(shop.channel, "failed", len(taken))
        if sent and failure.maybe_applied:
            # The shop may still be at it: it is left alone as long as a dead publisher's work is.
            wait_s = shop.settings.orphan_ms / 1000 if failure.kind is FailureKind.TIMEOUT else 0.0
            for one in taken:
                self._doubt(one)
            if len(taken) == 1:
                await self._tried(
                    taken[0],
                    _CATEGORY[failure.kind],
                    failure.reason,
                    failure.message,
                    unknown=True,
                    least_s=wait_s,
                )
                return
            pause_s = max(wait_s, shop.pace.retry_in_s(1))
            await self._again(taken, now + pause_s, count=False, unknown=True)
            return
        if sent and failure.kind is FailureKind.TOO_LARGE and len(taken) == 1:
            await self.given_up(taken[0], Category.REJECTED, failure.reason, failure.message)
            return
        if (
            len(taken) == 1 and failure.kind in ITS_OWN
        ):  # alone: it may be its own, what it is called for example
            await self._tried(
                taken[0],
                _CATEGORY.get(failure.kind, Category.REJECTED),
                failure.reason,
                failure.message,
                unknown=False,
            )
            return
        await self._again(taken, now, count=False, forced=False, back=sent)

    async def _tried(
        self,
        taken: Taken,
        category: Category,
        reason: str,
        message: str,
        *,
        unknown: bool,
        least_s: float = 0.0,
    ) -> None:
        """An item's own failure, where the shop takes others: after so many it is a dead letter."""
        shop = self._shop
        counts = self._failed_at.get(taken.sku, -1) < self._successes
        self._failed_at[taken.sku] = self._successes
        if counts and taken.attempts + 1 >= shop.settings.pace.attempts_max:
            shop.metrics.written(shop.channel, "refused")
            await self.given_up(taken, category, reason, message, unknown=unknown)
            return
        shop.metrics.written(shop.channel, "failed")
        pause_s = max(least_s, shop.pace.retry_in_s(taken.attempts + 1))
        await self._again([taken], shop.monotonic() + pause_s, count=counts, unknown=unknown)

    def untouched(self, taken: Taken, not_before: float) -> None:
        """Give back what was not sent."""
        self._shop.coalescer.again(taken, not_before, count=False, forced=False)

    async def held(self, taken: Taken) -> None:
        """Give back what waits for an operator."""
        self._shop.coalescer.hold(taken)

    async def not_found(self, taken: Taken) -> None:
        """The shop did not list it: ask once more before it counts as gone."""
        pause_s = self._shop.pace.retry_in_s(1)
        await self._again([taken], self._shop.monotonic() + pause_s, unknown=taken.read_first, back=False)

    async def no_place(self, nowhere: Sequence[tuple[Taken, Problem]]) -> None:
        """Make dead letters of numbers that have no place in the shop."""
        await self._letters_of(
            [
                (taken, _letter(taken, Category.MAPPING, problem.trouble.value, problem.message))
                for taken, problem in nowhere
            ],
            unknown=False,
        )

    async def given_up(
        self, taken: Taken, category: Category, reason: str, message: str, *, unknown: bool = False
    ) -> None:
        """Make a dead letter of a number; a newer number of the sku is tried again."""
        await self._letters_of([(taken, _letter(taken, category, reason, message))], unknown=unknown)

    async def _letters_of(self, given_up: Sequence[tuple[Taken, Letter]], *, unknown: bool) -> None:
        if not given_up:
            return
        shop = self._shop
        taken = [one for one, _ in given_up]
        letters = [letter for _, letter in given_up]
        await shop.records.insist(self._letters.put, shop.channel, letters, shop.now())
        await self._note(taken, pending=False, forget=unknown)
        for one in taken:
            self._lettered.add(one.sku)
            self._failed_at.pop(one.sku, None)
            self._suspects.pop(one.sku, None)
            if unknown:
                shop.coalescer.learn(one.sku, None)
            shop.coalescer.drop(one)

    async def _again(
        self,
        taken: Sequence[Taken],
        not_before: float,
        *,
        count: bool = True,
        unknown: bool = False,
        forced: bool = True,
        back: bool = True,
    ) -> None:
        """Try again later. ``back``: a note that it is under way has to be struck out."""
        if back:
            await self._note(taken, pending=True, forget=unknown)
        done = [
            one
            for one in taken
            if not self._shop.coalescer.again(one, not_before, count=count, unknown=unknown, forced=forced)
        ]
        if done:  # the number went back meanwhile to what the shop shows
            await self._note(done, pending=False, forget=False)

    async def _note(self, taken: Sequence[Taken], *, pending: bool, forget: bool) -> None:
        shop = self._shop
        await shop.records.insist(
            shop.state.settle,
            [
                Settled(
                    sku=one.sku,
                    sent=one.quantity,
                    acked=None,
                    version=one.version,
                    pending=pending,
                    forget=forget,
                )
                for one in taken
            ],
            shop.now(),
        )

    # --- Second looks -------------------------------------------------------------------------------------

    def _doubt(self, taken: Taken) -> None:
        at = self._shop.monotonic() + self._shop.settings.recheck_ms / 1000
        if taken.sku not in self._unsure:
            heapq.heappush(self._looks, (at, taken.sku))
        self._unsure[taken.sku] = (at, taken.version)

    def second_looks(self, now: float) -> Iterator[tuple[str, int, str]]:
        """Yield (sku, number, version) of what is due to be read once more: the numbers that the shop shall show."""
        coalescer = self._shop.coalescer
        while self._looks and self._looks[0][0] <= now:
            _, sku = heapq.heappop(self._looks)
            at, version = self._unsure.pop(sku)
            acked = coalescer.acked(sku)
            if at > now or sku in coalescer:  # doubted again, or not settled yet
                at = max(at, now + self._shop.settings.recheck_ms / 1000)
                self._unsure[sku] = (at, version)
                heapq.heappush(self._looks, (at, sku))
            elif acked is not None:  # None: a dead letter, which a person sees to
                yield sku, acked, version


def _letter(taken: Taken, category: Category, reason: str, message: str) -> Letter:
    return Letter(
        sku=taken.sku,
        category=category,
        reason=reason,
        message=message,
        quantity=taken.quantity,
        version=taken.version,
    )
