"""What the replica promises, one promise a test. Random failures are the simulation's subject."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import AvailabilityState
from availability.domain.version import ZERO, Version
from availability.ledger.reader import Page, PositionState, SkuState
from availability.replica import Fork, NodeValue, Progress, Replica, ReplicaSettings
from availability.replica.columns import NODE_BITS, Positions
from tests.fakes_ledger import FakeLedger

UNKNOWN = int(AvailabilityState.UNKNOWN_SKU)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger() -> FakeLedger:
    """A ledger with two nodes, a channel and two skus."""
    made = FakeLedger()
    made.set_node("a")
    made.set_node("b", safety_stock=1)
    made.set_channel("web", ["b", "a"], buffer_units=1)
    made.put(("x", "a", (5, 0, 0, 0, -1)), ("x", "b", (4, 0, 0, 0, -1)), ("y", "a", (2, 0, 0, 0, -1)))
    return made


def replica_of(ledger: FakeLedger, clock: Clock, **changes: object) -> Replica:
    options = replace(ReplicaSettings(digest_skus_per_s=0), **changes)  # type: ignore[arg-type]  # any field
    return Replica(ledger, options, clock, Random(1))


def served(ledger: FakeLedger, clock: Clock, **changes: object) -> Replica:
    replica = replica_of(ledger, clock, **changes)
    catch_up(replica, ledger)
    return replica


def catch_up(replica: Replica, ledger: FakeLedger) -> None:
    for _ in range(60):
        replica.step()
        if replica.ready and replica.version == ledger.version and replica.freshness_ms() == 0:
            return
    raise AssertionError(f"not caught up: {replica.not_ready_reason or replica.version}")


def answer(replica: Replica, channel: str, sku: str) -> tuple[int, int]:
    value = replica.get(channel, sku)
    return value.sellable, value.state


# --- Answers ------------------------------------------------------------------------------------------------


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


def test_a_kit_is_the_least_of_its_parts(ledger: FakeLedger, clock: Clock) -> None:
    """Set before anybody knows its parts, it follows them; it has no nodes, and its parts explain it."""
    ledger.set_kit("kit", x=2, later=1)
    replica = served(ledger, clock)
    assert answer(replica, "web", "kit") == (0, AvailabilityState.OUT_OF_STOCK)
    ledger.put(("later", "a", (9, 0, 0, 0, -1)))
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (3, AvailabilityState.IN_STOCK)
    assert replica.batch("web", ["kit", "x"])[0].tolist() == [3, 7]
    assert replica.nodes("web", "kit") == []
    parts = replica.terms("web", "kit").components
    assert [(part.sku, part.units, part.sellable) for part in parts] == [("later", 1, 8), ("x", 2, 7)]
    ledger.set_stop("", "x")
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (0, AvailabilityState.OUT_OF_STOCK)
    ledger.set_stop("web", "kit")
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (0, AvailabilityState.BLOCKED)
    ledger.set_kit("kit")
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (0, UNKNOWN)
    assert replica.policies().kits == ()


@pytest.mark.parametrize(
    ("threshold", "limit", "units", "state"),
    [
        (0, 0, {"x": 1}, AvailabilityState.IN_STOCK),
        (4, 0, {"x": 2}, AvailabilityState.LOW_STOCK),
        (9, 5, {"x": 1, "gone": 5}, AvailabilityState.OVERSELLING),
        (9, 5, {"x": 12, "gone": 1}, AvailabilityState.LOW_STOCK),  # gone is oversold, x sets the number
    ],
)
def test_the_state_of_a_kit(
    ledger: FakeLedger, clock: Clock, threshold: int, limit: int, units: dict[str, int], state: int
) -> None:
    """By the rules of plain skus on its own number; overselling where the part that sets it is."""
    ledger.put(("gone", "a", (0, 0, 0, 0, -1)))
    ledger.set_channel("web", ["b", "a"], low_stock_threshold=threshold, oversell_limit=limit)
    ledger.set_kit("kit", **units)
    replica = served(ledger, clock)
    assert replica.get("web", "kit").state == state


def test_watchers_see_kits_move_with_their_parts(ledger: FakeLedger, clock: Clock) -> None:
    """Whatever moves a part: a grant, a policy of the channel, a feed; and nothing where the kit stays."""
    ledger.set_kit("kit", x=2, y=1)
    ledger.put(("y", "b", (9, 0, 0, 0, -1)))
    replica = served(ledger, clock)
    watcher, single = replica.watch("web", None), replica.watch("web", ["kit"])
    assert drained(single) == [(True, {"kit": 3}, ledger.version)]
    drained(watcher)
    ledger.reserve("x", "a", 1)  # 6 of x: still 3 kits
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 6}, ledger.version)]
    assert drained(single) == []
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 5, "kit": 2}, ledger.version)]
    ledger.set_channel("web", ["b", "a"], buffer_units=4)
    catch_up(replica, ledger)
    assert drained(single)[-1][1] == {"kit": 1}
    ledger.set_node("b", state=2)
    catch_up(replica, ledger)
    assert drained(single)[-1][1] == {"kit": 0}


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


def test_a_basket_is_judged_as_a_whole(ledger: FakeLedger, clock: Clock) -> None:
    """Kits and plain skus that need the same sku are added up; each line's sellable is its own sku's."""
    ledger.set_kit("kit", x=2, y=1)
    replica = served(ledger, clock)

    def judged(*lines: tuple[str, int]) -> list[tuple[int, bool]]:
        return [(line.sellable, line.sufficient) for line in replica.basket("web", lines)[0]]

    assert judged(("kit", 1), ("x", 5)) == [(1, True), (7, True)]
    assert judged(("kit", 1), ("x", 6)) == [(1, False), (7, False)]
    assert judged(("y", 1), ("kit", 1), ("x", 1)) == [(1, False), (1, False), (7, True)]
    assert judged(("nobody", 1), ("x", 1)) == [(0, False), (7, True)]
    ledger.set_stop("", "kit")
    catch_up(replica, ledger)
    assert judged(("kit", 1), ("x", 1)) == [(0, False), (7, True)]


def test_a_basket_needs_a_node_even_to_oversell(ledger: FakeLedger, clock: Clock) -> None:
    """A limit alone grants nothing where every node is offline or excluded: there is none to source from."""
    ledger.set_channel("web", ["a"], oversell_limit=5)
    replica = served(ledger, clock)
    assert replica.basket("web", [("x", 10)])[0][0].sufficient
    ledger.set_override("web", "x", excluded="a")
    catch_up(replica, ledger)
    assert not replica.basket("web", [("x", 1)])[0][0].sufficient


def test_kits_of_one_basket_have_a_limit(ledger: FakeLedger, clock: Clock) -> None:
    """The same as that of a reservation, with the same reason."""
    for number in range(21):
        ledger.set_kit(f"kit {number}", **{f"part {part}": 1 for part in range(100)})
    replica = served(ledger, clock)
    replica.basket("web", [(f"kit {number}", 1) for number in range(20)])
    with pytest.raises(ServiceError) as caught:
        replica.basket("web", [(f"kit {number}", 1) for number in range(21)])
    assert caught.value.reason is Reason.BATCH_TOO_LARGE


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


def test_a_fence_that_differs_from_the_ledgers_is_found(ledger: FakeLedger, clock: Clock) -> None:
    """What is left of fences is read back with the positions of a sku."""
    ledger.set_fence("web", "x", 4)
    replica = served(ledger, clock, digest_skus_per_s=100)
    number = replica._state.numbers["x"]
    fence = replica._state.fences.by_sku[number][0]
    replica._state.fences.by_sku[number] = (msgspec.structs.replace(fence, left=3),)
    walk_until_doubt(replica, clock)
    catch_up(replica, ledger)
    assert replica.policies().fences == (fence,)


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


@settings(deadline=None)  # a busy machine is no failure
@given(seed=st.integers(0, 10**6))
def test_positions_keep_every_row_however_blocks_move(seed: int) -> None:
    """Rows of many skus over many nodes, added and changed in random batches, are those of a dict."""
    random, positions = Random(seed), Positions()
    positions.reserve_skus(8)
    model: dict[tuple[int, int], list[int]] = {}
    for _ in range(20):
        batch = {(random.randrange(8), random.randrange(40)): [random.randrange(99)] * 5 for _ in range(9)}
        model.update(batch)
        plan = positions.plan(
            np.array([sku for sku, _ in batch]),
            np.array([node for _, node in batch]),
            np.array(list(batch.values())),
        )
        positions.commit(plan)
        if random.random() < 0.2:
            positions._wasted += 10**9  # as if most rows were holes
            positions = positions.compacted() or positions
    rows = positions.rows(np.arange(8))
    keys = np.repeat(rows.skus << NODE_BITS, np.diff(rows.offsets)) | rows.nodes
    found = {
        (key >> NODE_BITS, key & 255): row
        for key, row in zip(keys.tolist(), rows.values.tolist(), strict=True)
    }
    assert found == model
    assert positions.count == len(model)


# --- Following the ledger -----------------------------------------------------------------------------------


def test_a_batch_of_records_shows_as_a_whole(ledger: FakeLedger, clock: Clock) -> None:
    """Several records of one read fold into one change, at the last one's version."""
    replica = served(ledger, clock)
    ledger.reserve("x", "a", 1)
    ledger.put(("new", "c", (3, 0, 0, 0, -1)))
    ledger.set_channel("web", ["c", "a"])
    replica.step()
    assert replica.version == ledger.version
    assert answer(replica, "web", "x") == (4, AvailabilityState.IN_STOCK)
    assert answer(replica, "web", "new") == (3, AvailabilityState.IN_STOCK)


