"""Clocks that jump, and what the ledger forgets when (FAILURES section 2, number 14; CONTRACT section 4).

Redis TIME is set by the test. Days pass by moving the ledger's own clock, as days of sweeps would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any  # Any: a reservation's stored fields

import pytest

from availability.ledger import calls
from tests.faults.audit import audit
from tests.faults.lab import BASE, DAY_MS, Lab, deadline, delta, reserve

NOW_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
SWEEP_MS = 250
HOLD_MS = 10_000
CALL_ADVANCE_MAX_MS = 2_000
SWEEPS_TO_FORGET = 132 * 4
"""A sweep deletes 500 of the 65,536 places of a generation."""


def lifetime(lab: Lab, offset_at: dict[int, int], *, steps_max: int = 200) -> int:
    """Hold a unit while servers sweep every 250 ms; true milliseconds until it was ended.

    ``offset_at`` says by how much Redis TIME is wrong from a step on.
    """
    offset = 0
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 1)
    assert lab.reserve("q", [("a", 1)], hold_ms=HOLD_MS).status == "RESERVED"
    for step in range(1, steps_max):
        offset = offset_at.get(step, offset)
        lab.control(now_ms=NOW_MS + step * SWEEP_MS, offset_ms=offset)
        if lab.sweep().expired:
            audit(lab.redis)
            return step * SWEEP_MS
    pytest.fail(f"the hold is stuck after {steps_max * SWEEP_MS} ms")


@pytest.mark.parametrize(
    ("name", "offset_at"),
    [
        ("right", {}),
        ("an hour forward", {8: HOUR_MS}),
        ("an hour back", {8: -HOUR_MS}),
        ("an hour forward, then right again", {8: HOUR_MS, 16: 0}),
        ("an hour back, then right again", {8: -HOUR_MS, 16: 0}),
        ("years back", {8: -50 * 365 * DAY_MS // 10}),
        ("small steps back", {step: -step * 12 for step in range(4, 200, 4)}),
        (
            "back by a step at every sweep but a tenth",
            {step: -(step // 2) * 150 for step in range(2, 200, 2)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_jump_of_the_clock_ends_nothing_early_and_sticks_nothing(
    lab: Lab, name: str, offset_at: dict[int, int]
) -> None:
    """A clock that jumps takes at most the 2 s of one call from a hold, and never keeps it alive for long."""
    lived = lifetime(lab, offset_at)
    jumps_forward = sum(b > a for a, b in zip([0, *offset_at.values()], offset_at.values(), strict=False))
    assert lived >= HOLD_MS - CALL_ADVANCE_MAX_MS * min(jumps_forward, 1)
    if name == "right":
        assert HOLD_MS <= lived <= HOLD_MS + SWEEP_MS
    # A step back hides one sweep's advance; while the clock runs on, the hold ends.
    assert lived <= HOLD_MS * 2.5 + CALL_ADVANCE_MAX_MS


def test_time_without_servers_does_not_age_holds(lab: Lab) -> None:
    """After hours without a server a hold is 2 s older, not hours."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 1)
    lab.reserve("q", [("a", 1)], hold_ms=HOLD_MS)
    lab.control(now_ms=NOW_MS + 5 * HOUR_MS)
    assert lab.sweep().expired == 0
    lab.control(now_ms=NOW_MS + 5 * HOUR_MS + HOLD_MS - CALL_ADVANCE_MAX_MS - 4 * 1_999 - 1)
    assert lab.sweep().expired == 0
    for step in range(12):
        lab.control(now_ms=NOW_MS + 5 * HOUR_MS + HOLD_MS + step * 1_000)
        expired = lab.sweep().expired
        if expired:
            break
    else:
        pytest.fail("the hold never ended")
    audit(lab.redis)


