"""Dead letters: numbers that a shop will not take, each with who has to act, until a person or a later write ends it.

One letter a sku of a shop: a later failure renews it, a later success resolves it. Replaying asks the running publisher
to write the number that is current then; an old one is never sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.history.database import reading, upsert, writing
from availability.history.shop_tables import shop_letters, shop_skus
from publisher.storefront import Category

LETTER_WAITING, REPLAYED, DISCARDED, RESOLVED = "WAITING", "REPLAYED", "DISCARDED", "RESOLVED"
MESSAGE_CHARS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One number that could not be published."""

    sku: str
    category: Category
    reason: str
    message: str
    quantity: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLetter:
    """A letter as it is kept. Times: seconds since 1970."""

    channel: str
    sku: str
    letter_id: str
    category: str
    reason: str
    message: str
    quantity: int
    version: str
    first_seen_at: float
    last_seen_at: float
    count: int
    state: str
    closed_at: float | None
    closed_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LettersSummary:
    """How many letters of one category wait, and the oldest of them as an example."""

    count: int
    sku: str
    message: str


class Letters:
    """The dead letters of all shops."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, channel: str, letters: Iterable[Letter], now: float) -> None:
        """Keep letters; one that is there already counts once more, and one that was closed waits again."""
        rows = [
            {
                "channel": channel,
                "sku": one.sku,
                "letter_id": letter_id(channel, one.sku),
                "category": one.category.value,
                "reason": one.reason[:100],
                "message": one.message[:MESSAGE_CHARS_MAX],
                "quantity": one.quantity,
                "version": one.version,
                "first_seen_at": now,
                "last_seen_at": now,
                "count": 1,
                "state": LETTER_WAITING,
                "closed_at": None,
                "closed_reason": "",
            }
            for one in letters
        ]
        if not rows:
            return
        with writing(self._engine) as connection:
            statement = upsert(connection, shop_letters)
            new, old = statement.excluded, shop_letters.c
            waits = old.state == LETTER_WAITING
            renewed = ("category", "reason", "message", "quantity", "version", "last_seen_at", "state")
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["channel", "sku"],
                    set_={name: new[name] for name in (*renewed, "closed_at", "closed_reason")}
                    | {
                        "count": sa.case((waits, old.count + 1), else_=1),
                        "first_seen_at": sa.case((waits, old.first_seen_at), else_=new.first_seen_at),
                    },
                ),
                rows,
            )

    def resolve(self, channel: str, skus: Sequence[str], now: float) -> None:
        """Close the letters of skus that were published after all."""
        if not skus:
            return
        with writing(self._engine) as connection:
            for at in range(0, len(skus), 500):
                connection.execute(
                    sa.update(shop_letters)
                    .where(
                        shop_letters.c.channel == channel,
                        shop_letters.c.sku.in_(skus[at : at + 500]),
                        shop_letters.c.state == LETTER_WAITING,
                    )
                    .values(state=RESOLVED, closed_at=now, closed_reason="published")
                )

    def find(
        self,
        *,
        channel: str = "",
        category: str = "",
        state: str = LETTER_WAITING,
        letter_id: str = "",
        limit: int = 100,
    ) -> list[KeptLetter]:
        """Return letters, the oldest first. ``letter_id`` may be the beginning of one."""
        table = shop_letters
        query = sa.select(*(table.c[name] for name in KeptLetter.__slots__))
        query = query.order_by(table.c.first_seen_at, table.c.channel, table.c.sku).limit(limit)
        for column, value in (
            (table.c.channel, channel),
            (table.c.category, category),
            (table.c.state, state),
        ):
            if value:
                query = query.where(column == value)
        if letter_id:
            query = query.where(table.c.letter_id.startswith(letter_id, autoescape=True))
        with reading(self._engine) as connection:
            return [KeptLetter(**row) for row in connection.execute(query).mappings()]

    def waiting_skus(self, channel: str, category: Category | None = None) -> list[str]:
        """Return the skus of a shop whose letters wait."""
        table = shop_letters
        query = sa.select(table.c.sku).where(table.c.channel == channel, table.c.state == LETTER_WAITING)
        if category is not None:
            query = query.where(table.c.category == category.value)
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def counts(self) -> dict[tuple[str, str], int]:
        """Return waiting letters by (channel, category)."""
        table = shop_letters
        query = (
            sa.select(table.c.channel, table.c.category, sa.func.count())
            .where(table.c.state == LETTER_WAITING)
            .group_by(table.c.channel, table.c.category)
        )
        with reading(self._engine) as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def summary(self, channel: str) -> dict[str, LettersSummary]:
        """Return what waits of a shop, by category."""
        found: dict[str, LettersSummary] = {}
        for (of, category), count in self.counts().items():
            if of != channel:
                continue
            oldest = self.find(channel=channel, category=category, limit=1)
            if oldest:
                found[category] = LettersSummary(count=count, sku=oldest[0].sku, message=oldest[0].message)
        return found

    def replay(self, letters: Sequence[KeptLetter], now: float) -> int:
        """Ask for another write of each letter's sku, with the number that is current then. Returns how many."""
        with writing(self._engine) as connection:
            for one in letters:
                connection.execute(
                    sa.update(shop_skus)
                    .where(shop_skus.c.channel == one.channel, shop_skus.c.sku == one.sku)
                    .values(asked=True)
                )
            return self._close(connection, letters, REPLAYED, "", now)

    def discard(self, letters: Sequence[KeptLetter], reason: str, now: float) -> int:
        """Give letters up, for a reason. The sku is tried again when its number changes."""
        with writing(self._engine) as connection:
            return self._close(connection, letters, DISCARDED, reason, now)

    @staticmethod
    def _close(
        connection: Connection, letters: Sequence[KeptLetter], state: str, reason: str, now: float
    ) -> int:
        count = 0
        for one in letters:
            done = connection.execute(
                sa.update(shop_letters)
                .where(shop_letters.c.letter_id == one.letter_id, shop_letters.c.state == LETTER_WAITING)
                .values(state=state, closed_at=now, closed_reason=reason[:MESSAGE_CHARS_MAX])
            )
            count += done.rowcount
        return count


def letter_id(channel: str, sku: str) -> str:
    """Return the name of a sku's letter."""
    return hashlib.sha256(f"{channel}\0{sku}".encode()).hexdigest()[:24]