def test_freshness_is_the_age_of_the_last_proof(ledger: FakeLedger, clock: Clock) -> None:
    """An unreachable ledger leaves memory and ages it; the first proof after that makes it young."""
    replica = served(ledger, clock)
    ledger.unreachable = True
    clock.now += 3
    assert replica.step() > 0
    assert (replica.ready, replica.freshness_ms()) == (True, 3_000)
    ledger.unreachable = False
    replica.step()
    assert replica.freshness_ms() == 0


def test_a_backlog_is_no_proof(ledger: FakeLedger, clock: Clock) -> None:
    """A full read says that there may be more: answers stay as old as they were."""
    replica = served(ledger, clock, batch_records=2)
    for _ in range(4):
        ledger.reserve("x", "a", 1)
    clock.now += 1
    replica.step()
    assert replica.freshness_ms() == 1_000


def test_retries_back_off_with_jitter(ledger: FakeLedger, clock: Clock) -> None:
    """Pauses grow to a limit and are not equal."""
    replica = replica_of(ledger, clock, backoff_min_ms=100, backoff_max_ms=1_000)
    ledger.unreachable = True
    pauses = [replica.step() for _ in range(20)]
    assert 0.05 <= pauses[0] <= 0.1
    assert all(0.5 <= pause <= 1.0 for pause in pauses[5:])
    assert len(set(pauses)) > 10
    assert not replica.ready


