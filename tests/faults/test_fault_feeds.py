"""Feeds by the ledger's clock: stale once and not early, fresh at once, and left out of grants meanwhile.

Redis TIME is set by the test, as in test_fault_clock.py. The random test holds ledger and plain model equal.
"""

from __future__ import annotations

import random

import pytest

from availability.ledger.record import FeedBody, Kind, PolicyBody, decode_body
from tests.faults.audit import dump, entries
from tests.faults.lab import BASE, Lab, delta
from tests.model import Delta, Model, Policy

NOW_MS = 1_760_000_000_000
EVERY_MS, GRACE_MS = 10_000, 5_000
LIMIT_MS = EVERY_MS + GRACE_MS
STEP_MS = 1_000


def crossings(lab: Lab) -> list[tuple[str, str, bool]]:
    """Read (source, node, stale) of each crossing in the log."""
    found = []
    for entry in entries(dump(lab.redis)):
        record = entry.record()
        if record.kind == Kind.FEED:
            body: FeedBody = decode_body(record)
            found.append((body.source, body.node, body.stale))
    return found


def silent_for(lab: Lab, now_ms: int, ms: int) -> int:
    """Let servers sweep while time passes; the time after."""
    for _ in range(ms // STEP_MS):
        now_ms += STEP_MS
        lab.control(now_ms=now_ms)
        lab.sweep()
    return now_ms


def feed(lab: Lab, request_id: str, source: str, node: str, every_ms: int = EVERY_MS) -> str:
    return lab.policy(request_id, "feed", [source, node, every_ms, GRACE_MS if every_ms else 0]).status


@pytest.fixture
def shop(lab: Lab) -> Lab:
    """Two nodes with stock, one watched feed, one channel that excludes and one that keeps."""
    lab.control(now_ms=NOW_MS)
    for name, staleness in (("strict", 2), ("web", 1)):
        lab.policy(name, "channel", [name, False, ["n1", "n2"], 0, -1, 0, 0, -1, staleness, 1])
    lab.receive("a", "n1", 3)
    lab.receive("a", "n2", 4)
    assert feed(lab, "f1", "erp", "n1") == "OK"
    return lab


def granted(lab: Lab, request_id: str, channel: str) -> int:
    """Ask for more than there is, give it back: what the channel could have had."""
    reply = lab.reserve(request_id, [("a", 99)], channel=channel)
    assert reply.status == "INSUFFICIENT_STOCK"
    return reply.shortages[0][1]


def test_a_silent_feed_is_stale_once_and_its_node_left_out_until_it_is_heard(shop: Lab) -> None:
    """One event per crossing; KEEP goes on selling."""
    began = shop.head()[2]
    now = silent_for(shop, NOW_MS, LIMIT_MS)
    assert crossings(shop) == []
    assert granted(shop, "q1", "strict") == 7
    silent_for(shop, now, 3 * STEP_MS)
    assert crossings(shop) == [("erp", "n1", True)]
    assert granted(shop, "q2", "strict") == 4
    assert granted(shop, "q3", "web") == 7
    (heard,) = [f.heard_ms for f in shop.ledger.feeds()[1]]
    assert heard == began
    assert [f.stale for f in shop.ledger.policies().feeds] == [True]
    shop.tell(delta("RECEIPT", "a", "n1", 1))
    assert crossings(shop) == [("erp", "n1", True), ("erp", "n1", False)]
    assert granted(shop, "q4", "strict") == 8
    assert [(f.stale, f.heard_ms) for f in shop.ledger.behind("a").feeds] == [(False, shop.head()[2])]


def test_only_what_counts_is_heard(shop: Lab) -> None:
    """A heartbeat, a delta at the node, a repeat: yes. Another node or source, a gap, a rejected delta: no."""
    said = delta("RECEIPT", "a", "n1", 1, stream="s", source_sequence=1)
    shop.tell(said)
    now = silent_for(shop, NOW_MS, LIMIT_MS + 2 * STEP_MS)
    assert crossings(shop) == [("erp", "n1", True)]
    shop.tell(delta("RECEIPT", "a", "n2", 1))
    shop.tell(delta("RECEIPT", "a", "n1", 1, source="wms"))
    shop.tell(delta("RECEIPT", "a", "n1", 1, stream="s", source_sequence=9))
    shop.tell(delta("RECEIPT", "a", "n1", -1))
    assert len(crossings(shop)) == 1
    shop.tell(said)
    assert len(crossings(shop)) == 2
    now = silent_for(shop, now, LIMIT_MS + 2 * STEP_MS)
    assert len(crossings(shop)) == 3
    shop.tell()
    assert len(crossings(shop)) == 4
    now = silent_for(shop, now, LIMIT_MS - STEP_MS)
    shop.tell()
    silent_for(shop, now, LIMIT_MS - STEP_MS)
    assert len(crossings(shop)) == 4


def test_a_node_is_left_out_while_any_of_its_feeds_is_stale(shop: Lab) -> None:
    """Two sources report one node; the WMS is alive, the ERP is not."""
    assert feed(shop, "f2", "wms", "n1") == "OK"
    now = NOW_MS
    for _ in range(5):
        now = silent_for(shop, now, EVERY_MS // 2)
        shop.tell(delta("RECEIPT", "b", "n1", 1, source="wms"))
    assert crossings(shop) == [("erp", "n1", True)]
    assert granted(shop, "q1", "strict") == 4
    assert feed(shop, "f3", "erp", "n1", 0) == "OK"
    assert granted(shop, "q2", "strict") == 7
    assert [f.source for f in shop.ledger.policies().feeds] == ["wms"]


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000, 86_400_000 * 365])
def test_a_jump_of_the_clock_makes_no_feed_stale_early(shop: Lab, jump_ms: int) -> None:
    """Neither does a night in which no server ran: the clock moves 2 s a call at most."""
    shop.control(now_ms=NOW_MS + jump_ms)
    shop.sweep()
    shop.sweep()
    assert crossings(shop) == []
    silent_for(shop, NOW_MS + jump_ms, LIMIT_MS + 2 * STEP_MS)
    assert crossings(shop) == [("erp", "n1", True)]


