"""What the publisher must not forget: wanted, under way and acknowledged numbers, and who may write to a shop.

Rows of the history database (`availability.history.shop_tables`). What the feed brought and its place go into one
transaction, so that a killed publisher goes on where it was. Before a write goes out it is noted as under way, together
with the proof that the shop is still ours; whoever comes after a killed publisher knows which numbers may still arrive.

Synchronous: callers run it on a thread. Times: seconds since 1970. Raises HistoryError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.history.database import reading, upsert, writing
from availability.history.shop_tables import TO_DO, shop_skus, shops
from publisher import statements
from publisher.storefront import Listing, StockStatus

LOAD_ROWS = 10_000
RUNNING, OPEN, STOPPED, WAITING = "RUNNING", "OPEN", "STOPPED", "WAITING"


class OwnerLost(Exception):
    """Another publisher writes to this shop now; nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One sku's number as the feed brought it: the ledger's ``sellable`` and the ``wanted`` made of it."""

    sku: str
    sellable: int
    wanted: int
    version: str
    heard_at: float
    blocked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One sku as it is kept."""

    sku: str
    sellable: int
    wanted: int
    wanted_version: str
    wanted_since: float
    blocked: bool
    pending: bool
    asked: bool
    acked: int | None
    acked_version: str
    acked_at: float | None
    shown: int | None
    sending: int | None
    sending_at: float | None
    sending_owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A number about to be sent."""

    sku: str
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of the number ``sent``. ``acked``: what the shop acknowledged, None: unknown or nothing.

    ``version``: the ledger's, of the number. ``pending``: it has to be sent again.
    ``shown``: what the shop's answer showed, where it showed something.
    """

    sku: str
    sent: int
    acked: int | None
    version: str
    pending: bool
    shown: int | None = None
    status: StockStatus = StockStatus.UNKNOWN
    forget: bool = False
    """Nobody knows what the shop shows: what it acknowledged before counts no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopState:
    """One shop's row."""

    channel: str
    owner: str
    owned_until: float
    resume_version: str
    state: str
    reason: str
    state_since: float
    heard_at: float | None
    catalogue_at: float | None
    changes_since: float | None


