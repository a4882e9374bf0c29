"""The book of one shop's orders: what the ledger was told, what it has yet to hear, whom webhooks named.

Words are written down before they are sent and struck out after the ledger's durable ack, so a killed process sends
them again under the same ids. The place up to which the shop was polled is noted in the transaction of the orders
that were read. Nothing of a customer comes in here; a test reads the stored bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading, upsert, writing
from availability.history.order_tables import shop_order_hints, shop_order_places, shop_orders
from publisher.orders.facts import TRASH, VANISHED, Fact, Told, from_bytes, to_bytes

IDS_PER_QUERY = 500
_GONE = frozenset({TRASH, VANISHED})
_IDS = frozenset({"channel", "order_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One order after a reading: what is remembered, and the words that the ledger has yet to hear."""

    order_id: int
    told: Told
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A webhook named this order. ``number`` tells a later hint from the one that is worked at."""

    order_id: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far the shop was polled, and since when its orders are told: microseconds, the shop's times."""

    modified_us: int
    begun_us: int


class OrderBook:
    """One shop's part of the tables. Calls block on the database; every method raises HistoryError."""

    def __init__(self, engine: Engine, channel: str) -> None:
        self._engine = engine
        self._channel = channel

    # --- What was told

    def told(self, order_ids: Iterable[int]) -> dict[int, Told]:
        """Return what is remembered of these orders; what is not known is absent."""
        table, wanted, found = shop_orders, list(order_ids), dict[int, Told]()
        with reading(self._engine) as connection:
            for at in range(0, len(wanted), IDS_PER_QUERY):
                rows = connection.execute(
                    sa.select(table.c.order_id, table.c.told).where(
                        table.c.channel == self._channel,
                        table.c.order_id.in_(wanted[at : at + IDS_PER_QUERY]),
                    )
                )
                found.update({row.order_id: from_bytes(row.told) for row in rows})
        return found

    def note(self, entries: Sequence[Entry], *, now: float, place: Place | None = None) -> None:
        """Write down what was read and what is to be said, and how far the shop was polled, all at once."""
        loud = [_row(self._channel, entry, now) for entry in entries if entry.facts]
        quiet = [_row(self._channel, entry, now) for entry in entries if not entry.facts]
        with writing(self._engine) as connection:
            for rows, kept in ((loud, _IDS), (quiet, _IDS | {"unsent", "refused"})):
                if rows:
                    insert = upsert(connection, shop_orders)
                    moved = {name: insert.excluded[name] for name in rows[0] if name not in kept}
                    connection.execute(
                        insert.on_conflict_do_update(index_elements=sorted(_IDS), set_=moved), rows
                    )
            if place is not None:
                where = {"modified_us": place.modified_us, "begun_us": place.begun_us}
                connection.execute(
                    upsert(connection, shop_order_places)
                    .values(channel=self._channel, **where)
                    .on_conflict_do_update(index_elements=["channel"], set_=where)
                )

    def unsent(self, limit: int) -> list[Entry]:
        """Return orders with words that the ledger has not acknowledged, by their ids."""
        table = shop_orders
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table.c.order_id, table.c.told, table.c.unsent)
                .where(table.c.channel == self._channel, table.c.unsent != b"")
                .order_by(table.c.order_id)
                .limit(limit)
            ).all()
        return [
            Entry(order_id=row.order_id, told=from_bytes(row.told), facts=_unpacked(row.unsent))
            for row in rows
        ]

    def sent(self, entries: Sequence[Entry], refused: Mapping[int, str] | None = None) -> None:
        """Strike out words that the ledger has answered; ``refused``: by order, why it did not take one."""
        table, reasons = shop_orders, refused or {}
        struck = sa.update(table).where(
            table.c.channel == self._channel,
            table.c.order_id == sa.bindparam("its_id"),
            table.c.told == sa.bindparam("its_words", type_=sa.LargeBinary),
        )
        with writing(self._engine) as connection:
            connection.execute(
                struck.values(unsent=b"", refused=sa.bindparam("why")),
                [
                    {
                        "its_id": entry.order_id,
                        "its_words": to_bytes(entry.told),
                        "why": reasons.get(entry.order_id, ""),
                    }
                    for entry in entries
                ],
            )

    def refused(self, limit: int) -> dict[int, str]:
        """Return orders of which the ledger did not take a word, and why, by their ids."""
        table = shop_orders
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table.c.order_id, table.c.refused)
                .where(table.c.channel == self._channel, table.c.refused != "")
                .order_by(table.c.order_id)
                .limit(limit)
            )
            return {row.order_id: row.refused for row in rows}

    # --- Where the polling stands

    def place(self) -> Place | None:
        """Return how far the shop was polled; None: never."""
        table = shop_order_places
        with reading(self._engine) as connection:
            row = connection.execute(
                sa.select(table.c.modified_us, table.c.begun_us).where(table.c.channel == self._channel)
            ).one_or_none()
        return Place(modified_us=row.modified_us, begun_us=row.begun_us) if row is not None else None

    def to_check(self, *, before: float, modified_after_us: int, limit: int) -> list[int]:
        """Return orders that count and were not seen in the shop since a time, the longest unseen first."""
        table = shop_orders
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table.c.order_id)
                .where(
                    table.c.channel == self._channel,
                    ~table.c.gone,
                    table.c.open_units > 0,
                    table.c.checked_at < before,
                    table.c.modified_us >= modified_after_us,
                )
                .order_by(table.c.checked_at, table.c.order_id)
                .limit(limit)
            )
            return [row.order_id for row in rows]

    def checked(self, order_ids: Iterable[int], now: float) -> None:
        """Note that these orders were seen in the shop."""
        table = shop_orders
        with writing(self._engine) as connection:
            for order_id in order_ids:
                connection.execute(
                    sa.update(table)
                    .where(table.c.channel == self._channel, table.c.order_id == order_id)
                    .values(checked_at=now)
                )

    def forget(self, *, before_us: int) -> int:
        """Delete orders that nobody touched since a time; return how many. What is unsent stays."""
        table = shop_orders
        with writing(self._engine) as connection:
            return connection.execute(
                sa.delete(table).where(
                    table.c.channel == self._channel, table.c.modified_us < before_us, table.c.unsent == b""
                )
            ).rowcount

    # --- Hints

    def hint(self, order_id: int, now: float) -> None:
        """Keep that an order has news; the same order is kept once."""
        table = shop_order_hints
        with writing(self._engine) as connection:
            row = upsert(connection, table).values(channel=self._channel, order_id=order_id, number=1, at=now)
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=["channel", "order_id"], set_={"number": table.c.number + 1, "at": now}
                )
            )

    def hints(self, limit: int) -> list[Hint]:
        """Return orders that webhooks named, the longest waiting first."""
        table = shop_order_hints
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table.c.order_id, table.c.number)
                .where(table.c.channel == self._channel)
                .order_by(table.c.at, table.c.order_id)
                .limit(limit)
            ).all()
        return [Hint(order_id=row.order_id, number=row.number) for row in rows]

    def followed(self, hints: Iterable[Hint]) -> None:
        """Strike out hints whose orders were read; a later one of the same order stays."""
        table = shop_order_hints
        with writing(self._engine) as connection:
            for hint in hints:
                connection.execute(
                    sa.delete(table).where(
                        table.c.channel == self._channel,
                        table.c.order_id == hint.order_id,
                        table.c.number == hint.number,
                    )
                )

    def figures(self) -> dict[str, int]:
        """Return how many orders are known, unsent, refused, and named by webhooks that were not followed yet."""
        with reading(self._engine) as connection:
            mine = shop_orders.c.channel == self._channel
            counts = {
                "orders": sa.select(sa.func.count()).where(mine),
                "unsent": sa.select(sa.func.count()).where(mine, shop_orders.c.unsent != b""),
                "refused": sa.select(sa.func.count()).where(mine, shop_orders.c.refused != ""),
                "hints": sa.select(sa.func.count()).where(shop_order_hints.c.channel == self._channel),
            }
            return {name: connection.execute(query).scalar_one() for name, query in counts.items()}


def _row(channel: str, entry: Entry, now: float) -> dict[str, object]:
    return {
        "channel": channel,
        "order_id": entry.order_id,
        "status": entry.told.status,
        "open_units": entry.told.open_units,
        "modified_us": entry.told.modified_us,
        "checked_at": now,
        "gone": entry.told.status in _GONE,
        "told": to_bytes(entry.told),
        "unsent": _packed(entry.facts),
        "refused": "",
    }


def _packed(facts: Sequence[Fact]) -> bytes:
    if not facts:
        return b""
    return msgspec.json.encode([(fact.kind, fact.line, fact.sku, fact.node, fact.quantity) for fact in facts])


def _unpacked(raw: bytes) -> tuple[Fact, ...]:
    if not raw:
        return ()
    rows = msgspec.json.decode(raw, type=list[tuple[str, str, str, str, int]])
    return tuple(
        Fact(kind=kind, line=line, sku=sku, node=node, quantity=quantity)
        for kind, line, sku, node, quantity in rows
    )
