"""Read a shop's orders and tell the ledger: by polling, by webhooks' hints, and by missing what has vanished.

Polling by time of modification is what nothing can get past; webhooks only make it sooner. Every reading of one shop
goes through one lock, so that what is read later is later. An order is written into the book with its words before
they are sent, and struck out after the ack: whoever is killed in between sends them again.

Orders that were finished before the shop's orders were told at all are no business of the ledger: their units had
left before it counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from publisher.orders.book import Entry, OrderBook, Place
from publisher.orders.facts import (
    PENDING,
    VANISHED,
    Folded,
    Outcome,
    Recipe,
    Rules,
    ShopOrder,
    deltas,
    fold,
    skus_of,
)
from publisher.orders.ledger import KnownOrder, OrderLedger, recipes_of
from publisher.storefront import FailureKind, ShopFailure

_LOG = structlog.get_logger(__name__)

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
OPEN = frozenset({"on-hold", "processing"})
"""Statuses in which an order from before the beginning is still to ship."""
UNFINISHED = OPEN | {PENDING, "failed"}
"""Statuses of an order from before the beginning that is worth knowing: it may be paid yet."""
HINTS_PER_ROUND = 100
UNSENT_PER_ROUND = 200
CHECKED_PER_ROUND = 100
VANISHED_MAX = 20
"""More deleted orders in one look are no deletions but another shop behind the address: nothing is told of them."""
BROKEN_MAX = 3
"""Orders of one look that the shop fails at: that many, and the shop itself is broken."""
KITS_FRESH_S = 60.0


class OrderUnreadable(Exception):
    """The shop's answer holds the order and makes no sense; the message is for a person."""


class ShopOrders(Protocol):
    """What is asked of the shop. Every method raises ShopFailure; orders of a list that make no sense are left out."""

    def changed_since(self, modified_us: int) -> AsyncIterator[list[ShopOrder]]:
        """Page the orders that were modified after a time."""
        ...

    def in_status(self, statuses: Iterable[str]) -> AsyncIterator[list[ShopOrder]]:
        """Page the orders in one of these statuses."""
        ...

    async def read(self, order_id: int) -> ShopOrder | None:
        """Return one order, trashed ones too; None where it is deleted. Raises OrderUnreadable."""
        ...

    async def present(self, order_ids: Sequence[int]) -> list[ShopOrder]:
        """Return those that the shop lists."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PollRules:
    """How a shop is polled.

    ``overlap_s``: how far behind the last order seen each poll begins, for an order is dated before it is stored.
    ``check_s``: so long an order that counts may go unseen. ``watch_days``: orders that were touched since are missed
    when they vanish. ``keep_days``: then an order is forgotten.
    """

    overlap_s: int = 120
    check_s: float = 60.0
    watch_days: int = 30
    keep_days: int = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a round told: the skus that it may have moved, at a version of the ledger ('' for nothing told)."""

    skus: frozenset[str] = frozenset()
    version: str = ""

    def plus(self, other: Moved) -> Moved:
        """Return both, the later version second."""
        return Moved(skus=self.skus | other.skus, version=other.version or self.version)