def test_a_trimmed_log_is_read_again(ledger: FakeLedger, clock: Clock) -> None:
    """Behind the trim point there is a gap: memory ages, is read again, and is right (FAILURES 8)."""
    replica = served(ledger, clock)
    for _ in range(5):
        ledger.reserve("x", "a", 1)
    ledger.trim(2)
    replica.step()
    assert replica.ready
    assert replica.version < ledger.version
    catch_up(replica, ledger)
    assert replica.counts().resyncs == 2
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_deleted_log_is_noticed_by_the_head(ledger: FakeLedger, clock: Clock) -> None:
    """A read of a deleted stream waits for ever; the head tells (FAILURES 9)."""
    replica = served(ledger, clock)
    ledger.reserve("x", "a", 1)
    ledger.trim(0)
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_restart_of_redis_is_no_fork(ledger: FakeLedger, clock: Clock) -> None:
    """A new epoch that begins where we are is followed without reading anything again."""
    replica = served(ledger, clock)
    ledger.hand_shake()
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert replica.counts().resyncs == 1
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def forked(ledger: FakeLedger, clock: Clock) -> tuple[Replica, list[Fork], Version]:
    """A replica that read two versions which a failover lost."""
    forks: list[Fork] = []
    options = ReplicaSettings(digest_skus_per_s=0)
    replica = Replica(ledger, options, clock, Random(1), on_fork=forks.append)
    catch_up(replica, ledger)
    kept = ledger.now.copy()
    ledger.reserve("x", "a", 1)
    lost = ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    ledger.now = kept
    return replica, forks, lost


def test_a_fork_is_reported_and_read_again(ledger: FakeLedger, clock: Clock) -> None:
    """What was read and is gone is named; memory is in doubt until it was read again."""
    replica, forks, lost = forked(ledger, clock)
    ledger.hand_shake()
    replica.step()
    assert not replica.ready
    assert [(fork.epoch, fork.kept_seq, fork.seen) for fork in forks] == [(1, lost.seq - 2, lost)]
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")
    assert len(forks) == 1


