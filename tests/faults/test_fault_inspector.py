"""Exceptions from cause to end: each category opens, ages, is taken in hand, is over by itself and opens anew.

Real ledger, real replicas; a look is a call, so that no test waits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any  # Any: a lab's settings, by name

import pytest

from availability.domain.exceptions import RULES, ExceptionCategory, ExceptionState
from availability.ledger import calls
from availability.ledger.exceptions import ExceptionReporter
from availability.ledger.record import ExceptionState as Kept
from availability.ledger.record import Kind
from availability.replica.replica import Replica
from availability.replica.settings import ReplicaSettings
from availability.service.exception_book import ExceptionBook
from availability.service.inspector import Inspector, InspectorSettings
from tests.faults.audit import dump, entries
from tests.faults.lab import Lab, deadline, delta, request_key

OPEN, ACKNOWLEDGED, RESOLVED = ExceptionState.OPEN, ExceptionState.ACKNOWLEDGED, ExceptionState.RESOLVED
SETTINGS = InspectorSettings(
    resolve_after_ms=10_000, change_ms=0, parked_ms=30_000, order_unconfirmed_ms=3_600_000
)
MINUTE_MS = 60_000


@dataclass
class Desk:
    """One server's way to exceptions, over a ledger that it may share."""

    lab: Lab
    settings: InspectorSettings = SETTINGS
    now_s: float = 1_000.0
    told: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replica = Replica(
            self.lab.ledger,
            ReplicaSettings(auto_create=True, block_ms=0),
            time.monotonic,
            random.Random(1),
        )
        self.book = ExceptionBook(self.lab.ledger)
        self.inspector = Inspector(
            self.lab.ledger,
            self.replica,
            self.book,
            self.settings,
            lambda: self.now_s,
            publish=lambda counts, left, figures: self.told.append((counts, left, figures)),
        )
        self.inspector._reporter = ExceptionReporter(
            self.lab.ledger, "availability", time.monotonic, change_ms=0, seen_ms=self.settings.seen_ms,
            open_max=self.settings.open_max,
        )  # fmt: skip

    def look(self, *, after_s: float = 6.0) -> list[Kept]:
        """Let time pass, catch up with the ledger, look once; what is in the book."""
        self.now_s += after_s
        while self.replica.version < self.lab.ledger.head().version or not self.replica.ready:
            self.replica.step()
        self.replica.step()
        self.inspector.inspect()
        return self.book.all()

    def look_until_over(self) -> list[Kept]:
        self.look()
        return self.look(after_s=11.0)


def of(found: list[Kept], category: ExceptionCategory) -> Kept:
    """The one exception of a category."""
    (one,) = [one for one in found if one.category == category]
    return one


def commit(lab: Lab, name: str, quantity: int) -> None:
    assert lab.reserve(name, [("a", quantity)]).status == "RESERVED"
    assert lab.commit(f"c {name}", f"r-{name}", name).status == "COMMITTED"


def oversell(lab: Lab) -> None:
    lab.receive("a", "n1", 5)
    commit(lab, "1001", 5)
    lab.tell(delta("QUARANTINE", "a", "n1", 3, reason="damage"))


def send_number(lab: Lab, *numbers: int) -> None:
    lab.tell(*(delta("RECEIPT", "d", "n1", 1, stream="s", source_sequence=n) for n in numbers))


def feed(lab: Lab) -> None:
    assert lab.policy("feed", "feed", ["wms", "n1", 60_000, 60_000]).status == "OK"
    lab.age(10 * MINUTE_MS)
    lab.sweep()


def order(lab: Lab) -> None:
    lab.receive("a", "n1", 5)
    commit(lab, "1002", 2)
    lab.age(61 * MINUTE_MS)


def offline(lab: Lab) -> None:
    lab.receive("a", "n1", 5)
    commit(lab, "1003", 4)
    lab.policy("off", "node", ["n1", 2])


def parked(lab: Lab) -> None:
    send_number(lab, 1, 4)
    lab.age(MINUTE_MS)


def park_again(lab: Lab) -> None:
    send_number(lab, 9)
    lab.age(MINUTE_MS)


def order_again(lab: Lab) -> None:
    commit(lab, "1009", 1)
    lab.age(61 * MINUTE_MS)


def silence_again(lab: Lab) -> None:
    lab.age(10 * MINUTE_MS)
    lab.sweep()


