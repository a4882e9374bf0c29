"""How storefronts fare, from the database: for whoever asks, without the process that publishes."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading
from availability.history.shop_tables import shop_approvals, shop_letters, shop_listings, shop_skus, shops
from publisher.letters import LETTER_WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopStatus:
    """One storefront. Ages in seconds; None: never.

    ``publishing``: a process has the shop now. ``backlog``: skus whose latest number it has yet to acknowledge, the
    oldest heard ``lag_s`` ago. ``held``: zeros that wait for an operator.
    """

    channel: str
    publishing: bool
    owner: str
    state: str
    reason: str
    skus: int
    backlog: int
    lag_s: float
    letters: int
    held: int
    listings: int
    heard_s: float | None
    catalogue_s: float | None
    last_acked_s: float | None


def statuses(engine: Engine, now: float) -> list[ShopStatus]:
    """Return every storefront that somebody has published to. Raises HistoryError."""
    table = shop_skus
    with reading(engine) as connection:
        rows = connection.execute(sa.select(shops).order_by(shops.c.channel)).all()
        skus = {
            row[0]: row[1:]
            for row in connection.execute(
                sa.select(table.c.channel, sa.func.count(), sa.func.max(table.c.acked_at)).group_by(
                    table.c.channel
                )
            )
        }
        waiting = {
            row[0]: row[1:]
            for row in connection.execute(
                sa.select(table.c.channel, sa.func.count(), sa.func.min(table.c.wanted_since))
                .where(table.c.pending)
                .group_by(table.c.channel)
            )
        }
        held = {
            row.channel: row.held
            for row in connection.execute(sa.select(shop_approvals.c.channel, shop_approvals.c.held))
        }
        letters = _counts(connection, shop_letters, shop_letters.c.state == LETTER_WAITING)
        listings = _counts(connection, shop_listings, sa.true())
    found = []
    for row in rows:
        count, last_acked = skus.get(row.channel, (0, None))
        backlog, oldest = waiting.get(row.channel, (0, None))
        found.append(
            ShopStatus(
                channel=row.channel,
                publishing=row.owned_until >= now,
                owner=row.owner,
                state=row.state,
                reason=row.reason,
                skus=count,
                backlog=backlog,
                lag_s=_age(oldest, now) or 0.0,
                letters=letters.get(row.channel, 0),
                held=held.get(row.channel, 0),
                listings=listings.get(row.channel, 0),
                heard_s=_age(row.heard_at, now),
                catalogue_s=_age(row.catalogue_at, now),
                last_acked_s=_age(last_acked, now),
            )
        )
    return found


def _counts(connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> dict[str, int]:
    query = sa.select(table.c.channel, sa.func.count()).where(where).group_by(table.c.channel)
    return {row[0]: row[1] for row in connection.execute(query)}


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else max(0.0, now - at)