def test_ids_handed_out_again_are_found_by_the_chain(ledger: FakeLedger, clock: Clock) -> None:
    """The worst failover leaves no gap to see (FAILURES 1): same ids, other content."""
    replica, forks, lost = forked(ledger, clock)
    ledger.put(("x", "a", (1, 0, 0, 0, -1)))
    ledger.put(("x", "a", (2, 0, 0, 0, -1)))
    assert ledger.version == lost
    replica.step()
    assert not replica.ready
    assert forks[0].kept_seq == -1
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_ledger_that_went_back_is_not_served(ledger: FakeLedger, clock: Clock) -> None:
    """A lower version than was read is refused until the ledger says how it goes on."""
    replica, _, _ = forked(ledger, clock)
    replica.step()
    assert not replica.ready
    assert "was read before" in replica.not_ready_reason
    ledger.hand_shake()
    catch_up(replica, ledger)


def test_a_ledger_that_comes_back_is_served_again(ledger: FakeLedger, clock: Clock) -> None:
    """A stale answer of a dying primary costs readiness only as long as it lasts."""
    replica = served(ledger, clock)
    good = ledger.now.copy()
    ledger.now.seq -= 1
    replica.step()
    assert replica.not_ready_reason
    ledger.now = good
    replica.step()
    assert replica.ready
    assert replica.counts().resyncs == 1


@pytest.mark.parametrize("ledger_id", ["", "another"])
def test_another_ledger_is_never_served(ledger: FakeLedger, clock: Clock, ledger_id: str) -> None:
    """An emptied Redis, or one with another ledger, however far it gets (FAILURES 6)."""
    replica = served(ledger, clock)
    wiped = FakeLedger(ledger_id)
    ledger.ledger_id, ledger.now = ledger_id, wiped.now
    for _ in range(3):
        replica.step()
        assert not replica.ready
    for _ in range(50):
        ledger.put(("x", "a", (9, 0, 0, 0, -1)))
    for _ in range(5):
        replica.step()
        assert not replica.ready


def test_a_ledger_that_was_never_made_is_not_served(clock: Clock) -> None:
    """No ledger is not an empty ledger."""
    ledger = FakeLedger("")
    replica = replica_of(ledger, clock)
    replica.step()
    assert not replica.ready
    ledger.ledger_id = "made"
    catch_up(replica, ledger)


def test_an_unreadable_record_is_never_skipped(ledger: FakeLedger, clock: Clock) -> None:
    """The first makes it read everything again; the next one within the window makes it not ready first."""
    replica = served(ledger, clock)
    ledger.append(b"\xc1")
    replica.step()
    assert replica.version < ledger.version
    catch_up(replica, ledger)
    assert replica.counts().resyncs == 2
    bad = ledger.append(b"\xc1")
    assert replica.step() > 0
    assert not replica.ready
    assert str(bad) in replica.not_ready_reason
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_record_of_an_unknown_kind_is_unreadable(ledger: FakeLedger, clock: Clock) -> None:
    """What a newer ledger tells and we do not know may be a policy."""
    replica = served(ledger, clock)
    ledger.emit(77, [], [])
    replica.step()
    assert replica.version < ledger.version


def walk_until_doubt(replica: Replica, clock: Clock) -> None:
    for _ in range(4):  # skus, perhaps those that the ledger does not name, policies, skus
        clock.now += 2
        replica.step()
        if not replica.ready:
            return
    raise AssertionError("nobody noticed")


def test_memory_that_differs_from_the_ledger_is_found(ledger: FakeLedger, clock: Clock) -> None:
    """Everything is read back in turn; a difference is mended, a repeated one is not served."""
    replica = served(ledger, clock, digest_skus_per_s=100)
    state = replica._state
    state.positions._values[:] += 1
    walk_until_doubt(replica, clock)
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")
    wrong = SkuState("x", [PositionState("a", 77, 0, 0, 0, -1)], [], [])

    def skus(names: list[str]) -> Page:
        return Page(ledger._head(), -1, [wrong])

    ledger.skus = skus  # type: ignore[method-assign]  # what a broken ledger would answer
    replica._state.positions._values[:] += 1
    walk_until_doubt(replica, clock)
    for _ in range(5):
        replica.step()
        assert not replica.ready
    assert "differ about 'x'" in replica.not_ready_reason