Step = Callable[[Lab], Any]
CASES: dict[ExceptionCategory, tuple[Step, Step, Step]] = {
    ExceptionCategory.OVERSOLD: (
        oversell,
        lambda lab: lab.receive("a", "n2", 3),
        lambda lab: lab.tell(delta("ADJUSTMENT", "a", "n2", -3)),
    ),
    ExceptionCategory.NEGATIVE_ON_HAND: (
        lambda lab: lab.tell(delta("ADJUSTMENT", "a", "n1", -2)),
        lambda lab: lab.receive("a", "n1", 2),
        lambda lab: lab.tell(delta("ADJUSTMENT", "a", "n1", -1)),
    ),
    ExceptionCategory.NODE_OFFLINE_WITH_HOLDS: (
        offline,
        lambda lab: lab.policy("on", "node", ["n1", 1]),
        lambda lab: lab.policy("off again", "node", ["n1", 2]),
    ),
    ExceptionCategory.PARKED_STREAM: (
        parked,
        lambda lab: send_number(lab, 2, 3, 4),
        park_again,
    ),
    ExceptionCategory.ORDER_UNCONFIRMED: (
        order,
        lambda lab: lab.tell(delta("ORDER_PLACED", "a", "", 2, order_source="web", order_ref="1002")),
        order_again,
    ),
    ExceptionCategory.FEED_STALE: (
        feed,
        lambda lab: lab.tell(delta("RECEIPT", "a", "n1", 1, source="wms")),
        silence_again,
    ),
}


@pytest.mark.parametrize("category", CASES, ids=lambda category: category.name)
def test_an_exception_lives(lab: Lab, category: ExceptionCategory) -> None:
    """It opens with its severity, owner and who is at risk; ages; is taken in hand; is over by itself; opens anew."""
    cause, cure, again = CASES[category]
    desk = Desk(lab)
    lab.receive("quiet", "n9", 1)
    assert desk.look() == []
    cause(lab)
    opened = of(desk.look(), category)
    assert (opened.state, opened.severity, opened.owner) == (
        OPEN,
        RULES[category].severity,
        RULES[category].owner,
    )
    expects_orders = category in (
        ExceptionCategory.OVERSOLD,
        ExceptionCategory.NODE_OFFLINE_WITH_HOLDS,
        ExceptionCategory.ORDER_UNCONFIRMED,
    )
    assert bool(opened.at_risk) is expects_orders
    for risk in opened.at_risk:
        assert (risk.order_source, risk.sku, risk.node) == ("web", "a", "n1")
    lab.age(40_000)
    lab.sweep() if category is not ExceptionCategory.FEED_STALE else None
    aged = of(desk.look(), category)
    assert (aged.first_seen_ms, aged.state) == (opened.first_seen_ms, OPEN)
    assert aged.last_seen_ms > opened.last_seen_ms
    call = calls.Acknowledge(request_key("ack"), opened.exception_id, "counting")
    assert lab.ledger.acknowledge_exception(call, deadline()).status == "OK"
    taken = of(desk.look(), category)
    assert (taken.state, taken.acknowledged_by, taken.note) == (ACKNOWLEDGED, "tester", "counting")
    cure(lab)
    assert of(desk.look(), category).state == ACKNOWLEDGED  # it must stay away first
    over = of(desk.look(after_s=11.0), category)
    assert (over.state, over.acknowledged_by) == (RESOLVED, "tester")
    lab.age(1_000)
    again(lab)
    latest = [one for one in desk.look() if one.category == category and one.state != RESOLVED]
    assert [(one.state, one.acknowledged_by, one.note) for one in latest] == [(OPEN, "", "")]
    assert latest[0].first_seen_ms > opened.first_seen_ms


def test_two_servers_report_one_exception(lab: Lab) -> None:
    """Both see it, one version opens it and one ends it, and both tell the same."""
    one, other = Desk(lab), Desk(lab)
    one.look()
    other.look()
    oversell(lab)
    for _ in range(3):
        assert one.look() == other.look()
    lab.receive("a", "n2", 9)
    for _ in range(4):
        one.look()
        other.look()
    assert one.look() == other.look()
    told = [entry for entry in entries(dump(lab.redis)) if entry.record().kind == Kind.EXCEPTION]
    assert len(told) == 2


def test_a_server_that_lags_reopens_nothing(lab: Lab) -> None:
    """What was seen before the last change does not count."""
    desk, late = Desk(lab), Desk(lab)
    late.look()
    oversell(lab)
    desk.look()
    late.look()
    lab.receive("a", "n2", 9)
    desk.look_until_over()
    late.now_s += 20
    late.inspector.inspect()  # without having read that stock came
    assert of(late.book.all(), ExceptionCategory.OVERSOLD).state == RESOLVED


