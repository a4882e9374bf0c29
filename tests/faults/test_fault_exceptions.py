"""Exceptions as the ledger keeps them: equal to the plain model after every call, and resumable at every point."""

from __future__ import annotations

import random
from typing import Any  # Any: Redis' client

from msgspec.structs import replace

from availability.domain.exceptions import ExceptionCategory
from availability.domain.version import ZERO, Version
from availability.ledger import calls
from availability.ledger.exceptions import ExceptionReporter, sighting
from availability.ledger.record import ExceptionBody, ExceptionState, Kind, decode_body
from tests.faults.audit import dump, entries
from tests.faults.lab import BASE, Lab, deadline, delta, request_key
from tests.model_exceptions import RESOLVED, Exceptions, Kept, Seen

NOW_MS = 1_760_000_000_000
LIMITS = {"change_ms": 5_000, "keep_ms": 60_000, "open_max": 6, "seen_ms": 3_000}
STEPS = 250


def report_of(seen: list[Seen], gone: list[str], version: Version) -> calls.Report:
    sightings = [
        calls.Sighting(s.id, 2, s.severity, "stock", f"{s.quantity}", quantity=s.quantity) for s in seen
    ]
    return calls.Report("tester", version.epoch, version.seq, sightings, gone, calls.ReportLimits(**LIMITS))


def read_all(lab: Lab, after: Version = ZERO) -> dict[str, ExceptionState]:
    """Read exceptions after a version, with when they were last seen."""
    found: dict[str, ExceptionState] = {}
    more = True
    seen: dict[str, int] = {}
    while more:
        reply = lab.ledger.exceptions(after, 0)
        found |= {state.exception_id: state for state in reply.states}
        pairs: list[Any] = list(reply.seen)
        seen = dict(zip(pairs[::2], pairs[1::2], strict=True))
        more = reply.more
        if reply.states:
            after = Version.parse(reply.states[-1].version)
    return {
        id_: replace(state, last_seen_ms=max(state.last_seen_ms, seen.get(id_, 0)))
        if state.state != RESOLVED
        else state
        for id_, state in found.items()
    }


def figures(one: Kept | ExceptionState) -> tuple[Any, ...]:
    if isinstance(one, Kept):
        return (
            one.state,
            one.severity,
            one.quantity,
            one.first_ms,
            one.last_ms,
            one.changed_ms,
            one.by,
            one.note,
        )
    return (
        one.state, one.severity, one.quantity, one.first_seen_ms, one.last_seen_ms, one.changed_ms,
        one.acknowledged_by, one.note,
    )  # fmt: skip


def check_indexes(client: Any) -> None:
    """The hash and its four indexes tell the same."""
    keys = dump(client)
    kept = {name for name in keys.get(BASE + "exc", {}) if name}
    by_index = {
        what: {name for name, _ in keys.get(BASE + what, [])}
        for what in ("exc_at", "exc_seen", "exc_open", "exc_over")
    }
    assert by_index["exc_at"] == by_index["exc_seen"] == kept
    assert by_index["exc_open"] | by_index["exc_over"] == kept
    assert not by_index["exc_open"] & by_index["exc_over"]