class OrderPoller:
    """One shop's orders on their way into the ledger.

    Its rounds raise ShopFailure, ClientError and HistoryError; the next one goes on where it was. ``now``: seconds
    since 1970. ``count`` is told each result: told, repeated, draft,
    refused, unmapped, unreadable, vanished, before (finished before the beginning).
    """

    def __init__(
        self,
        *,
        shop: str,
        source: str,
        orders: ShopOrders,
        book: OrderBook,
        ledger: OrderLedger,
        now: Callable[[], float],
        rules: Rules | None = None,
        poll_rules: PollRules | None = None,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.shop = shop
        self._source = source
        self._orders = orders
        self._book = book
        self._ledger = ledger
        self._now = now
        self._rules = rules or Rules()
        self._poll_rules = poll_rules or PollRules()
        self._count = count
        self._lock = asyncio.Lock()
        self._begun_us = 0
        self._kits: Mapping[str, Recipe] = {}
        self._kits_at: float | None = None
        self._version = ""

    @property
    def version(self) -> str:
        """Return a version of the ledger that holds everything told so far; '' where nothing was."""
        return self._version

    # --- Rounds

    async def catch_up(self) -> Moved:
        """Fold everything that the shop knows by now. Mirror does it before it writes over a value that moved."""
        async with self._lock:
            return (await self._resend()).plus(await self._poll())

    async def follow_hints(self) -> tuple[int, Moved]:
        """Read the orders that webhooks named, some of them. Returns how many were read, and what it told."""
        async with self._lock:
            told = await self._resend()
            await self._begin()
            hints = await asyncio.to_thread(self._book.hints, HINTS_PER_ROUND)
            followed, failed = 0, 0
            for hint in hints:
                try:
                    told = told.plus(await self._fold_one(hint.order_id))
                except ShopFailure as failure:
                    failed += 1
                    self._leave_out(hint.order_id, failure, failed)
                    await asyncio.to_thread(self._book.hint, hint.order_id, self._now())  # behind the others
                else:
                    followed += 1
                    await asyncio.to_thread(self._book.followed, (hint,))
        return followed, told

    async def check_vanished(self) -> tuple[int, Moved]:
        """Look for orders that count and went unseen for a while, some of them: nobody is told when one is deleted.

        Returns how many it looked at, and what it told.
        """
        async with self._lock:
            now, rules = self._now(), self._poll_rules
            order_ids = await asyncio.to_thread(
                lambda: self._book.to_check(
                    before=now - rules.check_s,
                    modified_after_us=int(now * SECOND_US) - rules.watch_days * DAY_US,
                    limit=CHECKED_PER_ROUND,
                )
            )
            if not order_ids:
                return 0, Moved()
            told = await self._resend()
            await self._begin()
            present = await self._orders.present(order_ids)
            missing = sorted(set(order_ids) - {order.order_id for order in present})
            told = told.plus(await self._fold(present)).plus(await self._missing(missing))
            await asyncio.to_thread(self._book.checked, order_ids, now)
        return len(order_ids), told

    async def retell(self, order_id: int) -> Moved:
        """Read one order and say all of it again: for words that were refused."""
        async with self._lock:
            told = await self._resend()
            await self._begin()
            return told.plus(await self._fold_one(order_id, again=True))

    async def forget(self) -> int:
        """Forget orders that nobody touched for so long; return how many."""
        before_us = int(self._now() * SECOND_US) - self._poll_rules.keep_days * DAY_US
        return await asyncio.to_thread(lambda: self._book.forget(before_us=before_us))

    # --- Under the lock

    async def _begin(self) -> Place:
        """Return how far the shop was polled; the first time, tell what is still to ship, however old."""
        place = await asyncio.to_thread(self._book.place)
        if place is None:
            self._begun_us = int(self._now() * SECOND_US)
            latest_us = self._begun_us - self._poll_rules.overlap_s * SECOND_US
            async for page in self._orders.in_status(OPEN | {PENDING}):
                await self._fold(page)
                latest_us = max([latest_us, *(order.modified_us for order in page)])
            place = Place(modified_us=min(latest_us, self._begun_us), begun_us=self._begun_us)
            await self._note((), place)
        self._begun_us = place.begun_us
        return place

    async def _poll(self) -> Moved:
        place = await self._begin()
        told, latest_us = Moved(), place.modified_us
        since_us = place.modified_us - self._poll_rules.overlap_s * SECOND_US
        async for page in self._orders.changed_since(since_us):
            told = told.plus(await self._fold(page))
            latest_us = max([latest_us, *(order.modified_us for order in page)])
        # Never beyond now: where the shop's clock was ahead for a moment, what came after it is dated before it.
        latest_us = min(latest_us, int(self._now() * SECOND_US))
        if latest_us != place.modified_us:
            await self._note((), replace(place, modified_us=latest_us))
        return told

    async def _fold_one(self, order_id: int, *, again: bool = False) -> Moved:
        try:
            order = await self._orders.read(order_id)
        except OrderUnreadable as error:
            self._count("unreadable")
            _LOG.warning("an order makes no sense", shop=self.shop, order=order_id, message=str(error))
            return Moved()
        if order is not None:
            return await self._fold([order], again=again)
        return await self._deleted([order_id])

    async def _missing(self, order_ids: Sequence[int]) -> Moved:
        """Orders that the shop does not list are read one by one: they are in the bin, or a 404 is a deletion."""
        found, deleted, failed = [], [], 0
        for order_id in order_ids:
            try:
                order = await self._orders.read(order_id)
            except OrderUnreadable:
                continue  # it was in the list and left out there
            except ShopFailure as failure:
                failed += 1
                self._leave_out(order_id, failure, failed)
                continue
            if order is not None:
                found.append(order)
            else:
                deleted.append(order_id)
        if len(deleted) > VANISHED_MAX:
            _LOG.error(
                "too many orders vanished at once: is this the same shop?",
                shop=self.shop,
                orders=len(deleted),
            )
            deleted = []
        return (await self._fold(found)).plus(await self._deleted(deleted))

    def _leave_out(self, order_id: int, failure: ShopFailure, failed: int) -> None:
        """Go on without an order that the shop fails at, the ``failed``th of a round. Raises the shop's own failure."""
        if failure.kind is not FailureKind.BROKEN or failed >= BROKEN_MAX:
            raise failure
        self._count("unreadable")
        _LOG.warning("the shop fails at an order", shop=self.shop, order=order_id, message=failure.message)

    async def _deleted(self, order_ids: Sequence[int]) -> Moved:
        known = await asyncio.to_thread(self._book.told, order_ids)
        gone = []
        for order_id, told in known.items():
            if told.status != VANISHED:
                self._count("vanished")
                _LOG.warning(
                    "an order has vanished from the shop", shop=self.shop, order=order_id, was=told.status
                )
                gone.append(ShopOrder(order_id=order_id, status=VANISHED, modified_us=told.modified_us))
        return await self._fold(gone)

    async def _fold(self, orders: Sequence[ShopOrder], *, again: bool = False) -> Moved:
        """Fold readings into the book and tell the ledger."""
        before = await asyncio.to_thread(self._book.told, [order.order_id for order in orders])
        entries, unmapped = [], 0
        for order in orders:
            told = before.get(order.order_id)
            if told is None and order.created_us < self._begun_us and order.status not in UNFINISHED:
                self._count("before")
                continue

            def folding(known: KnownOrder | None = None, order: ShopOrder = order) -> Folded:
                return fold(
                    order,
                    before.get(order.order_id),
                    rules=self._rules,
                    now_us=int(self._now() * SECOND_US),
                    kits=self._recipes(order, known),
                    shipped=known.shipped if known is not None else None,
                    again=again,
                )

            folded = folding()
            if folded.outcome is Outcome.TOLD and await self._needs_known(order):
                folded = folding(await asyncio.to_thread(self._ledger.known, order.order_id))
            if folded.outcome is Outcome.TOLD:
                unmapped += folded.unmapped
                entries.append(Entry(order_id=order.order_id, told=folded.told, facts=folded.facts))
            elif folded.outcome is Outcome.UNCHANGED and told is not None and folded.told != told:
                entries.append(Entry(order_id=order.order_id, told=folded.told))
            self._count(
                "repeated" if folded.outcome in (Outcome.UNCHANGED, Outcome.OLDER) else folded.outcome.value
            )
        if unmapped:
            self._count("unmapped")
            _LOG.warning("lines of orders name no sku; they are left out", shop=self.shop, lines=unmapped)
        if not entries:
            return Moved()
        await self._note(entries)
        moved, kits = await self._tell([entry for entry in entries if entry.facts])
        if kits and not again:
            moved = moved.plus(await self._fold([one for one in orders if one.order_id in kits], again=True))
        return moved

    async def _needs_known(self, order: ShopOrder) -> bool:
        """Ask the ledger only where its word makes a difference: refunds, kits, the shop's own node."""
        if self._rules.owned_node or any(line.refunded for line in order.lines):
            return True
        now = self._now()
        if self._kits_at is None or now - self._kits_at >= KITS_FRESH_S:
            self._kits = await asyncio.to_thread(self._ledger.kits)
            self._kits_at = now
        return any(line.sku in self._kits for line in order.lines)

    def _recipes(
        self, order: ShopOrder, known: KnownOrder | None
    ) -> Mapping[str, tuple[tuple[int, Recipe], ...]]:
        return recipes_of(
            {line.sku for line in order.lines}, self._kits, known.kits if known is not None else {}
        )

    async def _resend(self) -> Moved:
        """Send what was written down and not acknowledged."""
        told = Moved()
        while waiting := await asyncio.to_thread(self._book.unsent, UNSENT_PER_ROUND):
            moved, kits = await self._tell(waiting)
            told = told.plus(moved)
            for order_id in kits:
                told = told.plus(await self._fold_one(order_id, again=True))
        return told

    async def _tell(self, entries: Sequence[Entry]) -> tuple[Moved, frozenset[int]]:
        """Tell the ledger. Second: orders that named a kit unknown to us; they are to be told again."""
        if not entries:
            return Moved(), frozenset()
        words = [
            delta
            for entry in entries
            for delta in deltas(self._source, entry.order_id, entry.told, entry.facts)
        ]
        heard = await asyncio.to_thread(self._ledger.tell, words)
        refused = {int(word.order_ref): f"{word.reason} {word.sku}".strip() for word in heard.refused}
        kits = frozenset(int(word.order_ref) for word in heard.refused if word.reason == "KIT_SKU")
        if kits:
            self._kits_at = None  # a kit that was made since we asked
        for word in heard.refused:
            self._count("refused")
            _LOG.error(
                "the ledger refused an order's word", shop=self.shop, order=word.order_ref, reason=word.reason
            )
        await asyncio.to_thread(self._book.sent, entries, refused)
        self._version = heard.version or self._version
        skus = frozenset[str]().union(*(skus_of(entry.facts, entry.told) for entry in entries))
        return Moved(skus=skus, version=heard.version), kits

    async def _note(self, entries: Sequence[Entry], place: Place | None = None) -> None:
        now = self._now()
        await asyncio.to_thread(lambda: self._book.note(entries, now=now, place=place))