def test_a_restart_keeps_when_and_who(lab: Lab) -> None:
    """Another server goes on with what the first one saw and somebody took in hand."""
    oversell(lab)
    first = of(Desk(lab).look(), ExceptionCategory.OVERSOLD)
    call = calls.Acknowledge(request_key("ack"), first.exception_id, "on it")
    lab.ledger.acknowledge_exception(call, deadline())
    lab.age(MINUTE_MS)
    again = of(Desk(lab).look(), ExceptionCategory.OVERSOLD)
    assert (again.first_seen_ms, again.acknowledged_by) == (first.first_seen_ms, "tester")


def test_a_flapping_number_is_one_exception(lab: Lab) -> None:
    """Above and below nothing every second: one record, not one a second."""
    desk = Desk(lab)
    desk.look()
    for _ in range(6):
        lab.tell(delta("ADJUSTMENT", "a", "n1", -1))
        desk.look(after_s=1.0)
        lab.receive("a", "n1", 1)
        desk.look(after_s=1.0)
    told = [entry for entry in entries(dump(lab.redis)) if entry.record().kind == Kind.EXCEPTION]
    assert len(told) == 1


def test_an_uncovered_order_fact_is_oversold(lab: Lab) -> None:
    """An order that its own channel's nodes cannot cover is told, though another channel's node has plenty."""
    lab.policy("web", "channel", ["web", False, ["n1"], 0, -1, 0, 0, -1, 1, 1])
    lab.receive("a", "n1", 1)
    lab.receive("a", "n2", 50)
    desk = Desk(lab)
    assert desk.look() == []
    lab.tell(delta("ORDER_PLACED", "a", "", 4, order_source="web", order_ref="1004"))
    found = of(desk.look(), ExceptionCategory.OVERSOLD)
    assert (found.quantity, [risk.order_ref for risk in found.at_risk]) == (3, ["1004"])
    assert of(Desk(lab).look(), ExceptionCategory.OVERSOLD).state == OPEN  # a restart still knows
    lab.receive("a", "n1", 3)
    assert of(desk.look_until_over(), ExceptionCategory.OVERSOLD).state == RESOLVED


def test_there_is_a_limit(lab: Lab) -> None:
    """Beyond it only more severe ones come in; the others are counted."""
    desk = Desk(lab, settings=InspectorSettings(open_max=3, resolve_after_ms=0))
    lab.tell(*(delta("ADJUSTMENT", f"sku {n}", "n1", -1) for n in range(6)))
    desk.look()
    assert len(desk.book.open()) == 3
    oversell(lab)
    found = desk.look()
    assert of(found, ExceptionCategory.OVERSOLD).state == OPEN
    assert len(desk.book.open()) == 3
    counts, left_out, _ = desk.told[-1]
    assert sum(counts.values()) == 3
    assert left_out[ExceptionCategory.NEGATIVE_ON_HAND] == 4


def test_figures_are_told(lab: Lab) -> None:
    """Units oversold, and how old the oldest unconfirmed order, parked stream and exception are; nothing wrong: 0."""
    desk = Desk(lab)
    lab.receive("a", "n1", 5)
    desk.look()
    quiet = desk.told[-1][2]
    assert (quiet.oversold_units, quiet.unconfirmed_order_age_s, quiet.parked_stream_age_s) == (0, 0, 0)
    assert quiet.oldest_age_s == {}
    oversell(lab)
    lab.tell(delta("ADJUSTMENT", "a", "n1", -5))
    send_number(lab, 1, 4)
    lab.age(61 * MINUTE_MS)
    desk.look()
    lab.age(MINUTE_MS)
    lab.sweep()
    desk.look()
    told = desk.told[-1][2]
    assert told.oversold_units == 3  # 10 came, 5 went, 3 are damaged: 2 for the 5 that are promised
    assert 3_660 <= told.unconfirmed_order_age_s <= 3_800
    assert 3_660 <= told.parked_stream_age_s <= 3_800
    assert told.oldest_age_s[ExceptionCategory.OVERSOLD] >= 50
    lab.receive("a", "n2", 3)
    send_number(lab, 2, 3, 4)
    desk.look()
    told = desk.told[-1][2]
    assert (told.oversold_units, told.parked_stream_age_s) == (0, 0)