def test_the_ledger_keeps_exceptions_like_the_plain_model(lab: Lab, seed: int) -> None:
    """After each random report, acknowledgement, age and sweep: equal states; every old point resumes."""
    draw = random.Random(seed)
    lab.control(now_ms=NOW_MS)
    lab.sweep()
    model = Exceptions(**LIMITS)
    names = [f"exception {n}" for n in range(10)]
    versions: list[tuple[int, Version]] = [(0, lab.ledger.head().version)]
    snapshots: list[tuple[Version, dict[str, tuple[Any, ...]]]] = []
    for step in range(STEPS):
        model.clock_ms = lab.head()[2]
        action = draw.choice(("report", "report", "report", "acknowledge", "age", "sweep"))
        if action == "report":
            picked = draw.sample(names, draw.randrange(0, 5))
            seen = [Seen(name, draw.randrange(1, 4), draw.randrange(3)) for name in picked]
            gone = draw.sample(names, draw.randrange(0, 3))
            looked_at, version = versions[max(0, len(versions) - draw.choice((1, 1, 1, 2, 4)))]
            model.left_out = 0
            logged = model.report(seen, gone, looked_at)
            reply = lab.ledger.report_exceptions(report_of(seen, gone, version), deadline())
            assert reply.left_out == model.left_out
            if logged:
                versions.append((model.at, Version.parse(reply.version)))
        elif action == "acknowledge":
            name, note = draw.choice(names), f"note {step}"
            expected = model.acknowledge(name, "tester", note)
            told = lab.ledger.acknowledge_exception(
                calls.Acknowledge(request_key(f"ack {step}"), name, note), deadline()
            )
            assert told.status == expected
            if expected == "OK":
                versions.append((model.at, Version.parse(told.version)))
        elif action == "age":
            lab.age(draw.choice((500, 4_000, 30_000)))
        else:
            lab.sweep()
            model.sweep()
        found = read_all(lab)
        assert {name: figures(one) for name, one in found.items()} == {
            name: figures(one) for name, one in model.kept.items()
        }, f"step {step}: {action}"
        snapshots.append((lab.ledger.head().version, {n: figures(o)[:3] for n, o in found.items()}))
    check_indexes(lab.redis)
    last = {name: figures(one)[:3] for name, one in read_all(lab).items()}
    floor = lab.ledger.exceptions(ZERO, 0).floor
    for version, then in snapshots[:: max(1, STEPS // 40)]:
        if version.epoch * (1 << 40) + version.seq < floor:
            continue  # what was resolved is forgotten by now: such a watcher gets everything
        changed = {name: figures(one)[:3] for name, one in read_all(lab, version).items()}
        now = {**then, **changed}
        assert {n: f for n, f in now.items() if n in last} == last
        assert all(f[0] == RESOLVED for n, f in now.items() if n not in last)


def test_the_log_tells_every_change(lab: Lab) -> None:
    """Opened, changed, acknowledged and resolved are records in the log; what is only seen again is none."""
    reporter = ExceptionReporter(lab.ledger, "publisher", lambda: deadline(0), change_ms=0)
    subject = ("shop", "a")
    id_ = reporter.report(ExceptionCategory.PUBLISH_FAILED, subject, "not taken", sku="a", quantity=1)
    assert reporter.report(ExceptionCategory.PUBLISH_FAILED, subject, "not taken", sku="a", quantity=1) == id_
    reporter.report(ExceptionCategory.PUBLISH_FAILED, subject, "not taken", sku="a", quantity=2)
    lab.ledger.acknowledge_exception(calls.Acknowledge(request_key("ack"), id_, "on it"), deadline())
    reporter.resolve(ExceptionCategory.PUBLISH_FAILED, subject)
    reporter.resolve(ExceptionCategory.PUBLISH_FAILED, subject)
    reporter.report(ExceptionCategory.PUBLISH_FAILED, subject, "not taken", sku="a", quantity=3)
    bodies: list[ExceptionBody] = [
        decode_body(entry.record())
        for entry in entries(dump(lab.redis))
        if entry.record().kind == Kind.EXCEPTION
    ]
    told = [(one.state, one.quantity, one.acknowledged_by) for body in bodies for one in body.exceptions]
    assert told == [(1, 1, ""), (1, 2, ""), (2, 2, "tester"), (3, 2, "tester"), (1, 3, "")]


def test_an_acknowledgement_is_decided_once(lab: Lab) -> None:
    """The same request again answers the first outcome; another content under its id is refused."""
    lab.ledger.report_exceptions(report_of([Seen("x", 2, 1)], [], ZERO), deadline())
    ask = calls.Acknowledge(request_key("ack", "1"), "x", "first")
    first, again = (lab.ledger.acknowledge_exception(ask, deadline()) for _ in range(2))
    assert (first.status, first.replayed, again.replayed, again.version) == ("OK", False, True, first.version)
    other = calls.Acknowledge(request_key("ack", "2"), "x", "second")
    assert lab.ledger.acknowledge_exception(other, deadline()).status == "REQUEST_ID_REUSED"


def test_orders_that_only_we_know(lab: Lab) -> None:
    """A commit waits for the source's word; a word, an allocation, a shipment or a cancel ends that, before it too."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 50)

    def waiting() -> list[str]:
        return [name for name, _ in lab.ledger.troubles(parked_ms=0, unconfirmed_ms=1, count=100).orders]

    order: dict[str, Any] = {"order_source": "web"}
    lab.tell(delta("ORDER_PLACED", "a", "", 1, order_ref="told", **order))
    for ref in ("told", "placed", "allocated", "shipped", "cancelled", "forgotten"):
        lab.reserve(f"hold {ref}", [("a", 1)])
        assert lab.commit(f"commit {ref}", f"r-hold {ref}", ref).status == "COMMITTED"
    lab.age(1_000)
    assert waiting() == [
        f"3:web{ref}" for ref in ("allocated", "cancelled", "forgotten", "placed", "shipped")
    ]
    lab.tell(delta("ORDER_PLACED", "a", "", 1, order_ref="placed", **order))
    lab.tell(delta("ORDER_ALLOCATED", "a", "n1", 1, order_ref="allocated", **order))
    lab.tell(delta("SHIPMENT", "a", "n1", 1, order_ref="shipped", **order))
    lab.tell(delta("ORDER_CANCELLED", order_ref="cancelled", **order))
    assert waiting() == ["3:webforgotten"]
    lab.reserve("more", [("a", 1)])
    lab.commit("commit more", "r-more", "forgotten")
    assert waiting() == ["3:webforgotten"]  # since its first commit


def test_parked_streams_are_told(lab: Lab) -> None:
    """A stream that waits for a number is told after so long, and not any more when the number came."""
    lab.control(now_ms=NOW_MS)
    lab.tell(*(delta("RECEIPT", "a", "n1", 1, stream="s", source_sequence=n) for n in (1, 5)))

    def parked() -> list[str]:
        return [row[1] for row in lab.ledger.troubles(parked_ms=1_000, unconfirmed_ms=0, count=1).parked]

    assert parked() == []
    lab.age(1_000)
    assert parked() == ["s"]
    lab.tell(*(delta("RECEIPT", "a", "n1", 1, stream="s", source_sequence=n) for n in (2, 3, 4, 5)))
    assert parked() == []


def test_short_picks_and_damages_are_told(lab: Lab) -> None:
    """Units that wait in quarantine as short_pick or damage, however the reason is written, from so many units on, the
    most first; released or written off they are told no more."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 50)
    lab.receive("b{:", "n:2", 50)

    def told(least: int) -> list[tuple[str, int]]:
        found = lab.ledger.troubles(
            parked_ms=0, unconfirmed_ms=0, count=10, short_pick_units=least, damage_units=least
        )
        return [*found.short_picks, *found.damages]

    lab.tell(
        delta("QUARANTINE", "a", "n1", 4, reason="Short pick"),
        delta("QUARANTINE", "a", "n1", 3, reason="short_pick"),
        delta("QUARANTINE", "a", "n1", 9, reason="inspection"),
        delta("RECEIPT", "a", "n1", 6, reason="damage"),
        delta("QUARANTINE", "b{:", "n:2", 8, reason="short-pick"),
    )
    short_b, short_a, damaged = ("3:b{:n:2", 8), ("1:an1", 7), ("1:an1", 6)
    assert told(1) == [short_b, short_a, damaged]
    assert told(7) == [short_b, short_a]
    assert told(0) == []
    lab.tell(
        delta("QUARANTINE_RELEASE", "b{:", "n:2", 8, reason="short-pick"),
        delta(
            "QUARANTINE_RELEASE", "a", "n1", 9, reason="short_pick"
        ),  # more than there was: they cancel out
        delta("WRITE_OFF", "a", "n1", 5, reason="damage"),
    )
    assert told(1) == [("1:an1", 1)]
    lab.tell(delta("QUARANTINE", "a", "n1", 4, reason="short_pick"))
    assert told(1) == [("1:an1", 2), ("1:an1", 1)]


def test_two_names_are_never_one_exception() -> None:
    """A subject's names are kept apart in the id."""
    one = sighting(ExceptionCategory.NEGATIVE_ON_HAND, ("ab", "c"), "")
    other = sighting(ExceptionCategory.NEGATIVE_ON_HAND, ("a", "bc"), "")
    assert one.exception_id != other.exception_id
