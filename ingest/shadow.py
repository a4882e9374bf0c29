"""A source in shadow: what it says of on_hand is added up and compared with the ledger, and never applied.

A position's figure begins with what the ledger has when the source first speaks of it, or with the source's own
SET_ON_HAND; movements add to it. The difference to the ledger is computed when somebody asks: while movements are under
way from the other source it wanders, and what stays is a fault of the feed or its mapping. `rebase` takes the ledger's
figures of this moment as the beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any  # Any: a column's expression of any type

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.v1 import stock_pb2 as pb
from ingest.database import shadow_events, shadow_positions, upsert

FROM_LEDGER, SAID = "LEDGER", "SAID"
OnHand = Callable[[str], Mapping[str, int]]
"""Asks the ledger for a sku's on_hand by node. Raises ClientError."""

_SIGNS: Mapping[int, int] = {
    pb.DELTA_TYPE_RECEIPT: 1,
    pb.DELTA_TYPE_ADJUSTMENT: 1,
    pb.DELTA_TYPE_SHIPMENT: -1,
    pb.DELTA_TYPE_WRITE_OFF: -1,
    pb.DELTA_TYPE_RETURN_RECEIVED: 1,
    pb.DELTA_TYPE_TRANSFER_OUT: -1,
    pb.DELTA_TYPE_TRANSFER_IN: 1,
}
"""What on_hand does per unit; every other type leaves it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One position: what the source makes of it, and what the ledger has. Times: seconds since 1970."""

    sku: str
    node: str
    says: int
    ledger: int
    based_on: str
    rows: int
    last_at: float

    @property
    def difference(self) -> int:
        """Units that the source has above the ledger."""
        return self.says - self.ledger


class Shadow:
    """The figures of one source in shadow."""

    def __init__(self, engine: Engine, source: str, on_hand: OnHand | None) -> None:
        self._engine = engine
        self._source = source
        self._on_hand = on_hand

    def bases(self, deltas: Iterable[pb.Delta]) -> dict[tuple[str, str], int]:
        """Return the ledger's on_hand of positions that are not known yet. Raises ClientError."""
        wanted = {(delta.sku, delta.node) for delta in deltas if delta.type in _SIGNS and delta.node}
        if not wanted:
            return {}
        table = shadow_positions
        query = sa.select(table.c.sku, table.c.node).where(
            table.c.source == self._source, table.c.sku.in_(sorted({sku for sku, _ in wanted}))
        )
        with self._engine.connect() as connection:
            wanted -= {(sku, node) for sku, node in connection.execute(query)}
        read = {sku: self._read(sku) for sku in {sku for sku, _ in wanted}}
        return {(sku, node): read[sku].get(node, 0) for sku, node in wanted}

    def add(
        self,
        connection: Connection,
        deltas: Iterable[pb.Delta],
        bases: Mapping[tuple[str, str], int],
        now: float,
    ) -> int:
        """Add up deltas within the caller's transaction, each event once; return how many counted."""
        count = 0
        for delta in deltas:
            if not self._first_time(connection, delta, now):
                continue
            count += 1
            sign = _SIGNS.get(delta.type)
            said = delta.type == pb.DELTA_TYPE_SET_ON_HAND
            if not delta.node or (sign is None and not said):
                continue
            occurred = delta.occurred_time.seconds + delta.occurred_time.nanos / 1e9
            moved = 0 if sign is None else sign * delta.quantity
            insert = upsert(connection, shadow_positions).values(
                source=self._source,
                sku=delta.sku,
                node=delta.node,
                base=delta.quantity if said else bases.get((delta.sku, delta.node), 0),
                base_kind=SAID if said else FROM_LEDGER,
                net=moved,
                word_at=occurred if said else 0.0,
                rows=1,
                first_at=now,
                last_at=now,
            )
            kept, new = shadow_positions.c, insert.excluded
            if said:
                # An older word than the one that is known changes nothing.
                newer = new.word_at >= kept.word_at
                changes: dict[str, sa.ColumnElement[Any]] = {
                    "base": sa.case((newer, new.base), else_=kept.base),
                    "base_kind": sa.case((newer, SAID), else_=kept.base_kind),
                    "net": sa.case((newer, 0), else_=kept.net),
                    "word_at": sa.case((newer, new.word_at), else_=kept.word_at),
                }
            else:
                changes = {"net": kept.net + moved}
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["source", "sku", "node"],
                    set_={**changes, "rows": kept.rows + 1, "last_at": now},
                )
            )
        return count

    def report(self, now: float, *, nodes: frozenset[str] = frozenset()) -> list[Compared]:
        """Compare with the ledger as it is, keep what was found, return every position. Raises ClientError."""
        table = shadow_positions
        query = sa.select(table).where(table.c.source == self._source).order_by(table.c.sku, table.c.node)
        with self._engine.connect() as connection:
            rows = [row for row in connection.execute(query).mappings() if not nodes or row["node"] in nodes]
        found: list[Compared] = []
        read: dict[str, Mapping[str, int]] = {}
        for row in rows:
            sku, node = row["sku"], row["node"]
            if sku not in read:
                read = {sku: self._read(sku)}  # rows come by sku
            found.append(
                Compared(
                    sku=sku,
                    node=node,
                    says=row["base"] + row["net"],
                    ledger=read[sku].get(node, 0),
                    based_on=row["base_kind"],
                    rows=row["rows"],
                    last_at=row["last_at"],
                )
            )
        with self._engine.begin() as connection:
            for one in found:
                connection.execute(
                    sa.update(table)
                    .where(table.c.source == self._source, table.c.sku == one.sku, table.c.node == one.node)
                    .values(ledger=one.ledger, compared_at=now)
                )
        return found

    def rebase(self, now: float) -> int:
        """Take the ledger's figures of this moment as the beginning; return of how many positions."""
        found = self.report(now)
        table = shadow_positions
        with self._engine.begin() as connection:
            for one in found:
                connection.execute(
                    sa.update(table)
                    .where(table.c.source == self._source, table.c.sku == one.sku, table.c.node == one.node)
                    .values(base=one.ledger, base_kind=FROM_LEDGER, net=0, rows=0)
                )
        return len(found)

    def forget(self, covers: Callable[[str, str], bool]) -> int:
        """Drop positions that are not compared any more; return how many."""
        table, dropped = shadow_positions, 0
        with self._engine.begin() as connection:
            here = table.c.source == self._source
            for sku, node in connection.execute(sa.select(table.c.sku, table.c.node).where(here)).all():
                if covers(sku, node):
                    dropped += 1
                    connection.execute(sa.delete(table).where(here, table.c.sku == sku, table.c.node == node))
        return dropped

    def _first_time(self, connection: Connection, delta: pb.Delta, now: float) -> bool:
        own = f"{delta.stream}\0{delta.source_sequence or delta.event_id}"
        insert = upsert(connection, shadow_events).values(
            source=self._source, name=hashlib.sha256(own.encode()).hexdigest()[:40], seen_at=now
        )
        return connection.execute(insert.on_conflict_do_nothing()).rowcount > 0

    def _read(self, sku: str) -> Mapping[str, int]:
        return self._on_hand(sku) if self._on_hand is not None else {}
