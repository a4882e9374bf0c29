"""Clients that fight for six positions, and one plain model that must have seen it all in one order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any  # arguments of operations

import pytest

from tests import linearizability as lin
from tests.conftest import Names, Server
from tests.linearizability import HOLD_MS, Board, Operation
from tests.model import Buffer, Delta, Model, Override, Policy
from tests.wire import Service

BASE_US = (int(time.time()) - 3600) * 1_000_000
OPERATIONS = 4_000
OPERATIONS_FULL = 100_000


class HotPositions:
    """Six positions, three channels that see them differently, and every kind of operation on them."""

    def __init__(self, names: Names) -> None:
        self.skus = [names.sku(number) for number in range(3)]
        self.nodes = [names.node(number) for number in range(2)]
        self.web, self.shop, self.legacy = (names.channel(name) for name in ("web", "shop", "legacy"))
        self.channels = (self.web, self.shop, self.legacy)
        self.source = names.id("wms")

    def set_up(self, service: Service, model: Model) -> None:
        """Start both alike."""
        both: tuple[Any, ...] = (service, model)
        for one in both:
            for node in self.nodes:
                one.set_node(node, online=True)
            one.set_channel(self.web, Policy(nodes=tuple(self.nodes), oversell_limit=3))
            one.set_channel(
                self.shop, Policy(nodes=(self.nodes[1], self.nodes[0]), buffer=Buffer(percent=10))
            )
            one.set_channel(self.legacy, Policy(nodes=(self.nodes[1],), buffer=Buffer(units=2)))
            for place, sku in enumerate(self.skus * 2):
                delta = lin.adjust(self.source, f"start {place}", sku, self.nodes[place // 3], 20)
                assert one.apply_delta(delta)[0] == "APPLIED"

    def draw(self, rng: random.Random, board: Board, new: str) -> Operation:
        kind = rng.choices(
            ("reserve", "commit", "release", "extend", "deltas", "read", "policy"), (40, 15, 17, 2, 17, 8, 1)
        )[0]
        known = board.pick(board.reservations, rng)
        if kind in ("commit", "release", "extend") and known is None:
            kind = "reserve"
        if kind == "reserve":
            lines = tuple((rng.choice(self.skus), rng.randint(1, 4)) for _ in range(rng.choice((1, 1, 2, 3))))
            fields: dict[str, Any] = {"hold_ms": HOLD_MS, "allow_partial": rng.random() < 0.2}
            channel = rng.choice(self.channels)
            if rng.random() < 0.1:
                fields["node"] = self.nodes[1]
            return Operation("reserve", (new, channel, lines), fields)
        if kind == "commit":
            return Operation("commit", (new, known), {"order_source": self.web, "order_ref": self.order(rng)})
        if kind == "release":
            return Operation("release", (new, known))
        if kind == "extend":
            return Operation("extend", (new, known), {"hold_ms": HOLD_MS})
        if kind == "read":
            strong = {"strong": rng.random() < 0.5}
            return Operation("sellables", (rng.choice(self.channels), tuple(self.skus)), strong)
        if kind == "policy":
            if rng.random() < 0.5:
                return Operation("set_node", (self.nodes[0],), {"online": rng.random() < 0.7})
            override = Override(oversell_limit=rng.choice((None, 0, 5)))
            return Operation("set_override", (self.web, rng.choice(self.skus), override))
        deltas = [self.delta(rng, f"{new}-{place}") for place in range(rng.choice((1, 1, 2, 5)))]
        return Operation("apply_deltas", (deltas,))

    def order(self, rng: random.Random) -> str:
        return f"order {rng.randrange(60)}"

    def delta(self, rng: random.Random, event_id: str) -> Delta:
        what = rng.choices(
            (
                "ADJUSTMENT",
                "RECEIPT",
                "QUARANTINE",
                "WRITE_OFF",
                "SHIPMENT",
                "ALLOCATED",
                "CHANGED",
                "CANCELLED",
            ),
            (5, 6, 1, 1, 4, 4, 2, 1),
        )[0]
        fields: dict[str, Any] = {"source": self.source, "event_id": event_id, "sku": rng.choice(self.skus)}
        node = rng.choice(self.nodes)
        if what in ("ADJUSTMENT", "RECEIPT", "QUARANTINE", "WRITE_OFF"):
            quantity = rng.choice((-3, -1, 2, 4)) if what == "ADJUSTMENT" else rng.randint(1, 3)
            reason = "damage" if what in ("QUARANTINE", "WRITE_OFF") else ""
            return Delta(type=what, node=node, quantity=quantity, reason=reason, **fields)
        fields |= {"order_source": self.web, "order_ref": self.order(rng)}
        if what == "SHIPMENT":
            return Delta(type=what, node=node, quantity=rng.choice((-1, 1, 1, 2, 3)), **fields)
        fields["occurred_us"] = BASE_US + rng.randrange(1_000) * 1_000
        if what == "ALLOCATED":
            return Delta(type="ORDER_ALLOCATED", node=node, quantity=rng.randint(0, 3), **fields)
        if what == "CHANGED":
            return Delta(type="ORDER_CHANGED", quantity=rng.randint(0, 4), **fields)
        if rng.random() < 0.5:
            del fields["sku"]
        return Delta(type="ORDER_CANCELLED", **fields)


@pytest.mark.timeout(1_800)
def test_all_answers_fit_one_order(
    server: Server,
    client: Service,
    connect: Callable[[], Service],
    names: Names,
    seed: int,
    full: bool,
) -> None:
    """16 clients, 15 % duplicates: replayed by version, the plain model gives every answer and ends alike."""
    hot, model = HotPositions(names), Model()
    hot.set_up(client, model)
    operations = OPERATIONS_FULL if full else OPERATIONS
    seen = lin.run(connect, hot.draw, seed=seed, prefix=names.id(), operations=operations)
    assert not lin.order_violations(seen)
    lin.Replay(model).check(seen)
    model.audit()
    assert not lin.differences(model, client, hot.channels, hot.skus)
    assert not lin.differences_in_redis(model, server.redis, hot.skus)
