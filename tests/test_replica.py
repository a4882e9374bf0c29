"""What the replica answers, one promise a test: the plain formula, whatever was set."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import AvailabilityState
from availability.replica import NodeValue, Replica
from tests.fakes_ledger import FakeLedger
from tests.replica_lab import UNKNOWN, Clock, answer, catch_up, clock, drained, ledger, replica_of, served

__all__ = ["clock", "ledger"]


def test_answers_are_the_ledgers(ledger: FakeLedger, clock: Clock) -> None:
    """One sku, a batch, nodes and terms all give what the plain formula gives, at the ledger's version."""
    replica = served(ledger, clock)
    assert answer(replica, "web", "x") == ledger.answer("web", "x") == (7, AvailabilityState.IN_STOCK)
    assert replica.get("web", "x").version == ledger.version
    sellables, states, version = replica.batch("web", ["y", "no", "x", "y"])
    assert sellables.tolist() == [1, 0, 7, 1]
    assert states.tolist() == [1, UNKNOWN, 1, 1]
    assert version == ledger.version
    assert replica.nodes("web", "x") == [
        NodeValue(node="b", free=3, sellable=2),
        NodeValue(node="a", free=5, sellable=4),
    ]


def test_an_unknown_channel_is_refused(ledger: FakeLedger, clock: Clock) -> None:
    """Without auto_create every way of asking says UNKNOWN_CHANNEL."""
    replica = served(ledger, clock)
    for ask in (
        lambda: replica.get("pos", "x"),
        lambda: replica.batch("pos", ["x"]),
        lambda: replica.nodes("pos", "x"),
        lambda: replica.terms("pos", "x"),
        lambda: replica.watch("pos", None),
    ):
        with pytest.raises(ServiceError) as caught:
            ask()
        assert caught.value.reason is Reason.UNKNOWN_CHANNEL


def test_auto_create_sells_from_every_node_without_a_buffer(ledger: FakeLedger, clock: Clock) -> None:
    """The first read opens the channel; it is listed as auto-created and has no column of its own."""
    replica = served(ledger, clock, auto_create=True)
    before = replica.counts().array_bytes
    assert answer(replica, "pos", "x") == (8, AvailabilityState.IN_STOCK)
    assert replica.policies().auto_created == ("pos",)
    assert replica.channel_policy("pos").all_nodes
    assert replica.counts().array_bytes == before


def test_channels_opened_by_name_are_bounded(ledger: FakeLedger, clock: Clock) -> None:
    """Names out of nowhere cannot fill the memory."""
    replica = served(ledger, clock, auto_create=True, channels_max=2)
    replica.get("one", "x")
    replica.get("two", "x")
    replica.get("one", "x")
    with pytest.raises(ServiceError):
        replica.get("three", "x")


def test_an_auto_created_channel_gets_its_own_policy_later(ledger: FakeLedger, clock: Clock) -> None:
    """A declaration, an override or a stop moves this channel and no other; its watchers hear of it."""
    replica = served(ledger, clock, auto_create=True)
    replica.get("pos", "x")
    replica.get("other", "x")
    watcher = replica.watch("pos", None)
    watcher.next(0)
    ledger.set_stop("pos", "x")
    catch_up(replica, ledger)
    assert answer(replica, "pos", "x") == (0, AvailabilityState.BLOCKED)
    assert answer(replica, "other", "x") == (8, AvailabilityState.IN_STOCK)
    batch = watcher.next(0)
    assert batch is not None
    assert batch.changes == [("x", 0, AvailabilityState.BLOCKED)]


def test_before_the_first_bootstrap_nothing_is_answered(ledger: FakeLedger, clock: Clock) -> None:
    """A replica that has read nothing is not ready, has no proof, and says so."""
    replica = replica_of(ledger, clock, auto_create=True)
    assert not replica.ready
    assert replica.freshness_ms() > 10**9
    with pytest.raises(ServiceError) as caught:
        replica.get("web", "x")
    assert caught.value.reason is Reason.LEDGER_NOT_READY


def test_terms_add_up_and_name_their_policies(ledger: FakeLedger, clock: Clock) -> None:
    """Every number of the sum names the level, version, author and reason that gave it."""
    ledger.set_override("web", "x", units=2, excluded="a")
    ledger.set_stop("", "x")
    replica = served(ledger, clock)
    terms = replica.terms("web", "x")
    assert (terms.pool, terms.buffer, terms.oversell_limit, terms.blocked) == (3, 2, 0, True)
    assert [node.node for node in terms.nodes] == ["b", "a"]
    assert [node.not_counted_reason for node in terms.nodes] == ["", "EXCLUDED"]
    assert sum(n.net if n.counted else min(0, n.net) for n in terms.nodes) == terms.pool
    levels = {term.term: (term.level, term.value, term.author) for term in terms.policies}
    assert levels["buffer"] == ("SKU_OVERRIDE", "2 units", "bob")
    assert levels["oversell_limit"] == ("CHANNEL", "0 units", "ann")
    assert levels["excluded_nodes"] == ("SKU_OVERRIDE", "a", "bob")
    assert levels["sale_state"] == ("SKU", "BLOCKED", "eve")
    assert levels["safety_stock"] == ("NODE", "b: 1 units", "ann")


