"""Who may change what an operator set: etags, and stops that end by themselves."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from availability.v1 import common_pb2 as co
from availability.v1 import policy_pb2 as pol
from tests.conftest import Names
from tests.model import Delta, Refusal
from tests.wire import Service

NOTHING = "-"


def asked(
    client: Service, method: str, /, **fields: Any
) -> Any:  # Any: each policy request has its own response
    """Send one policy write; fields beyond id and reason as given."""
    request = getattr(pol, f"{method}Request")(**{**client._policy_ids(), **fields})
    return client.call(getattr(client.policies, method), request)


def refused(client: Service, method: str, /, **fields: Any) -> str:
    with pytest.raises(Refusal) as caught:
        asked(client, method, **fields)
    return caught.value.reason


@dataclass
class Thing:
    """Something that one kind of write sets: how to set it, and (where that can be) how to take it away."""

    method: str
    fields: dict[str, Any]
    undo: tuple[str, dict[str, Any]] | None = None
    etag: str = field(default=NOTHING)


def things(names: Names) -> list[Thing]:
    channel, sku, node = names.channel(), names.sku(), names.node()
    policy = pol.ChannelPolicy(channel=channel, all_nodes=True)
    where = {"channel": channel, "sku": sku}
    stop = {"state": co.SALE_STATE_BLOCKED}
    free = {"state": co.SALE_STATE_SELLABLE}
    return [
        Thing("SetChannelPolicy", {"policy": policy}),
        Thing(
            "SetSkuOverride",
            {**where, "override": pol.SkuOverride(oversell_limit=1)},
            ("ClearSkuOverride", where),
        ),
        Thing("SetNode", {"node": node, "state": co.NODE_STATE_ONLINE}),
        Thing(
            "SetSafetyStock",
            {"sku": sku, "node": names.node("own"), "quantity": 2},
            ("SetSafetyStock", {"sku": sku, "node": names.node("own")}),
        ),
        Thing("SetSaleState", {**where, **stop}, ("SetSaleState", {**where, **free})),
        Thing("SetSaleState", {"sku": sku, **stop}, ("SetSaleState", {"sku": sku, **free})),
        Thing("SetSaleState", {"channel": channel, **stop}, ("SetSaleState", {"channel": channel, **free})),
    ]


def test_an_etag_is_the_version_of_exactly_what_a_write_sets(
    client: Service, names: Names, seed: int
) -> None:
    """In any order of writes of all kinds: the last version of the thing passes, every other is refused."""
    drawn = random.Random(seed)
    all_things = things(names)
    seen = [NOTHING]
    for _ in range(120):
        thing = drawn.choice(all_things)
        method, fields = thing.method, thing.fields
        gone = thing.undo is not None and drawn.random() < 0.3
        if gone:
            assert thing.undo is not None
            method, fields = thing.undo
        wrong = drawn.choice(seen)
        if wrong != thing.etag:
            assert refused(client, method, etag=wrong, **fields) == "ETAG_MISMATCH"
        etag = thing.etag if drawn.random() < 0.7 else ""
        version = asked(client, method, etag=etag, **fields).version
        thing.etag = NOTHING if gone else version
        seen.append(version)


def test_the_default_safety_stock_of_a_node_has_the_nodes_etag(client: Service, names: Names) -> None:
    """A node and its default are one row: whoever changes one has seen the other."""
    first = asked(client, "SetNode", node=names.node(), state=co.NODE_STATE_ONLINE, etag=NOTHING).version
    second = asked(client, "SetSafetyStock", node=names.node(), quantity=3, etag=first).version
    assert (
        refused(client, "SetNode", node=names.node(), state=co.NODE_STATE_OFFLINE, etag=first)
        == "ETAG_MISMATCH"
    )
    asked(client, "SetNode", node=names.node(), state=co.NODE_STATE_OFFLINE, etag=second)


def test_of_operators_at_once_exactly_one_wins(connect: Callable[[], Service], names: Names) -> None:
    """Sixteen operators who saw the same version: one change is made, the others are told so and of its version."""
    operators = [connect() for _ in range(16)]
    for round_ in range(5):
        asked(operators[0], "SetNode", node=names.node(round_), state=co.NODE_STATE_ONLINE)
        won: list[str] = []
        lost: list[str] = []
        gate = threading.Barrier(len(operators))

        def change(
            operator: Service,
            gate: threading.Barrier = gate,
            won: list[str] = won,
            lost: list[str] = lost,
            sku: str = names.sku(round_),
        ) -> None:
            gate.wait()
            try:
                where = {"channel": names.channel(), "sku": sku}
                answer = asked(operator, "SetSaleState", **where, state=co.SALE_STATE_BLOCKED, etag=NOTHING)
                won.append(answer.version)
            except Refusal as refusal:
                lost.append(refusal.reason)

        threads = [threading.Thread(target=change, args=(operator,)) for operator in operators]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert lost == ["ETAG_MISMATCH"] * 15


def test_a_refused_etag_is_remembered(client: Service, names: Names) -> None:
    """A repeat of a refused write is refused again, although its etag has become right meanwhile."""
    ids = client._policy_ids()
    request = pol.SetNodeRequest(node=names.node(), state=co.NODE_STATE_ONLINE, etag=NOTHING, **ids)
    asked(client, "SetSaleState", sku=names.sku(), state=co.SALE_STATE_BLOCKED)
    asked(client, "SetNode", node=names.node(), state=co.NODE_STATE_ONLINE)
    for _ in range(2):
        with pytest.raises(Refusal, match="ETAG_MISMATCH"):
            client.call(client.policies.SetNode, request)
    stop = pol.SetSaleStateRequest(
        etag=NOTHING, sku=names.sku(), state=co.SALE_STATE_BLOCKED, **client._policy_ids()
    )
    with pytest.raises(Refusal, match="ETAG_MISMATCH"):
        client.call(client.policies.SetSaleState, stop)
    asked(client, "SetSaleState", sku=names.sku(), state=co.SALE_STATE_SELLABLE)
    with pytest.raises(Refusal, match="ETAG_MISMATCH"):
        client.call(client.policies.SetSaleState, stop)


# --- Stops that end by themselves -------------------------------------------------------------------------


def until(seconds: float) -> Any:
    request = pol.SetSaleStateRequest()
    request.until.FromMilliseconds(round((time.time() + seconds) * 1000))
    return request.until


def stopped(client: Service, names: Names) -> list[pol.SaleStop]:
    answer = client.call(client.policies.ListPolicies, pol.ListPoliciesRequest())
    return [stop for stop in answer.stops if names.number in stop.sku + stop.channel]


def test_a_stop_ends_by_itself(client: Service, names: Names) -> None:
    """At its time, not before and at most a second later, for each shape of a stop; one set anew keeps its own time."""
    sku, channel = names.sku(), names.channel()
    client.apply_delta(
        Delta(source=names.id(), type="RECEIPT", event_id="1", sku=sku, node=names.node(), quantity=7)
    )
    began = time.time()
    shapes: list[dict[str, str]] = [{"sku": sku}, {"channel": channel}, {"sku": sku, "channel": channel}]
    for shape in shapes:
        asked(client, "SetSaleState", **shape, state=co.SALE_STATE_BLOCKED, until=until(1.5))
    kept = {"sku": names.sku("kept")}
    asked(client, "SetSaleState", **kept, state=co.SALE_STATE_BLOCKED, until=until(1.0))
    asked(client, "SetSaleState", **kept, state=co.SALE_STATE_BLOCKED)
    lifted = {"sku": names.sku("lifted")}
    asked(client, "SetSaleState", **lifted, state=co.SALE_STATE_BLOCKED, until=until(1.0))
    asked(client, "SetSaleState", **lifted, state=co.SALE_STATE_SELLABLE)
    asked(client, "SetSaleState", **lifted, state=co.SALE_STATE_BLOCKED)
    while len(stopped(client, names)) > 2:
        assert time.time() - began < 20
        time.sleep(0.02)
    assert time.time() - began >= 1.5
    assert {stop.sku for stop in stopped(client, names)} == {kept["sku"], lifted["sku"]}
    assert client.sellables(channel, [sku]) == [(7, "IN_STOCK")]


def test_a_stop_with_a_past_end_is_refused(client: Service, names: Names) -> None:
    """And nothing is stopped; a sale that is allowed has no end."""
    fields = {"sku": names.sku(), "until": until(-1)}
    assert refused(client, "SetSaleState", **fields, state=co.SALE_STATE_BLOCKED) == "UNTIL_IN_PAST"
    fields["until"] = until(60)
    assert refused(client, "SetSaleState", **fields, state=co.SALE_STATE_SELLABLE) == "INVALID_REQUEST"
    assert stopped(client, names) == []


@pytest.mark.parametrize("percent", [101, -1, 2**31 - 1])
def test_a_percent_is_0_to_100(client: Service, names: Names, percent: int) -> None:
    """In a channel's policy and in an override; and nothing is set."""
    buffer = co.Buffer(percent=percent)
    policy = pol.ChannelPolicy(channel=names.channel(), all_nodes=True, buffer=buffer)
    assert refused(client, "SetChannelPolicy", policy=policy) == "INVALID_REQUEST"
    override = pol.SkuOverride(buffer=buffer)
    fields = {"channel": names.channel(), "sku": names.sku(), "override": override}
    assert refused(client, "SetSkuOverride", **fields) == "INVALID_REQUEST"