def test_the_shown_deadline_follows_the_clock_of_the_ledger(lab: Lab) -> None:
    """What a caller is told as the deadline stays right in true time although Redis TIME was an hour ahead."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 1)
    lab.reserve("q", [("a", 1)], hold_ms=HOLD_MS)
    lab.control(now_ms=NOW_MS, offset_ms=HOUR_MS)
    lab.sweep()
    lab.control(now_ms=NOW_MS + 1_000)
    lab.sweep()
    view = lab.ledger.reservation("r-q")
    assert view is not None
    assert abs(view.expire_ms - (NOW_MS + HOLD_MS)) <= CALL_ADVANCE_MAX_MS


# --- what is forgotten, and when


def pass_days(lab: Lab, ms: int) -> None:
    """Let the ledger grow older, Redis TIME with it, and sweep until all that may be forgotten is."""
    lab.age(ms)
    lab.control(now_ms=lab.head()[3])
    for _ in range(SWEEPS_TO_FORGET):
        lab.sweep()


def at_day_end(lab: Lab, generation_ms: int) -> None:
    """Move to the last moment of a generation: what is told now is remembered for the shortest time."""
    clock = lab.head()[2]
    lab.age(generation_ms - clock % generation_ms - 1)
    lab.control(now_ms=lab.head()[3])


def test_a_request_is_remembered_a_day_and_then_refused_not_repeated(lab: Lab) -> None:
    """A request id is a replay for 24 h at least; an older UUIDv7 is REQUEST_ID_TOO_OLD, never a new request."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 9)
    at_day_end(lab, DAY_MS)
    _, _, told_ms, wall_ms, *_ = lab.head()
    call = reserve("q", [("a", 1)], hold_ms=DAY_MS, uuid_ms=wall_ms)
    refused = reserve("too much", [("a", 99)], uuid_ms=wall_ms)
    first = lab.ledger.reserve(call, deadline())
    assert lab.ledger.reserve(refused, deadline()).status == "INSUFFICIENT_STOCK"
    pass_days(lab, DAY_MS - 10)
    lab.receive("a", "n1", 100)
    again = lab.ledger.reserve(call, deadline())
    assert (again.status, again.replayed, again.version) == ("RESERVED", True, first.version)
    assert lab.ledger.reserve(refused, deadline()).status == "INSUFFICIENT_STOCK"
    pass_days(lab, 2 * DAY_MS)
    before = lab.ledger.head()
    for late in (call, refused):
        reply = lab.ledger.reserve(late, deadline())
        assert (reply.status, reply.version) == ("REQUEST_ID_TOO_OLD", "")
    assert lab.ledger.head() == before
    assert not [k for k in audit(lab.redis) if k.startswith(f"{BASE}req:{told_ms // DAY_MS}")]


def test_an_event_is_remembered_thirty_days_and_then_refused_not_repeated(lab: Lab) -> None:
    """An event id is a duplicate for 30 days; an event that occurred before is EVENT_TOO_OLD, also one never seen."""
    lab.control(now_ms=NOW_MS)
    at_day_end(lab, 15 * DAY_MS)
    occurred_us = lab.head()[2] * 1_000
    event = delta("RECEIPT", "a", "n1", 3, event_id="e1", occurred_us=occurred_us)
    assert lab.results(event) == ["APPLIED"]
    pass_days(lab, 30 * DAY_MS - 10)
    assert lab.results(event) == ["DUPLICATE"]
    other = delta("RECEIPT", "a", "n1", 4, event_id="e1", occurred_us=occurred_us)
    assert lab.results(other) == ["REJECTED CONFLICT"]
    pass_days(lab, 20 * DAY_MS)
    unseen = delta("RECEIPT", "a", "n1", 3, event_id="e2", occurred_us=occurred_us)
    assert lab.results(event, unseen) == ["REJECTED EVENT_TOO_OLD"] * 2
    assert lab.position("a", "n1") == (3, 0, 0, 0)
    audit(lab.redis)


@pytest.mark.parametrize("days", [1, 30, 90])
def test_event_ids_are_remembered_as_long_as_the_setting_takes_their_events(
    make_lab: Callable[..., Lab], days: int
) -> None:
    """To the window's last moment a repeat is a DUPLICATE, never new; then nothing of the id is left behind."""
    lab = make_lab(event_window_ms=days * DAY_MS)
    lab.control(now_ms=NOW_MS)
    at_day_end(lab, 15 * DAY_MS)
    event = delta("RECEIPT", "a", "n1", 3, event_id="e1", occurred_us=lab.head()[2] * 1_000)
    assert lab.results(event) == ["APPLIED"]
    for part in (0.4, 0.4):
        pass_days(lab, int(days * part * DAY_MS))
        assert lab.results(event) == ["DUPLICATE"]
    pass_days(lab, int(days * 0.2 * DAY_MS) - 10_000)
    assert lab.results(event) == ["DUPLICATE"]
    pass_days(lab, 20_000)
    assert lab.results(event) in (["DUPLICATE"], ["REJECTED EVENT_TOO_OLD"])
    pass_days(lab, 31 * DAY_MS)
    assert lab.results(event) == ["REJECTED EVENT_TOO_OLD"]
    assert not [key for key in audit(lab.redis) if key.startswith(f"{BASE}evt:")]
    assert lab.position("a", "n1") == (3, 0, 0, 0)


