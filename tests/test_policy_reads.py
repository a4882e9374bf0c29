"""What is set, and why an answer is what it is, as a running service tells it: kits, ring-fences, feeds, stops."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from availability.cli import explain as cli
from availability.v1 import availability_pb2 as av
from availability.v1 import common_pb2 as co
from availability.v1 import policy_pb2 as pol
from tests import wire
from tests.conftest import Names
from tests.model import Delta, Override, Policy
from tests.wire import Service

WAIT_S = 10.0


@pytest.fixture
def shop(client: Service, names: Names) -> Service:
    """Nodes a and b with 6 and 4 of x, 9 of y at a; web sells from both, market from a only."""
    a, b = names.node("a"), names.node("b")
    for node in (a, b):
        client.set_node(node, online=True)
    client.set_channel(names.channel("web"), Policy(nodes=(a, b)))
    client.set_channel(names.channel("market"), Policy(nodes=(a,)))
    stock = (("x", a, 6), ("x", b, 4), ("y", a, 9))
    for number, (sku, node, units) in enumerate(stock):
        delta = Delta(
            source=names.id("erp"),
            type="RECEIPT",
            event_id=f"{number}",
            sku=names.sku(sku),
            node=node,
            quantity=units,
        )
        assert client.apply_delta(delta) == ("APPLIED", "")
    return client


def listed(service: Service) -> pol.ListPoliciesResponse:
    answer: pol.ListPoliciesResponse = service.call(service.policies.ListPolicies, pol.ListPoliciesRequest())
    return answer


def explained(service: Service, channel: str, sku: str) -> av.AvailabilityTerms:
    """Explain, and check that the terms add up the way the command line checks it."""
    terms = service.explain(channel, sku).terms
    assert cli.sum_problem(terms) is None
    return terms


def drawn(service: Service, channel: str, sku: str) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    cli.draw(service.explain(channel, sku), console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO of above
    return text


def check(service: Service, channel: str, *lines: tuple[str, int]) -> list[tuple[int, bool]]:
    """Check a basket; per line what can be sold of its sku and whether that is enough."""
    request = av.CheckBasketRequest(channel=channel, lines=wire.requested(lines), strong=True)
    answer: av.CheckBasketResponse = service.call(service.reads.CheckBasket, request)
    results = [(line.sellable_quantity, line.sufficient) for line in answer.line_results]
    assert answer.fulfillable == all(sufficient for _, sufficient in results)
    return results


@pytest.mark.parametrize("copies", [1, 42, 43, 333])
def test_a_batch_answers_in_the_order_asked(shop: Service, names: Names, copies: int) -> None:
    """However long it is: one number and one state a sku, repeats and unknown skus among them."""
    web, x, y, none = names.channel("web"), names.sku("x"), names.sku("y"), names.sku("none")
    shop.set_sale_state(sku=y, blocked=True)
    answers = [(10, "IN_STOCK"), (0, "UNKNOWN_SKU"), (0, "BLOCKED")]
    assert shop.sellables(web, [x, none, y] * copies, at=shop.version) == answers * copies


def test_a_kit_is_read_like_any_sku(shop: Service, names: Names) -> None:
    """Its number follows its parts, Explain lists them, it has no nodes, and the listing has its recipe."""
    web, kit, x, y = names.channel("web"), names.sku("kit"), names.sku("x"), names.sku("y")
    shop.set_kit(kit, [(x, 2), (y, 1)])
    assert shop.sellables(web, [kit, x], at=shop.version) == [(5, "IN_STOCK"), (10, "IN_STOCK")]
    terms = explained(shop, web, kit)
    assert [(part.sku, part.units, part.sellable_quantity) for part in terms.components] == [
        (x, 2, 10),
        (y, 1, 9),
    ]
    assert (terms.sellable_quantity, terms.pool, len(terms.nodes)) == (5, 0, 0)
    request = av.GetAvailabilityRequest(channel=web, sku=kit, include_nodes=True)
    assert not shop.call(shop.reads.GetAvailability, request).availability.nodes
    found = next(one for one in listed(shop).kits if one.kit_sku == kit)
    assert [(part.sku, part.units) for part in found.flattened] == [(x, 2), (y, 1)]
    assert (found.reason, bool(found.version), found.HasField("update_time")) == ("test", True, True)
    assert "sets the number of kits" in drawn(shop, web, kit)


def test_check_basket_says_what_a_reservation_would(shop: Service, names: Names) -> None:
    """Kits and their parts in one basket: as many as can be held together, and not one more."""
    web, kit, x = names.channel("web"), names.sku("kit"), names.sku("x")
    shop.set_kit(kit, [(x, 2), (names.sku("y"), 1)])
    assert check(shop, web, (kit, 2), (x, 6), (kit, 1)) == [(5, False), (10, False), (5, False)]
    assert check(shop, web, (kit, 2), (x, 6)) == [(5, True), (10, True)]
    assert shop.reserve(names.id("much"), web, [(kit, 2), (x, 7)]).outcome == "INSUFFICIENT_STOCK"
    assert shop.reserve(names.id("fits"), web, [(kit, 2), (x, 6)]).outcome == "RESERVED"
    assert check(shop, web, (kit, 1)) == [(0, False)]


def test_a_fence_is_explained_from_both_sides(shop: Service, names: Names) -> None:
    """The channel that has it is not bitten, the other is told for whom and how much, and by whom it was set."""
    web, market, x = names.channel("web"), names.channel("market"), names.sku("x")
    shop.set_fence(market, x, 5)
    assert [(fence.channel, fence.left, fence.counted) for fence in explained(shop, web, x).fences] == [
        (market, 5, 5)
    ]
    assert explained(shop, web, x).sellable_quantity == 5
    assert explained(shop, market, x).fences[0].counted == 0
    assert explained(shop, market, x).sellable_quantity == 6
    assert shop.reserve(names.id("sale"), market, [(x, 2)]).outcome == "RESERVED"
    terms = explained(shop, web, x)
    assert (terms.fenced, terms.sellable_quantity) == (3, 5)
    assert [term.value for term in terms.policies if term.term == "ring_fence"] == [f"{market}: 3 units left"]
    assert f"3 for {market}" in drawn(shop, web, x)
    found = [fence for fence in listed(shop).ring_fences if fence.sku == x]
    assert [(fence.channel, fence.units, fence.reason) for fence in found] == [(market, 3, "test")]


def test_a_stale_feed_is_explained(shop: Service, names: Names) -> None:
    """A second of silence, and the node is left out by the channel that says EXCLUDE; the feed's age is shown."""
    strict, x, a = names.channel("strict"), names.sku("x"), names.node("a")
    policy = pol.ChannelPolicy(
        channel=strict, nodes=[a, names.node("b")], buffer=co.Buffer(units=0), staleness=pol.STALENESS_EXCLUDE
    )
    request = pol.SetChannelPolicyRequest(request_id=names.id("policy"), reason="test", policy=policy)
    shop.call(shop.policies.SetChannelPolicy, request)
    feed = pol.SetFeedRequest(request_id=names.id("feed"), reason="test", source=names.id("erp"), node=a)
    feed.expected_interval.FromSeconds(1)
    shop.call(shop.policies.SetFeed, feed)
    until = time.monotonic() + WAIT_S
    while not (terms := explained(shop, strict, x)).feeds[0].stale:
        assert time.monotonic() < until
        time.sleep(0.1)
    terms = explained(shop, strict, x)
    assert [(node.counted, node.not_counted_reason) for node in terms.nodes] == [
        (False, "FEED_STALE"),
        (True, ""),
    ]
    assert (terms.sellable_quantity, explained(shop, names.channel("web"), x).sellable_quantity) == (4, 10)
    assert terms.feeds[0].age_ms > terms.feeds[0].limit_ms == 1_000
    assert "STALE" in drawn(shop, strict, x)
    found = [one for one in listed(shop).feeds if one.node == a]
    assert [(one.source, one.stale, one.expected_interval.seconds) for one in found] == [
        (names.id("erp"), True, 1)
    ]


