"""Staying safe while a shop goes live and after: a mass of zeros waits for an operator.

An empty ledger, a warehouse switched off by mistake or a wrong channel would sell a shop out within a minute. So zeros
are counted: when what was set to 0 within a window, together with what waits to be, is more than a share of the skus
that the shop shows as available, all further zeros wait for ``availability publish approve``. Numbers above 0 pass, and
so do stop-sales, which somebody asked for by name.

The guard itself is pure but for memory: time is an argument. ``GuardedStorefront`` lets it see every number that the
shop shows; ``Approvals`` is where operator and publisher meet, across processes and restarts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine

from availability.history.database import reading, upsert, writing
from availability.history.shop_tables import shop_approvals, shop_skus
from publisher.storefront import Listing, StockWrite, Storefront, WriteResult

_LOG = structlog.get_logger(__name__)

WINDOW_S = 600.0
LOOK_S = 1.0
"""So often the waiting zeros are counted anew: it looks at every entry that waits."""
APPROVED_S = 3_600.0
"""An approval holds for so long."""


class ZeroGuard:
    """Counts one shop's zeros. ``percent`` of the skus on sale, and ``least`` always, may go to 0 within WINDOW_S.

    ``waiting`` returns the skus whose number is 0 and has yet to be written, stop-sales left out. ``now``: seconds.
    """

    def __init__(
        self,
        *,
        percent: int,
        least: int,
        now: Callable[[], float],
        waiting: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._percent = percent
        self._least = least
        self._now = now
        self.waiting = waiting
        self._selling: set[str] = set()
        self._zeroed: deque[tuple[float, str]] = deque()
        self._foreseen: set[str] = set()
        self._counted_at: float | None = None
        self._approved_until = 0.0
        self.held: set[str] = set()

    @property
    def on_sale(self) -> int:
        """Return of how many skus the shop was last seen to have some, those set to 0 within the window included."""
        return len(self._selling) + len({sku for _, sku in self._zeroed} - self._selling)

    @property
    def limit(self) -> int:
        """Return how many skus may go to 0 within the window."""
        return max(self._least, self.on_sale * self._percent // 100)

    def saw(self, sku: str, quantity: int | None) -> None:
        """Learn what the shop shows of a sku (the ledger's name)."""
        if quantity is not None and quantity > 0:
            self._selling.add(sku)
        else:
            self._selling.discard(sku)

    def remember(self, zeroed: Iterable[tuple[float, str]]) -> None:
        """Take up what was set to 0 before a restart, the oldest first."""
        self._zeroed.extend(zeroed)

    def holds(self, sku: str, quantity: int, shown: int | None, *, stop_sale: bool = False) -> bool:
        """Say whether this number waits for an operator. ``shown``: what the shop shows; None: not known."""
        now = self._now()
        while self._zeroed and now - self._zeroed[0][0] > WINDOW_S:
            self._zeroed.popleft()
        available = shown > 0 if shown is not None else sku in self._selling
        if quantity > 0 or stop_sale or not available:
            self.held.discard(sku)
            return False
        if now >= self._approved_until and self._too_many(sku, now):
            self.held.add(sku)
            return True
        self.held.discard(sku)
        self._zeroed.append((now, sku))
        return False

    def _too_many(self, sku: str, now: float) -> bool:
        """Say whether what was set to 0 and what would be, this one included, is more than may be."""
        if self._counted_at is None or now - self._counted_at >= LOOK_S:
            self._foreseen = self._selling.intersection(self.waiting())
            self._counted_at = now
        sure = max(self._least, len(self._selling) * self._percent // 100)
        if len(self._zeroed) + len(self.held) + len(self._foreseen) < sure:
            return False  # even if none of them were the same: the sets below cost as much as they are long
        limit = self.limit
        if max(len(self._foreseen), len(self.held)) > limit:
            return True
        done = {one for _, one in self._zeroed}
        return len(done | self.held | self._foreseen | {sku}) > limit

    def approve(self, until: float) -> None:
        """Let zeros pass until a time."""
        self._approved_until = until
        self.held.clear()

    @property
    def approved_until(self) -> float:
        """Return until when an operator lets zeros pass; 0: never asked."""
        return self._approved_until


class GuardedStorefront:
    """A storefront whose every answer the guard sees. ``ledger_sku`` names the ledger's sku of a shop's."""

    def __init__(self, inner: Storefront, guard: ZeroGuard, ledger_sku: Callable[[str], str | None]) -> None:
        self._inner = inner
        self._guard = guard
        self._ledger_sku = ledger_sku
        self.items_max = inner.items_max
        self.read_max = inner.read_max

    async def read_skus(self, skus: Sequence[str], known: Mapping[str, str] | None = None) -> list[Listing]:
        """See the port."""
        return self._seen(await self._inner.read_skus(skus, known))

    def route(self, write: StockWrite) -> str:
        """See the port."""
        return self._inner.route(write)

    async def write_stock(self, writes: Sequence[StockWrite]) -> list[WriteResult]:
        """See the port."""
        results = await self._inner.write_stock(writes)
        for result in results:
            if result.shown is not None:
                self._guard.saw(result.write.sku, result.shown.quantity)
        return results

    async def listings(self) -> AsyncIterator[list[Listing]]:
        """See the port."""
        async for page in self._inner.listings():
            yield self._seen(page)

    async def changed_since(self, since: float) -> AsyncIterator[list[Listing]]:
        """See the port."""
        async for page in self._inner.changed_since(since):
            yield self._seen(page)

    async def close(self) -> None:
        """See the port."""
        await self._inner.close()

    def _seen(self, listings: list[Listing]) -> list[Listing]:
        for one in listings:
            sku = self._ledger_sku(one.sku) if one.sku else None
            if sku is not None:
                self._guard.saw(sku, one.quantity)
        return listings


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What waits for an operator at one shop. Times: seconds since 1970."""

    channel: str
    held: int
    on_sale: int
    since: float | None
    approved_until: float
    author: str
    reason: str


class Approvals:
    """Where the publisher says what waits, and an operator says that it may go. Calls block; raise HistoryError."""

    def __init__(self, engine: Engine, channel: str) -> None:
        self._engine = engine
        self._channel = channel

    def tell(self, held: int, on_sale: int, now: float) -> None:
        """Say how many zeros wait."""
        table = shop_approvals
        with writing(self._engine) as connection:
            insert = upsert(connection, table).values(
                channel=self._channel,
                held=held,
                on_sale=on_sale,
                since=now if held else None,
                approved_until=0.0,
                author="",
                reason="",
            )
            since = sa.case(
                (insert.excluded.held == 0, sa.null()), else_=sa.func.coalesce(table.c.since, now)
            )
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["channel"],
                    set_={"held": insert.excluded.held, "on_sale": insert.excluded.on_sale, "since": since},
                )
            )

    def approve(self, author: str, reason: str, now: float) -> Held | None:
        """Let what waits go, and what follows within APPROVED_S. Returns what waited; None: nothing does."""
        found = self.find()
        if found is None or not found.held:
            return None
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(shop_approvals)
                .where(shop_approvals.c.channel == self._channel)
                .values(approved_until=now + APPROVED_S, author=author[:128], reason=reason[:512])
            )
        return found

    def find(self) -> Held | None:
        """Return what waits; None: nothing ever did."""
        columns = [shop_approvals.c[name] for name in Held.__slots__]
        with reading(self._engine) as connection:
            row = connection.execute(
                sa.select(*columns).where(shop_approvals.c.channel == self._channel)
            ).mappings()
            return next((Held(**one) for one in row), None)

    def zeroed_since(self, since: float) -> list[tuple[float, str]]:
        """Return what was set to 0 since a time, the oldest first."""
        table = shop_skus
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table.c.acked_at, table.c.sku)
                .where(table.c.channel == self._channel, table.c.acked == 0, table.c.acked_at > since)
                .order_by(table.c.acked_at)
            )
            return [(row.acked_at, row.sku) for row in rows]


async def keep_guard(
    guard: ZeroGuard,
    approvals: Approvals,
    released: Callable[[], object],
    *,
    channel: str,
    now: Callable[[], float],
    pause: Callable[[], Awaitable[object]],
) -> None:
    """Bring guard and operator together until cancelled. ``released`` lets what is held go; ``pause()`` is awaited."""
    told: tuple[int, int] | None = None
    while True:
        state = (len(guard.held), guard.on_sale)
        if told is None or state[0] != told[0]:
            await asyncio.to_thread(approvals.tell, *state, now())
            if state[0] and not (told and told[0]):
                _LOG.error(
                    "too many skus would go to 0 at once: they wait for `availability publish approve`",
                    channel=channel,
                    held=state[0],
                    on_sale=state[1],
                    limit=guard.limit,
                )
            told = state
        found = await asyncio.to_thread(approvals.find)
        if found is not None and found.approved_until > max(now(), guard.approved_until):
            guard.approve(found.approved_until)
            released()
            _LOG.warning("zeros were approved", channel=channel, author=found.author, reason=found.reason)
        await pause()
