"""validate_only: what a policy write says it would move is what moves when it is made, and asking moves nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from availability.v1 import availability_pb2 as av
from availability.v1 import common_pb2 as co
from availability.v1 import policy_pb2 as pol
from tests.conftest import serving
from tests.model import Delta, Refusal
from tests.wire import Service

NODES = ("n1", "n {2}", "ñ:3", "n4")
NEW_NODES = ("n5", "n6")
SKUS = tuple(f"s{number}" for number in range(8))
KITS = ("kit 1", "kit 2", "kit of kits")
CHANNELS = ("web", "pos", "eu", "outlet")
Sellables = dict[tuple[str, str], int]


@pytest.fixture
def client() -> Iterator[Service]:
    with serving() as server:
        service = Service(server.grpc)
        yield service
        service.close()


def sellables(client: Service, channels: set[str]) -> Sellables:
    every = [*SKUS, *KITS, "never seen", "new sku"]
    found: Sellables = {}
    for channel in channels:
        request = av.BatchGetAvailabilityRequest(channel=channel, skus=every, strong=True)
        answer = client.call(client.reads.BatchGetAvailability, request)
        found.update({(channel, sku): n for sku, n in zip(every, answer.sellable_quantities, strict=True)})
    return found


def buffer(drawn: random.Random) -> co.Buffer:
    if drawn.random() < 0.5:
        return co.Buffer(units=drawn.randrange(4))
    return co.Buffer(percent=drawn.choice([0, 10, 50, 100]))


def channel_policy(drawn: random.Random) -> pol.ChannelPolicy:
    every = drawn.random() < 0.4
    nodes = [] if every else drawn.sample([*NODES, *NEW_NODES], drawn.randint(1, 4))
    return pol.ChannelPolicy(
        channel=drawn.choice([*CHANNELS, "opened by a policy"]),
        all_nodes=every,
        nodes=nodes,
        buffer=buffer(drawn),
        oversell_limit=drawn.choice([0, 0, 3]),
        staleness=drawn.choice([pol.STALENESS_KEEP, pol.STALENESS_EXCLUDE]),
    )


def write(drawn: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw one policy write of any kind."""
    channel, sku = drawn.choice([*CHANNELS, "opened by a write"]), drawn.choice([*SKUS, *KITS, "new sku"])
    node = drawn.choice([*NODES, *NEW_NODES])
    where = {"channel": channel, "sku": sku}
    override = pol.SkuOverride(
        buffer=buffer(drawn) if drawn.random() < 0.5 else None,
        oversell_limit=drawn.choice([None, 0, 2]),
        excluded_nodes=drawn.sample(NODES, drawn.randrange(2)),
    )
    stop = drawn.choice([where, {"sku": sku}, {"channel": channel}])
    state = drawn.choice([co.SALE_STATE_BLOCKED, co.SALE_STATE_SELLABLE])
    quantity = drawn.choice([None, 0, 1, 5])
    feed: dict[str, Any] = {"source": "erp", "node": node}
    if drawn.random() < 0.7:
        feed["expected_interval"] = Duration(seconds=60)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("SetChannelPolicy", {"policy": channel_policy(drawn)}),
        ("SetSkuOverride", {**where, "override": override}),
        ("ClearSkuOverride", where),
        ("SetSafetyStock", {"sku": sku, "node": node, "quantity": quantity}),
        ("SetSafetyStock", {"node": node, "quantity": drawn.randrange(4)}),
        ("SetNode", {"node": node, "state": drawn.choice([co.NODE_STATE_ONLINE, co.NODE_STATE_OFFLINE])}),
        ("SetSaleState", {**stop, "state": state}),
    ]
    parts = drawn.sample([*SKUS[:4], *KITS], drawn.randint(0, 3))
    components = [pol.KitComponent(sku=part, units=drawn.randint(1, 3)) for part in parts]
    kinds += [
        ("SetRingFence", {**where, "units": drawn.randrange(4)}),
        ("SetFeed", feed),
        ("SetKit", {"kit_sku": drawn.choice(KITS), "components": components}),
    ]
    return drawn.choice(kinds)