def test_every_policy_is_listed_with_its_author_and_end(shop: Service, names: Names) -> None:
    """Nodes, stops, overrides: version, author, reason, time; a stop also says when it ends by itself."""
    web, x, a = names.channel("web"), names.sku("x"), names.node("a")
    request = pol.SetSaleStateRequest(
        request_id=names.id("stop"), reason="recall", sku=x, state=co.SALE_STATE_BLOCKED
    )
    request.until.FromSeconds(int(time.time()) + 3_600)
    shop.call(shop.policies.SetSaleState, request)
    stop = next(one for one in listed(shop).stops if one.sku == x)
    assert (stop.reason, stop.until) == ("recall", request.until)
    shop.set_safety_stock(a, 2, sku=x)
    shop.set_override(web, x, Override(oversell_limit=3))
    answer = listed(shop)
    node = next(one for one in answer.nodes if one.node == a)
    assert (node.reason, bool(node.version), node.HasField("update_time")) == ("test", True, True)
    assert (x, a, 2) in [(one.sku, one.node, one.quantity) for one in answer.safety_stocks]
    policy: pol.GetPolicyResponse = shop.call(shop.policies.GetPolicy, pol.GetPolicyRequest(channel=web))
    entry = policy.overrides[0]
    assert (entry.sku, entry.reason, entry.override.oversell_limit) == (x, "test", 3)
    assert entry.version
    assert entry.HasField("update_time")
