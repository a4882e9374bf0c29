"""What shops show, beside source and ledger: three figures of a sku in a line. Reads `history.shop_tables` only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import reading, writing
from availability.history.reconcile_tables import reconcile_shops
from availability.history.shop_tables import shop_skus

IN_FLIGHT_S = 300.0
"""A change that was heard less than this before is on its way, and no difference."""
ROWS_AT_ONCE = 1_000
NOT_SHOWN, OTHER_NUMBER, NOT_ACKNOWLEDGED, BLOCKED = (
    "NOT_SHOWN",
    "OTHER_NUMBER",
    "NOT_ACKNOWLEDGED",
    "BLOCKED",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopSku:
    """What the publisher knows of one sku in one shop. ``waiting_s``: since when the shop lags behind."""

    channel: str
    sku: str
    sellable: int
    wanted: int
    acked: int | None
    shown: int | None
    blocked: bool = False
    pending: bool = False
    waiting_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Source, ledger and shop side by side. ``source_on_hand``: of nodes that snapshots spoke for; None: none did."""

    channel: str
    sku: str
    source_on_hand: int | None
    sellable: int
    wanted: int
    acked: int | None
    shown: int | None
    difference: str


def differences(
    skus: Iterable[ShopSku], source_on_hand: Mapping[str, int], in_flight_s: float = IN_FLIGHT_S
) -> list[Side]:
    """Return the skus that a shop shows otherwise than it should; what is on its way is none. Pure."""
    found = []
    for one in skus:
        if one.pending and one.waiting_s < in_flight_s:
            continue
        if one.blocked:
            why = BLOCKED
        elif one.shown is not None and one.shown != one.wanted:
            why = OTHER_NUMBER
        elif one.acked is None:
            why = NOT_SHOWN
        elif one.acked != one.wanted:
            why = NOT_ACKNOWLEDGED
        else:
            continue
        found.append(
            Side(
                channel=one.channel,
                sku=one.sku,
                source_on_hand=source_on_hand.get(one.sku),
                sellable=one.sellable,
                wanted=one.wanted,
                acked=one.acked,
                shown=one.shown,
                difference=why,
            )
        )
    return found


def read_shops(engine: Engine, now: float) -> list[ShopSku]:
    """Return every sku of every shop that a publisher looks after; none where there is no publisher."""
    table = shop_skus.c
    query = sa.select(
        table.channel, table.sku, table.sellable, table.wanted, table.acked, table.shown, table.blocked,
        table.pending, table.wanted_since,
    ).order_by(table.channel, table.sku)  # fmt: skip
    with reading(engine) as connection:
        return [
            ShopSku(
                channel=row.channel,
                sku=row.sku,
                sellable=row.sellable,
                wanted=row.wanted,
                acked=row.acked,
                shown=row.shown,
                blocked=bool(row.blocked),
                pending=bool(row.pending),
                waiting_s=max(0.0, now - row.wanted_since),
            )
            for row in connection.execute(query)
        ]


def keep_sides(engine: Engine, night: str, sides: Sequence[Side]) -> None:
    """Write down what differed in a night, instead of what was found in it before."""
    table = reconcile_shops
    with writing(engine) as connection:
        connection.execute(sa.delete(table).where(table.c.night == night))
        for first in range(0, len(sides), ROWS_AT_ONCE):
            rows = [
                {"night": night} | {name: getattr(one, name) for name in Side.__slots__}
                for one in sides[first : first + ROWS_AT_ONCE]
            ]
            connection.execute(sa.insert(table), rows)


def kept_sides(engine: Engine, night: str, limit: int = 1_000) -> list[Side]:
    """Return what differed in a night."""
    table = reconcile_shops
    query = (
        sa.select(*(table.c[name] for name in Side.__slots__))
        .where(table.c.night == night)
        .order_by(table.c.channel, table.c.sku)
        .limit(limit)
    )
    with reading(engine) as connection:
        return [Side(**row) for row in connection.execute(query).mappings()]