def test_a_fence_bites_others_only_for_what_its_channel_lacks_elsewhere(
    ledger: FakeLedger, clock: Clock
) -> None:
    """Free units where only the fence's channel sells cover it first; channels without a common node are free of it."""
    ledger.set_channel("shop", ["a"])
    ledger.set_channel("far", ["b"])
    ledger.set_fence("shop", "x", 4)
    replica = served(ledger, clock)
    assert answer(replica, "web", "x")[0] == 8 - 4 - 1
    assert answer(replica, "far", "x")[0] == 3
    assert answer(replica, "shop", "x")[0] == 5
    terms = replica.terms("web", "x")
    assert [(fence.channel, fence.left, fence.counted) for fence in terms.fences] == [("shop", 4, 4)]
    assert terms.fenced == 4
    ledger.set_channel("shop", ["a", "b"], staleness=2)
    ledger.set_channel("web", ["b"])
    catch_up(replica, ledger)
    assert answer(replica, "web", "x")[0] == 3  # 5 free at a cover it
    ledger.reserve_fenced("shop", "x", "a", 3)  # 1 is left, and 2 free at a
    ledger.set_feed("wms", "a")
    ledger.hear("wms", "a", stale=True)  # shop cannot sell from a any more
    catch_up(replica, ledger)
    assert answer(replica, "web", "x")[0] == 3 - 1
    ledger.set_fence("shop", "x", 0)
    catch_up(replica, ledger)
    assert answer(replica, "web", "x")[0] == 3
    assert replica.policies().fences == ()


def test_a_stale_feed_leaves_its_node_out_where_the_channel_says_so(ledger: FakeLedger, clock: Clock) -> None:
    """While any of the node's feeds is stale; a channel with KEEP goes on, and no watcher of it is woken."""
    ledger.set_channel("strict", ["b", "a"], staleness=2)
    ledger.set_feed("wms", "a")
    ledger.set_feed("erp", "a")
    replica = served(ledger, clock)
    strict, keep = replica.watch("strict", None), replica.watch("web", None)
    drained(strict), drained(keep)
    ledger.hear("wms", "a", stale=True)
    catch_up(replica, ledger)
    assert drained(strict) == [(False, {"x": 3, "y": 0}, ledger.version)]
    assert drained(keep) == []
    terms = replica.terms("strict", "x")
    assert [node.not_counted_reason for node in terms.nodes] == ["", "FEED_STALE"]
    assert [term.value for term in terms.policies if term.term == "feed"] == ["a: wms is silent"]
    ledger.hear("erp", "a", stale=True)
    ledger.hear("wms", "a", stale=False)
    catch_up(replica, ledger)
    assert drained(strict) == []
    ledger.set_feed("erp", "a", interval_ms=0)
    catch_up(replica, ledger)
    assert drained(strict) == [(False, {"x": 8, "y": 2}, ledger.version)]
    assert [(feed.source, feed.stale) for feed in replica.policies().feeds] == [("wms", False)]


def test_what_is_set_is_listed(ledger: FakeLedger, clock: Clock) -> None:
    """Kits, fences as they are now, and positions with a safety stock of their own."""
    ledger.set_kit("kit", x=2)
    ledger.set_fence("web", "x", 4)
    ledger.put(("x", "a", (5, 0, 0, 0, 2)), ("é", "a", (5, 0, 0, 0, 0)))
    ledger.reserve_fenced("web", "x", "a", 1)
    replica = served(ledger, clock, chunk_rows=1)
    found = replica.policies()
    assert [(kit.kit_sku, kit.author) for kit in found.kits] == [("kit", "kim")]
    assert [(fence.channel, fence.sku, fence.left, fence.author) for fence in found.fences] == [
        ("web", "x", 3, "fay")
    ]
    assert replica.safety_stocks() == [("x", "a", 2), ("é", "a", 0)]


def test_all_nodes_are_sourced_in_bytewise_order_of_names(clock: Clock) -> None:
    """Not in the order of declaration, nor in that of a locale."""
    ledger = FakeLedger()
    for node in ("b", "é", "a", "Z", "😀"):
        ledger.set_node(node)
    ledger.put(("x", "b", (1, 0, 0, 0, -1)))
    replica = served(ledger, clock, auto_create=True)
    assert [node.node for node in replica.nodes("web", "x")] == ["Z", "a", "b", "é", "😀"]