def test_a_read_back_page_is_compared_at_its_own_version(ledger: FakeLedger, clock: Clock) -> None:
    """Records that come while skus are read back are no difference."""
    replica = served(ledger, clock, digest_skus_per_s=100)
    clock.now += 2

    def write_between(call: str) -> None:
        if call in {"page", "skus", "policies", "read"}:
            ledger.reserve("x", "a", 1)

    ledger.before_call = write_between
    for _ in range(9):
        replica.step()
        clock.now += 2
        assert replica.ready
    assert replica.digest.walks >= 2
    assert (replica.counts().resyncs, replica.digest.disagreements) == (1, 0)


@pytest.mark.parametrize("handshake", [True, False])
def test_a_failover_during_bootstrap_is_noticed(ledger: FakeLedger, clock: Clock, handshake: bool) -> None:
    """Pages of a history that is gone never meet the log of the one that stayed."""
    kept = ledger.now.copy()
    ledger.put(("x", "a", (50, 0, 0, 0, -1)))
    lost, calls = ledger.now, list[str]()
    ledger.now = kept

    def fail_over(call: str) -> None:
        calls.append(call)
        if call == "page" and "read" not in calls:
            ledger.now = lost  # the page is later than the head
        if call == "read" and calls.count("read") == 1:
            ledger.now = kept
            if handshake:
                ledger.hand_shake()
            for _ in range(3):
                ledger.put(("y", "a", (1, 0, 0, 0, -1)))

    ledger.before_call = fail_over
    replica = replica_of(ledger, clock, verify_skus=0)
    replica.step()
    assert replica.not_ready_reason
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x") == (7, AvailabilityState.IN_STOCK)


def test_a_bootstrap_tells_its_progress(ledger: FakeLedger, clock: Clock) -> None:
    """Page by page, then the phases up to done."""
    told: list[Progress] = []
    options = ReplicaSettings(page_skus=1)
    replica = Replica(ledger, options, clock, Random(1), on_progress=told.append)
    replica.step()
    assert [progress.phase for progress in told] == ["skus"] * 3 + ["log", "answers", "verify", "done"]
    assert told[-1].skus == 2


# --- Waiting ------------------------------------------------------------------------------------------------


def test_wait_for_tells_reached_from_not_yet(ledger: FakeLedger, clock: Clock) -> None:
    """True at or after the version, False at the deadline."""
    replica = served(ledger, clock)
    assert replica.wait_for(ledger.version, clock.now)
    ahead = ledger.reserve("x", "a", 1)
    assert not replica.wait_for(ahead, clock.now)
    replica.step()
    assert replica.wait_for(ahead, clock.now)


def test_wait_for_a_lost_version_says_so(ledger: FakeLedger, clock: Clock) -> None:
    """Also in a server that never saw the fork, or that starts after it."""
    replica, _, lost = forked(ledger, clock)
    ledger.hand_shake()
    catch_up(replica, ledger)
    for one in (replica, served(ledger, clock)):
        with pytest.raises(ServiceError) as caught:
            one.wait_for(lost, clock.now)
        assert caught.value.reason is Reason.VERSION_LOST
        assert one.wait_for(Version(lost.epoch, lost.seq - 2), clock.now)


# --- Watching -----------------------------------------------------------------------------------------------


def drained(watcher: object) -> list[tuple[bool, dict[str, int], Version]]:
    batches = []
    while (batch := watcher.next(0)) is not None:  # type: ignore[attr-defined]  # a Watcher
        batches.append((batch.initial, {sku: sellable for sku, sellable, _ in batch.changes}, batch.version))
    return batches


def test_a_watcher_gets_current_values_then_changes(ledger: FakeLedger, clock: Clock) -> None:
    """Only values that changed, and only the latest of each, however long the consumer slept."""
    replica = served(ledger, clock)
    watcher = replica.watch("web", None)
    assert drained(watcher) == [(True, {"x": 7, "y": 1}, ledger.version)]
    for _ in range(3):
        ledger.reserve("x", "a", 1)
        catch_up(replica, ledger)
    ledger.hand_shake()
    ledger.put(("new", "a", (4, 0, 0, 0, -1)))
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 4, "new": 3}, ledger.version)]
    watcher.close()
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert watcher.next(0) is None


def test_a_watcher_of_some_skus_gets_these_only(ledger: FakeLedger, clock: Clock) -> None:
    """One that the ledger does not know yet is UNKNOWN_SKU, and told when it appears."""
    replica = served(ledger, clock)
    watcher = replica.watch("web", ["y", "new"])
    batch = watcher.next(0)
    assert batch is not None
    assert batch.changes == [("y", 1, AvailabilityState.IN_STOCK), ("new", 0, UNKNOWN)]
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert watcher.next(0) is None
    ledger.put(("new", "a", (4, 0, 0, 0, -1)), ("other", "a", (4, 0, 0, 0, -1)))
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"new": 3}, ledger.version)]