class State:
    """One channel's rows, for the publisher that calls itself ``owner`` (unique to a process)."""

    def __init__(self, engine: Engine, channel: str, owner: str) -> None:
        self._engine = engine
        self.channel = channel
        self.owner = owner
        self._mine = shop_skus.c.channel == channel

    # --- Ownership ----------------------------------------------------------------------------------------

    def acquire(self, now: float, lease_s: float) -> bool:
        """Take the shop, or keep it, for so long. Returns False where somebody else has it."""
        with writing(self._engine) as connection:
            clock = _clock(connection, now)
            connection.execute(
                upsert(connection, shops)
                .values(
                    channel=self.channel,
                    owner="",
                    owned_until=0.0,
                    resume_version="",
                    state=RUNNING,
                    reason="",
                    state_since=now,
                )
                .on_conflict_do_nothing(index_elements=["channel"])
            )
            taken = connection.execute(
                sa.update(shops)
                .where(
                    shops.c.channel == self.channel,
                    sa.or_(shops.c.owner == self.owner, shops.c.owned_until < clock),
                )
                .values(owner=self.owner, owned_until=clock + lease_s)
            )
            return taken.rowcount == 1

    def give_up(self) -> None:
        """Leave the shop to others at once."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(shops)
                .where(shops.c.channel == self.channel, shops.c.owner == self.owner)
                .values(owner="", owned_until=0.0)
            )

    def _hold(self, connection: Connection, now: float) -> None:
        """Prove within a transaction that the shop is ours, and keep it ours until the transaction ends."""
        bound = {"b_channel": self.channel, "b_owner": self.owner, "b_clock": _clock(connection, now)}
        if connection.execute(statements.HOLD, bound).rowcount != 1:
            raise OwnerLost(self.channel)

    # --- Numbers ------------------------------------------------------------------------------------------

    def heard(
        self, changes: Sequence[Change], resume_version: str, now: float, *, always: bool = False
    ) -> None:
        """Keep what the feed brought, and how far it has come. Raises OwnerLost.

        What the shop acknowledged last needs no write, unless ``always``: the shop changes its numbers itself.
        """
        rows = [
            {
                "b_channel": self.channel,
                "b_sku": one.sku,
                "b_sellable": one.sellable,
                "b_wanted": one.wanted,
                "b_version": one.version,
                "b_heard_at": one.heard_at,
                "b_blocked": one.blocked,
                "b_always": always,
            }
            for one in changes
        ]
        place = {"b_channel": self.channel, "b_now": now, "b_resume": resume_version or None}
        with writing(self._engine) as connection:
            self._hold(connection, now)
            if rows:
                connection.execute(statements.HEARD[connection.dialect.name], rows)
            connection.execute(statements.PLACE, place)

    def begin(self, sendings: Sequence[Sending], now: float) -> None:
        """Note numbers as under way, right before they are sent. Raises OwnerLost: then nothing may be sent."""
        rows = [
            {
                "b_channel": self.channel,
                "b_sku": one.sku,
                "b_quantity": one.quantity,
                "b_now": now,
                "b_owner": self.owner,
            }
            for one in sendings
        ]
        with writing(self._engine) as connection:
            self._hold(connection, now)
            connection.execute(statements.BEGIN, rows)

    def settle(self, settled: Sequence[Settled], now: float) -> None:
        """Note what became of numbers under way. A number heard meanwhile stays pending."""
        acked = [self._bound(one, now) for one in settled if one.acked is not None]
        others = [self._bound(one, now) for one in settled if one.acked is None]
        with writing(self._engine) as connection:
            if acked:
                connection.execute(statements.ACKED, acked)
            if others:
                connection.execute(statements.NOT_ACKED, others)

    def _bound(self, one: Settled, now: float) -> dict[str, object]:
        bound: dict[str, object] = {
            "b_channel": self.channel,
            "b_sku": one.sku,
            "b_pending": one.pending,
            "b_shown": one.shown,
            "b_status": one.status.value,
            "b_now": now,
        }
        if one.acked is None:
            return bound | {"b_forget": one.forget, "b_sent": one.sent}
        return bound | {"b_acked": one.acked, "b_version": one.version}

    def saw(self, listings: Iterable[tuple[str, Listing]], now: float) -> None:
        """Keep what the shop shows of skus (the ledger's names) when it is read."""
        rows = [
            {
                "b_channel": self.channel,
                "b_sku": sku,
                "b_shown": one.quantity,
                "b_status": one.status.value,
                "b_now": now,
            }
            for sku, one in listings
        ]
        if rows:
            with writing(self._engine) as connection:
                connection.execute(statements.SAW, rows)

    def ask(self, skus: Sequence[str]) -> int:
        """Have the running publisher write these again, whatever was acknowledged. Returns how many it knows."""
        if not skus:
            return 0
        count = 0
        with writing(self._engine) as connection:
            for at in range(0, len(skus), 500):
                done = connection.execute(
                    sa.update(shop_skus)
                    .where(self._mine, shop_skus.c.sku.in_(skus[at : at + 500]))
                    .values(asked=True)
                )
                count += done.rowcount
        return count

    def asked(self) -> list[Kept]:
        """Return what operators asked for and has not begun."""
        return self._rows(sa.and_(TO_DO, shop_skus.c.asked))

    def open_rows(self) -> list[Kept]:
        """Return what has yet to be written, or was under way."""
        return self._rows(
            sa.or_(shop_skus.c.pending, shop_skus.c.asked, shop_skus.c.sending.is_not(None)),
        )

    def rows(self, skus: Sequence[str] | None = None) -> list[Kept]:
        """Return these skus, or all."""
        if skus is None:
            return self._rows(sa.true())
        found: list[Kept] = []
        for at in range(0, len(skus), 500):
            found += self._rows(shop_skus.c.sku.in_(skus[at : at + 500]))
        return found

    def _rows(self, where: sa.ColumnElement[bool]) -> list[Kept]:
        columns = [shop_skus.c[name] for name in Kept.__slots__]
        query = sa.select(*columns).where(self._mine, where).order_by(shop_skus.c.wanted_since)
        with reading(self._engine) as connection:
            return [Kept(**row) for row in connection.execute(query).mappings()]

    def acknowledged(self) -> list[tuple[str, int | None]]:
        """Return every sku with what the shop acknowledged last; None: nothing, or nobody knows."""
        table = shop_skus
        query = sa.select(table.c.sku, table.c.acked).where(self._mine)
        with reading(self._engine) as connection:
            return [(row.sku, row.acked) for row in connection.execute(query)]

    # --- The shop -----------------------------------------------------------------------------------------

    def shop(self) -> ShopState | None:
        """Return the shop's row; None: nobody has published to it."""
        columns = [shops.c[name] for name in ShopState.__slots__]
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(*columns).where(shops.c.channel == self.channel)).mappings()
            return next((ShopState(**one) for one in row), None)

    def tell(self, state: str, reason: str, now: float) -> None:
        """Say how the shop fares, for whoever asks."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(shops)
                .where(shops.c.channel == self.channel)
                .values(state=state, reason=reason[:500], state_since=now)
            )


def channels(engine: Engine) -> list[str]:
    """Return the channels that somebody has published to."""
    with reading(engine) as connection:
        return list(connection.execute(sa.select(shops.c.channel).order_by(shops.c.channel)).scalars())


def _clock(connection: Connection, now: float) -> float:
    """Return the one clock of all publishers: PostgreSQL's own; SQLite's users share a machine's."""
    if connection.dialect.name == "postgresql":
        found = connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one()
        return float(found)
    return now