def test_a_sequence_mark_is_kept_for_ever(lab: Lab) -> None:
    """A source that repeats a number after a year is told DUPLICATE."""
    lab.control(now_ms=NOW_MS)
    one = delta("RECEIPT", "a", "n1", 1, stream="s", source_sequence=1)
    two = delta("RECEIPT", "a", "n1", 1, stream="s", source_sequence=2)
    assert lab.results(one) == ["APPLIED"]
    pass_days(lab, 365 * DAY_MS)
    assert lab.results(one, two) == ["DUPLICATE", "APPLIED"]


def test_an_ended_reservation_is_forgotten_after_a_day(lab: Lab) -> None:
    """Ended reservations can be asked for 24 h, then leave nothing behind; a repeated commit is a replay until then."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 9)
    for name in ("sold", "given", "lost", "kept"):
        lab.reserve(name, [("a", 1)], hold_ms=2_000 if name == "lost" else 3 * DAY_MS)
    lab.commit("c", "r-sold", "o1")
    lab.release("x", "r-given")
    lab.control(now_ms=NOW_MS + 2_000)
    assert lab.sweep().expired == 1
    pass_days(lab, DAY_MS - 2_100)
    states = {name: lab.ledger.reservation(f"r-{name}") for name in ("sold", "given", "lost", "kept")}
    assert [v and v.state for v in states.values()] == [2, 3, 4, 1]
    again = lab.commit("c again", "r-sold", "o1")
    assert (again.status, again.replayed) == ("COMMITTED", True)
    pass_days(lab, 2_200)
    found = [lab.ledger.reservation(f"r-{name}") for name in ("sold", "given", "lost", "kept")]
    assert [view is not None for view in found] == [False, False, False, True]
    assert lab.release("x again", "r-given").status == "RESERVATION_NOT_FOUND"
    keys = audit(lab.redis)
    assert [k for k in keys if k.startswith(BASE + "res:")] == [BASE + "res:r-kept"]
    assert not [k for k in keys if k.startswith(BASE + "ended:")]


def test_a_closed_order_refuses_later_facts(lab: Lab) -> None:
    """An order that has shipped is forgotten 30 days after its last fact, and says so; an open one never is."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 9)
    order = {"order_source": "web", "order_ref": "done"}
    lab.reserve("q", [("a", 2)], order_source="web", order_ref="done")
    lab.commit("c", "r-q", "done", "web")
    assert lab.results(delta("ORDER_PLACED", "a", "", 1, order_source="web", order_ref="open")) == ["APPLIED"]
    assert lab.results(delta("SHIPMENT", "a", "n1", 2, **order)) == ["APPLIED"]
    pass_days(lab, 30 * DAY_MS - 10)
    assert lab.ledger.order("web", "done")[1] is not None
    pass_days(lab, 1_000)
    assert lab.ledger.order("web", "done")[1] is None
    assert lab.ledger.order("web", "open")[1] is not None
    before: Any = lab.position("a", "n1")
    late = [delta("SHIPMENT", "a", "n1", 1, **order), delta("ORDER_CHANGED", "a", "", 5, **order)]
    assert lab.results(*late) == ["REJECTED ORDER_CLOSED"] * 2
    assert lab.reserve("new", [("a", 1)], order_source="web", order_ref="done").status == "ORDER_CLOSED"
    lab.reserve("new2", [("a", 1)])
    assert lab.commit("c2", "r-new2", "done", "web").status == "ORDER_CLOSED"
    assert isinstance(lab.ledger.reservation("r-new2"), calls.HoldView)
    assert lab.position("a", "n1") == (before[0], before[1], before[2] + 1, before[3])
    audit(lab.redis)