def test_a_change_of_limits_keeps_the_last_sign(shop: Lab) -> None:
    """A longer limit makes a stale feed fresh with its own event, a shorter one waits for the sweep."""
    now = silent_for(shop, NOW_MS, LIMIT_MS + 2 * STEP_MS)
    assert feed(shop, "f2", "erp", "n1", 60_000) == "OK"
    last = entries(dump(shop.redis))[-1].record()
    body: PolicyBody = decode_body(last)
    assert [(f.interval_ms, f.grace_ms, f.stale, f.reason) for f in body.feeds] == [
        (60_000, GRACE_MS, False, "test")
    ]
    assert granted(shop, "q1", "strict") == 7
    assert feed(shop, "f3", "erp", "n1", 1_000) == "OK"
    assert len(crossings(shop)) == 1
    silent_for(shop, now, STEP_MS)
    assert crossings(shop)[1:] == [("erp", "n1", True)]


def test_a_fresh_event_that_failed_is_made_up_for(shop: Lab) -> None:
    """Where Redis failed between hearing a feed and logging it, the next sweep logs it, once."""
    silent_for(shop, NOW_MS, LIMIT_MS + 2 * STEP_MS)
    shop.redis.hset(BASE + "heard", "3:erpn1", shop.head()[2])
    shop.redis.zadd(BASE + "feed_due", {"3:erpn1": 0})
    shop.sweep()
    shop.sweep()
    assert crossings(shop) == [("erp", "n1", True), ("erp", "n1", False)]


def test_feeds_in_any_order_of_events_equal_the_plain_model(lab: Lab, seed: int) -> None:
    """Deltas, heartbeats, policies and silences drawn at random: crossings and grants are the model's."""
    rng = random.Random(seed)
    model, now, numbers = Model(), NOW_MS, iter(range(10**6))
    lab.control(now_ms=now)
    heard: dict[tuple[str, str], int] = {}
    removed: set[tuple[str, str]] = set()  # watched anew, it is fresh without an event of its own
    nodes, sources = ["n1", "n2", "n3"], ["erp", "wms"]
    for name, staleness in (("strict", 2), ("web", 1)):
        lab.policy(name, "channel", [name, True, [], 0, -1, 0, 0, -1, staleness, 1])
        model.set_channel(name, Policy(exclude_stale=staleness == 2))
    for step in range(300):
        kind = rng.choice(["delta", "delta", "heartbeat", "feed", "wait", "wait"])
        source, node = rng.choice(sources), rng.choice(nodes)
        if kind == "delta":
            event = f"e{next(numbers)}"
            lab.tell(delta("RECEIPT", "a", node, 1, source=source, event_id=event))
            model.apply_delta(
                Delta(source=source, type="RECEIPT", event_id=event, sku="a", node=node, quantity=1)
            )
            heard |= {(source, node): now} if (source, node) in model.feeds else {}
        elif kind == "heartbeat":
            lab.fcall("deltas", (source, [], True, 10**9))
            model.heartbeat(source)
            heard |= {one: now for one in model.feeds if one[0] == source}
        elif kind == "feed":
            watched = rng.random() < 0.7
            feed(lab, f"f{next(numbers)}", source, node, EVERY_MS if watched else 0)
            if watched and (source, node) not in model.feeds:
                heard[source, node] = now
            model.set_feed(source, node, watched=watched)
            removed |= set() if watched else {(source, node)}
        else:
            now += rng.choice([500, 1_000, 2_000])
            lab.control(now_ms=now)
            lab.sweep()
            for one, is_stale in model.feeds.items():
                if not is_stale and now - heard[one] > LIMIT_MS:
                    model.silence(*one)
        assert {(f.source, f.node): f.stale for f in lab.ledger.policies().feeds} == model.feeds, step
        for channel in ("strict", "web") if model.positions else ():
            sellable = model.terms(channel, "a").sellable
            assert granted_of(lab, f"q{next(numbers)}", channel, sellable + 1) == sellable, step
    last: dict[tuple[str, str], bool] = {}
    for told_source, told_node, stale in crossings(lab):
        feed_told = (told_source, told_node)
        assert feed_told in removed or last.get(feed_told, False) is not stale, "once per crossing"
        last[told_source, told_node] = stale


def granted_of(lab: Lab, request_id: str, channel: str, wanted: int) -> int:
    reply = lab.reserve(request_id, [("a", wanted)], channel=channel)
    assert reply.status == "INSUFFICIENT_STOCK"
    return reply.shortages[0][1]