def test_a_resumed_watcher_gets_what_changed_since(ledger: FakeLedger, clock: Clock) -> None:
    """Across epochs too; from a version that is not known any more, everything."""
    replica = served(ledger, clock)
    seen = ledger.version
    ledger.reserve("x", "a", 1)
    ledger.hand_shake()
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert drained(replica.watch("web", None, resume=seen)) == [(True, {"x": 5}, ledger.version)]
    assert drained(replica.watch("web", None, resume=ledger.version)) == [(True, {}, ledger.version)]
    old = Version(seen.epoch, seen.seq - 1)
    for resume in (ZERO, old, Version(1, seen.seq + 5), Version(9, 1)):
        assert drained(replica.watch("web", None, resume=resume)) == [
            (True, {"x": 5, "y": 1}, ledger.version)
        ]


def test_first_values_come_in_chunks_and_resume_only_when_complete(ledger: FakeLedger, clock: Clock) -> None:
    """An unfinished first pass resumes from nothing; a change in between is not missed."""
    replica = served(ledger, clock, watch_chunk_skus=1)
    watcher = replica.watch("web", None)
    first = watcher.next(0)
    assert first is not None
    assert first.version == ZERO
    began = replica.version
    ledger.reserve("x", "a", 2)
    catch_up(replica, ledger)
    assert drained(watcher) == [(True, {"y": 1}, began), (False, {"x": 5}, ledger.version)]


def test_watchers_survive_a_resync_with_the_differences(ledger: FakeLedger, clock: Clock) -> None:
    """Reading everything again tells a watcher what differs, not everything."""
    replica = served(ledger, clock)
    watcher = replica.watch("web", None)
    drained(watcher)
    ledger.reserve("x", "a", 1)
    ledger.put(("new", "a", (4, 0, 0, 0, -1)))
    ledger.trim(0)
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 6, "new": 3}, ledger.version)]


def test_a_watcher_of_a_channel_lost_in_a_fork_is_told(ledger: FakeLedger, clock: Clock) -> None:
    """The declaration is gone with the failover: UNKNOWN_CHANNEL, not silence."""
    kept = ledger.now.copy()
    ledger.set_channel("pos")
    replica = served(ledger, clock)
    watcher = replica.watch("pos", None)
    drained(watcher)
    ledger.now = kept
    ledger.hand_shake()
    catch_up(replica, ledger)
    with pytest.raises(ServiceError) as caught:
        watcher.next(0)
    assert caught.value.reason is Reason.UNKNOWN_CHANNEL


def test_only_those_meant_are_woken(ledger: FakeLedger, clock: Clock) -> None:
    """A change of one sku does not wake watchers of another one or of another channel."""
    ledger.set_channel("pos")
    replica = served(ledger, clock)
    woken: list[str] = []
    for name, channel, skus in (
        ("x", "web", ["x", "y"]),
        ("y", "web", ["y"]),
        ("all", "web", None),
        ("pos", "pos", None),
    ):
        watcher = replica.watch(channel, skus, wake=partial(woken.append, name))
        drained(watcher)
    woken.clear()
    ledger.set_override("web", "x", limit=3)
    catch_up(replica, ledger)
    assert sorted(woken) == ["all", "x"]


# --- The real thread ----------------------------------------------------------------------------------------


def test_the_thread_follows_and_stops(ledger: FakeLedger) -> None:
    """Started, it becomes ready, brings writes to waiting readers and watchers, and stops when told."""
    replica = Replica(ledger, ReplicaSettings(block_ms=1), time.monotonic, Random(1))
    replica.start()
    assert replica.wait_for(ledger.version, time.monotonic() + 10)
    watcher = replica.watch("web", ["x"])
    assert watcher.next(10) is not None
    written: list[Version] = []
    writer = threading.Thread(target=lambda: written.append(ledger.reserve("x", "a", 1)))
    writer.start()
    batch = watcher.next(10)
    writer.join()
    assert batch is not None
    assert batch.changes == [("x", 6, AvailabilityState.IN_STOCK)]
    assert replica.wait_for(written[0], time.monotonic() + 10)
    replica.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "replica"]