def prepared(client: Service, drawn: random.Random) -> None:
    """Stock, holds and a few policies, so that there is something to move."""
    deltas = [
        Delta(
            source="erp",
            type="RECEIPT",
            event_id=f"{sku} {node}",
            sku=sku,
            node=node,
            quantity=drawn.randint(1, 9),
        )
        for sku in SKUS
        for node in NODES
        if drawn.random() < 0.7
    ]
    client.apply_deltas(deltas)
    for number in range(6):
        client.reserve(f"r{number}", drawn.choice(CHANNELS), [(drawn.choice(SKUS), 2)], allow_partial=True)


def send(client: Service, method: str, fields: dict[str, Any], *, validate_only: bool) -> Any:
    request = getattr(pol, f"{method}Request")(validate_only=validate_only, **client._policy_ids(), **fields)
    return client.call(getattr(client.policies, method), request)


def test_what_a_preview_says_is_what_moves(client: Service, seed: int) -> None:
    """For writes of every kind in any order; refusals are the same, and a preview itself moves nothing."""
    drawn = random.Random(seed)
    prepared(client, drawn)
    opened = set(CHANNELS)
    before = sellables(client, opened)
    for number in range(250):
        method, fields = write(drawn)
        try:
            asked = send(client, method, fields, validate_only=True)
        except Refusal as refusal:
            with pytest.raises(Refusal, match=refusal.reason):
                send(client, method, fields, validate_only=False)
            continue
        assert sellables(client, opened) == before, f"write {number}: the preview moved something"
        version = send(client, method, fields, validate_only=False).version
        assert asked.version != version
        after = sellables(client, opened)
        moved = {place: (before[place], after[place]) for place in after if before[place] != after[place]}
        preview = asked.preview
        told = {(m.channel, m.sku): (m.sellable_before, m.sellable_after) for m in preview.moves}
        told = {place: sizes for place, sizes in told.items() if place[0] in opened}
        assert told == moved, f"write {number}: {method} {fields}"
        sizes = [abs(m.sellable_after - m.sellable_before) for m in preview.moves]
        assert sizes == sorted(sizes, reverse=True)
        assert preview.moved_sellables == len(preview.moves)
        assert preview.moved_skus == len({m.sku for m in preview.moves})
        before = after
        if number % 10 == 0:  # channels that nobody asked for until now
            opened |= {"opened by a policy", "opened by a write"} if number > 100 else set()
            before = sellables(client, opened)


def test_a_preview_asks_for_no_id_that_is_remembered(client: Service) -> None:
    """The same request, without validate_only, is made: a preview is no first attempt of it."""
    ids = client._policy_ids()
    request = pol.SetNodeRequest(node="n9", state=co.NODE_STATE_ONLINE, validate_only=True, **ids)
    for _ in range(2):
        client.call(client.policies.SetNode, request)
    request.validate_only = False
    answer = client.call(client.policies.SetNode, request)
    assert not answer.replayed
    assert answer.version != ""
    request = pol.SetNodeRequest(
        node="n9", state=co.NODE_STATE_ONLINE, validate_only=True, etag="-", **client._policy_ids()
    )
    with pytest.raises(Refusal, match="ETAG_MISMATCH"):
        client.call(client.policies.SetNode, request)


def test_a_preview_tells_the_largest_moves(client: Service) -> None:
    """At most a thousand of many, the largest first, and counts all of them."""
    deltas = [
        Delta(source="erp", type="RECEIPT", event_id=f"{n}", sku=f"many {n}", node="n1", quantity=n + 1)
        for n in range(1_500)
    ]
    client.apply_deltas(deltas)
    client.sellables("web", ["many 0"], strong=True)
    asked = send(client, "SetNode", {"node": "n1", "state": co.NODE_STATE_OFFLINE}, validate_only=True)
    assert (asked.preview.moved_skus, asked.preview.moved_sellables) == (1_500, 1_500)
    assert [move.sellable_before for move in asked.preview.moves] == list(range(1_500, 500, -1))
    assert {move.sellable_after for move in asked.preview.moves} == {0}
    client.apply_delta(
        Delta(source="erp", type="RECEIPT", event_id="x", sku="one more", node="n1", quantity=1)
    )
