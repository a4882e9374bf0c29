"""Kits in order feeds: what a source says of a kit, said of its parts.

An order means its kits as they were when it was made: by the recipe that the ledger remembers of the order's commits,
else by the one that was used here when the order first named the kit, else by the kit's recipe of today.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.domain.limits import ID_BYTES_MAX, REFERENCE_BYTES_MAX
from availability.v1 import stock_pb2 as pb
from ingest.database import order_recipes, upsert
from ingest.rows import Category, RowRefused

Recipe = tuple[tuple[str, int], ...]
"""Plain skus with their units in one kit."""
ORDERS_CACHED = 10_000
OF_ORDERS = frozenset(
    {
        pb.DELTA_TYPE_ORDER_PLACED,
        pb.DELTA_TYPE_ORDER_CHANGED,
        pb.DELTA_TYPE_ORDER_ALLOCATED,
        pb.DELTA_TYPE_ORDER_CANCELLED,
        pb.DELTA_TYPE_SHIPMENT,
    }
)


class Recipes(Protocol):
    """What is asked about kits."""

    def kits(self) -> Mapping[str, Recipe]:
        """Return today's recipes by kit. Raises ClientError."""
        ...

    def of_order(self, order_source: str, order_ref: str) -> Mapping[str, Sequence[tuple[int, Recipe]]]:
        """Return by kit how many were committed by which recipe; nothing for an unknown order. Raises ClientError."""
        ...


class KitBook:
    """Explodes what one source says of kits."""

    def __init__(self, engine: Engine, source: str, recipes: Recipes) -> None:
        self._engine = engine
        self._source = source
        self._recipes = recipes
        self._kits: Mapping[str, Recipe] | None = None
        self._orders: dict[tuple[str, str], Mapping[str, Sequence[tuple[int, Recipe]]]] = {}

    def forget(self) -> None:
        """Ask again from now on: recipes may have changed."""
        self._kits = None
        self._orders.clear()

    def known(self, skus: Iterable[str]) -> bool:
        """Tell whether any of these skus is a kit today. Raises ClientError."""
        if self._kits is None:
            self._kits = self._recipes.kits()
        return not self._kits.keys().isdisjoint(skus)

    def parts(self, delta: pb.Delta, now: float) -> list[pb.Delta]:
        """Return what to send instead; the delta itself where it names no kit. Raises RowRefused, ClientError."""
        if delta.type not in OF_ORDERS or not delta.order_ref or not delta.sku:
            return [delta]
        if self._kits is None:
            self._kits = self._recipes.kits()
        current = self._kits.get(delta.sku)
        if current is None:
            return [delta]
        if delta.HasField("shipped_quantity"):
            raise RowRefused(
                Category.MAPPING, "KIT_OPEN_BASIS", f"{delta.sku} is a kit: shipped_quantity has no parts"
            )
        made = self._order(delta).get(delta.sku)
        used = made or [(0, self._used(delta, current, now))]
        units: dict[str, int] = {}
        left = abs(delta.quantity)
        for number, (count, recipe) in enumerate(used):
            taken = left if number == len(used) - 1 else min(left, count)
            left -= taken
            for sku, each in recipe:
                units[sku] = units.get(sku, 0) + taken * each
        sign = -1 if delta.quantity < 0 else 1
        return [self._part(delta, sku, sign * count) for sku, count in sorted(units.items())]

    def _part(self, delta: pb.Delta, sku: str, quantity: int) -> pb.Delta:
        part = pb.Delta()
        part.CopyFrom(delta)
        name = f"{delta.stream}:{delta.source_sequence}" if delta.source_sequence else delta.event_id
        part.sku, part.quantity = sku, quantity
        part.source_sequence = 0
        part.event_id = _short(f"{name}:{sku}")
        if not delta.line:  # its own line: the order may want the part by itself as well
            part.line = delta.sku.encode()[:ID_BYTES_MAX].decode("utf-8", "ignore")
        return part

    def _order(self, delta: pb.Delta) -> Mapping[str, Sequence[tuple[int, Recipe]]]:
        name = (delta.order_source or self._source, delta.order_ref)
        found = self._orders.get(name)
        if found is None:
            if len(self._orders) >= ORDERS_CACHED:
                self._orders.clear()
            found = self._orders[name] = self._recipes.of_order(*name)
        return found

    def _used(self, delta: pb.Delta, current: Recipe, now: float) -> Recipe:
        """Return the recipe of the first word about this kit of the order, which from now on is today's."""
        table, order_source = order_recipes, delta.order_source or self._source
        with self._engine.begin() as connection:
            connection.execute(
                upsert(connection, table)
                .values(
                    order_source=order_source,
                    order_ref=delta.order_ref,
                    kit_sku=delta.sku,
                    recipe=json.dumps(current),
                    seen_at=now,
                )
                .on_conflict_do_nothing()
            )
            kept = connection.execute(
                sa.select(table.c.recipe).where(
                    table.c.order_source == order_source,
                    table.c.order_ref == delta.order_ref,
                    table.c.kit_sku == delta.sku,
                )
            ).scalar_one()
        return tuple((str(sku), int(units)) for sku, units in json.loads(kept))


def _short(name: str) -> str:
    """An event id has a limit; what is longer is named by its digest."""
    if len(name.encode()) <= REFERENCE_BYTES_MAX:
        return name
    return hashlib.sha256(name.encode()).hexdigest()