def test_overrides_are_listed_in_pages(ledger: FakeLedger, clock: Clock) -> None:
    """By bytewise sku, after a sku, so many at most."""
    for sku in ("é", "b", "a", "c"):
        ledger.set_override("web", sku, limit=1)
    ledger.clear_override("web", "b")
    replica = served(ledger, clock)
    assert [o.sku for o in replica.overrides("web", "", 2)] == ["a", "c"]
    assert [o.sku for o in replica.overrides("web", "c", 2)] == ["é"]
    assert replica.overrides("nobody", "", 2) == []


def change_something(random: Random, ledger: FakeLedger) -> None:
    """Draw one change of positions or policies."""
    sku, node, channel = random.choice("xyz"), random.choice("abc"), random.choice(("web", "pos"))
    balances = random.randint(-3, 30), random.randint(-2, 4), random.randint(0, 9), random.randint(0, 9)
    percent, units = random.randint(0, 99), random.randint(0, 9)
    random.choice(
        (
            lambda: ledger.put((sku, node, (*balances, -1))),
            lambda: ledger.put((sku, node, (*balances, 3))),
            lambda: ledger.set_node(node, random.choice((1, 1, 2)), random.randint(0, 3)),
            lambda: ledger.set_channel(
                channel, random.choice((None, ["a"])), buffer_units=-1, buffer_percent=percent
            ),
            lambda: ledger.set_channel(
                channel, oversell_limit=units, low_stock_threshold=random.randint(0, 9)
            ),
            lambda: ledger.set_override(channel, sku, percent=percent, excluded="a"),
            lambda: ledger.set_override(channel, sku, units=units, limit=random.randint(0, 5)),
            lambda: ledger.clear_override(channel, sku),
            lambda: ledger.set_stop(channel, random.choice((sku, "")), blocked=random.random() < 0.5),
            lambda: ledger.set_stop(channel, "kit", blocked=random.random() < 0.5),
            lambda: ledger.set_channel(channel, random.choice((None, ["b", "a"])), staleness=2),
            lambda: ledger.set_fence(channel, sku, random.choice((0, 2, units))),
            lambda: spend_fence(random, ledger),
            lambda: ledger.set_kit("kit", **{sku: random.randint(1, 3), "xyzn"[units % 4]: 2}),
            lambda: ledger.set_kit("kit" if units else "other", **({"x": 1} if units < 7 else {})),
            lambda: ledger.set_feed(random.choice(("wms", "erp")), node, random.choice((0, 9, 9))),
            lambda: cross_feed(random, ledger),
        )
    )()


def spend_fence(random: Random, ledger: FakeLedger) -> None:
    """Let a grant take from a fence, or a release give back to it, where there is one."""
    known = [pair for pair in ledger.now.fences if pair[1] in ledger.now.positions]
    if known:
        channel, sku = random.choice(known)
        ledger.reserve_fenced(
            channel, sku, random.choice(list(ledger.now.positions[sku])), random.choice((1, 2, -1))
        )


def cross_feed(random: Random, ledger: FakeLedger) -> None:
    """Let a feed fall silent or come back, where one is watched."""
    if ledger.now.feeds:
        ledger.hear(*random.choice(list(ledger.now.feeds)), stale=random.random() < 0.7)


def assert_terms_add_up(replica: Replica, channel: str, sku: str) -> None:
    """Whoever adds an explanation's numbers up gets the answer."""
    terms = replica.terms(channel, sku)
    assert (terms.sellable, terms.state) == answer(replica, channel, sku)
    assert sum(node.net if node.counted else min(0, node.net) for node in terms.nodes) == terms.pool
    assert sum(fence.counted for fence in terms.fences) == terms.fenced
    if terms.components:
        total = min(part.sellable // part.units for part in terms.components)
    else:
        total = max(0, terms.pool - terms.buffer - terms.fenced + terms.oversell_limit)
    assert terms.sellable == (0 if terms.blocked or not terms.known else total)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), columns=st.booleans())
def test_every_policy_is_the_plain_formula(seed: int, columns: bool) -> None:
    """Any mix of positions and policies, bootstrapped or followed, gives the plain answers and shares."""
    random, clock, ledger = Random(seed), Clock(), FakeLedger()
    ledger.put(("x", "a", (5, 0, 0, 0, -1)))
    replica = served(ledger, clock, auto_create=True, batch_records=random.choice((1, 4, 100)))
    for _ in range(40):
        change_something(random, ledger)
    if columns:
        catch_up(replica, ledger)
    else:
        replica = served(ledger, clock, auto_create=True)
    for channel in ("web", "pos"):
        for sku in (*"xyzqn", "kit", "other"):
            assert answer(replica, channel, sku) == ledger.answer(channel, sku)
            shares = [(n.node, n.free, n.sellable) for n in replica.nodes(channel, sku)]
            assert shares == ledger.node_answers(channel, sku)
            assert_terms_add_up(replica, channel, sku)
