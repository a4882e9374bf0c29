"""Big baskets with repeated skus, from many clients at once: all or none."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests import linearizability as lin
from tests.conftest import Names, Server
from tests.linearizability import HOLD_MS, Board, Operation
from tests.model import Granted, Model, Policy, add_up
from tests.wire import Service

SKUS = 60
LINES_MAX = 100
OPERATIONS = 600
OPERATIONS_FULL = 20_000


@pytest.mark.timeout(1_800)
def test_baskets_are_all_or_none(
    server: Server,
    client: Service,
    connect: Callable[[], Service],
    names: Names,
    seed: int,
    full: bool,
) -> None:
    """Baskets of 1 to 100 lines with repeats: each holds exactly what was asked for, or nothing at all."""
    model = Model()
    skus = [names.sku(number) for number in range(SKUS)]
    nodes = tuple(names.node(number) for number in range(3))
    channel = names.channel()
    rng = random.Random(seed)
    opening = [
        lin.adjust(names.id("wms"), f"{sku} {node}", sku, node, rng.randint(20, 60))
        for sku in skus
        for node in nodes
    ]
    for node in nodes:
        client.set_node(node, online=True)
        model.set_node(node, online=True)
    client.set_channel(channel, Policy(nodes=nodes))
    model.set_channel(channel, Policy(nodes=nodes))
    assert {result for result, _ in client.apply_deltas(opening)} == {"APPLIED"}
    for delta in opening:
        model.apply_delta(delta)

    def draw(rng: random.Random, board: Board, new: str) -> Operation:
        known = board.pick(board.reservations, rng)
        if known and rng.random() < 0.35:
            return Operation("release", (new, known))
        lines = tuple((rng.choice(skus), rng.randint(1, 4)) for _ in range(rng.randint(1, LINES_MAX)))
        return Operation("reserve", (new, channel, lines), {"hold_ms": HOLD_MS})

    operations = OPERATIONS_FULL if full else OPERATIONS
    seen = lin.run(connect, draw, seed=seed, prefix=names.id(), clients=8, operations=operations)

    outcomes = set()
    for one in seen:
        if isinstance(one.answer, Granted):
            outcomes.add(one.answer.outcome)
            if one.answer.outcome == "RESERVED" and not one.answer.replayed:
                held: dict[str, int] = {}
                for (sku, _), units in one.units.items():
                    held[sku] = held.get(sku, 0) + units
                assert held == add_up(one.operation.args[2])
            elif not one.answer.reservation_id:
                assert not one.units
    assert outcomes == {"RESERVED", "INSUFFICIENT_STOCK"}
    assert not lin.order_violations(seen)
    lin.Replay(model).check(seen)
    model.audit()
    assert not lin.differences(model, client, [channel], skus)
    assert not lin.differences_in_redis(model, server.redis, skus)