def test_linked_names_close_together(lab: Lab) -> None:
    """A name of which nobody spoke for long stays open while its order lives under another name, and closes with it."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 9)
    shop, erp = ({"order_source": source, "order_ref": "1"} for source in ("web", "erp"))
    link = {"linked_order_source": "web", "linked_order_ref": "1", **erp}
    assert (
        lab.results(delta("ORDER_PLACED", "a", "", 2, **shop), delta("LINK_ORDER", quantity=1, **link))
        == ["APPLIED"] * 2
    )
    pass_days(lab, 20 * DAY_MS)
    assert lab.results(delta("SHIPMENT", "a", "n1", 2, **erp)) == ["APPLIED"]
    pass_days(lab, 20 * DAY_MS)
    assert lab.ledger.order("web", "1")[4] == [("erp", "1")]
    pass_days(lab, 11 * DAY_MS)
    late = [delta("SHIPMENT", "a", "n1", 1, **shop), delta("LINK_ORDER", quantity=1, **link)]
    late.append(delta("LINK_ORDER", quantity=1, linked_order_source="new", linked_order_ref="1", **erp))
    assert lab.results(*late) == ["REJECTED ORDER_CLOSED"] * 3
    audit(lab.redis)


def test_an_open_order_closes_after_its_own_last_fact(lab: Lab) -> None:
    """An order that was open for months closes 30 days after its shipment, not before."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 9)
    order = {"order_source": "web", "order_ref": "slow"}
    assert lab.results(delta("ORDER_PLACED", "a", "", 1, **order)) == ["APPLIED"]
    pass_days(lab, 90 * DAY_MS)
    assert lab.results(delta("SHIPMENT", "a", "n1", 1, **order)) == ["APPLIED"]
    pass_days(lab, 29 * DAY_MS)
    assert lab.ledger.order("web", "slow")[1] is not None
    pass_days(lab, 2 * DAY_MS)
    assert lab.results(delta("SHIPMENT", "a", "n1", 1, **order)) == ["REJECTED ORDER_CLOSED"]
    audit(lab.redis)


def test_an_expired_hold_of_kits_is_reserved_anew_by_its_own_recipe(lab: Lab) -> None:
    """A commit after expiry takes what the hold was made of, kits and a part beside them together, or nothing."""
    lab.control(now_ms=NOW_MS)
    lab.receive("cup", "n1", 9)
    lab.receive("pot", "n1", 2)
    lab.policy("k1", "kit", ["set", [["cup", 4], ["pot", 1]]])
    for name in ("sold", "lost"):
        held = lab.reserve(name, [("set", 1), ("cup", 1)], hold_ms=2_000 if name == "sold" else 3_000)
        assert held.status == ("RESERVED" if name == "sold" else "INSUFFICIENT_STOCK")
    lab.policy("k2", "kit", ["set", [["cup", 1]]])
    lab.control(now_ms=NOW_MS + 2_000)
    assert lab.sweep().expired == 1
    assert lab.position("cup", "n1") == (9, 0, 0, 0)
    late = lab.commit("c", "r-sold", "o1")
    assert late.status == "COMMITTED"
    assert [(line.sku, line.kit_sku) for line in late.lines] == [("cup", "set"), ("pot", "set"), ("cup", "")]
    assert (lab.position("cup", "n1"), lab.position("pot", "n1")) == ((9, 0, 0, 5), (2, 0, 0, 1))
    kits = lab.ledger.order("web", "o1")[3]
    assert [(kit, [(made.quantity, made.flat) for made in recipes]) for kit, recipes in kits] == [
        ("set", [(1, [("cup", 4), ("pot", 1)])])
    ]
    audit(lab.redis)


def test_an_expired_hold_of_kits_is_lost_where_a_shared_part_is_short(lab: Lab) -> None:
    """Four cups in the kit and one beside it are five, and four are left: no part of it is committed."""
    lab.control(now_ms=NOW_MS)
    lab.receive("cup", "n1", 5)
    lab.policy("k1", "kit", ["set", [["cup", 4]]])
    assert lab.reserve("first", [("set", 1), ("cup", 1)], hold_ms=2_000).status == "RESERVED"
    lab.control(now_ms=NOW_MS + 2_000)
    assert lab.sweep().expired == 1
    assert lab.reserve("other", [("cup", 1)]).status == "RESERVED"
    assert lab.commit("c", "r-first", "o1").status == "RESERVATION_EXPIRED"
    assert lab.position("cup", "n1") == (5, 0, 1, 0)
    audit(lab.redis)
