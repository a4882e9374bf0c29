"""The audit: sums that do not add up, what was forgotten, and how it is freed. FAILURES number 16."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any  # Any: bodies of several kinds

import pytest
import redis

from availability.audit import AuditLimits, ReleaseRefused, audit, release_hold, release_order
from availability.cli.errors import EXIT_BROKEN, EXIT_FORGOTTEN, EXIT_REFUSED
from availability.cli.root import run
from availability.client import Client, ClientError
from availability.domain.version import ZERO
from availability.ledger.record import DeltasBody, Entry, Kind, ReleasedBody, decode_body
from availability.ledger.snapshots import SnapshotLedger
from availability.service.audit_handlers import AuditHandlers
from availability.service.auth import Principal
from availability.service.context import CallContext
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from tests.conftest import Server, serving
from tests.faults.lab import BASE, Lab, deadline, delta, own_lab

SOON = AuditLimits(unconfirmed_ms=1, stuck_ms=1, silent_ms=3_600_000)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A ledger without servers: nobody sweeps."""
    with own_lab() as made:
        yield made


def findings(lab: Lab, *, overdue_ms: int = 0) -> list[stk.AuditFinding]:
    """Ask every page."""
    handlers = AuditHandlers(SnapshotLedger(lab.ledger))
    ctx = CallContext(Principal(id="tester", scopes=frozenset()), deadline(30))
    request = stk.AuditLedgerRequest(silent_ms=10**10, stuck_ms=10**10, overdue_ms=overdue_ms)
    found: list[stk.AuditFinding] = []
    while True:
        page = handlers.audit_ledger(request, ctx)
        found += page.findings
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


def test_every_sum_is_checked(lab: Lab) -> None:
    """A position that says something else than its holds, its orders or its reasons is found, with both figures."""
    lab.receive("sum", "n1", 10)
    lab.tell(delta("QUARANTINE", "sum", "n1", 3, reason="damage"))
    assert lab.reserve("sum h", [("sum", 2)]).status == "RESERVED"
    assert lab.reserve("sum c", [("sum", 1)], order_ref="sum o", order_source="web").status == "RESERVED"
    lab.tell(
        delta("ORDER_PLACED", "sum", "", 1, order_ref="sum o", order_source="web")
    )  # the hold counts less
    assert lab.commit("sum k", "r-sum c", "sum o", "web").status == "COMMITTED"
    assert lab.reserve("sum w", [("sum", 1)], order_ref="sum p", order_source="web").status == "RESERVED"
    lab.tell(delta("ORDER_PLACED", "sum", "", 1, order_ref="sum p", order_source="web"))
    assert findings(lab) == []
    key, field = BASE + "pos:sum", "nn1"
    right = lab.redis.hget(key, field)
    on_hand, quarantined, reserved, committed = struct.unpack_from("<4q", right)
    assert (quarantined, reserved, committed) == (3, 2, 2)
    wrong = struct.pack("<4q", on_hand, quarantined + 1, reserved + 2, committed + 3) + right[32:]
    lab.redis.hset(key, field, wrong)
    kinds = {one.kind: (one.quantity, one.expected_quantity) for one in findings(lab)}
    assert kinds == {
        stk.AUDIT_KIND_QUARANTINED_MISMATCH: (4, 3),
        stk.AUDIT_KIND_RESERVED_MISMATCH: (4, 2),
        stk.AUDIT_KIND_COMMITTED_MISMATCH: (5, 2),
    }
    lab.redis.hset(key, field, right)
    lab.redis.hdel(BASE + "use:sum", "hr-sum h")
    (one,) = findings(lab)
    assert (one.kind, one.sku, one.node) == (stk.AUDIT_KIND_RESERVED_MISMATCH, "sum", "n1")
    assert (one.quantity, one.expected_quantity) == (2, 0)
    lab.redis.hset(BASE + "use:sum", "hr-sum h", "1")
    assert findings(lab) == []


def test_a_hold_that_nobody_ended_is_found_and_freed(lab: Lab) -> None:
    """Past its deadline by more than was asked: found by its id and units; a sweep ends it, and it is found no more."""
    lab.receive("due", "n1", 10)
    assert lab.reserve("due h", [("due", 4)], hold_ms=1_000).status == "RESERVED"
    lab.age(7_000)
    assert [one.reservation_id for one in findings(lab, overdue_ms=10_000)] == []
    (one,) = findings(lab)
    assert (one.kind, one.reservation_id, one.quantity) == (stk.AUDIT_KIND_HOLD_OVERDUE, "r-due h", 4)
    assert 5_000 <= one.age_ms <= 60_000
    lab.sweep()
    assert findings(lab) == []


@pytest.fixture(scope="module")
def alone() -> Iterator[Server]:
    """A server of this module's own: the audit looks at all of a ledger."""
    with serving() as started:
        yield started


@pytest.fixture
def client(alone: Server) -> Iterator[Client]:
    with Client(alone.grpc) as made:
        yield made


def sell(client: Client, ref: str) -> None:
    client.apply_deltas(
        "erp",
        [stk.Delta(source="erp", event_id=ref, type=stk.DELTA_TYPE_RECEIPT, sku=ref, node="n1", quantity=5)],
    )
    held = client.reserve("web", {ref: 2}, hold_s=60)
    client.commit(held.reservation.reservation_id, ref)


def bodies_of(alone: Server, kind: Kind) -> list[Any]:
    """What the log says of one kind, the oldest first."""
    with redis.Redis.from_url(alone.redis) as raw:
        (key,) = [name for name in raw.keys("*log") if raw.type(name) == b"stream"]
        entries = [Entry(ZERO, "", fields[b"r"]).record() for _, fields in raw.xrange(key)]
    return [decode_body(record) for record in entries if record.kind == kind]


def test_forgotten_orders_are_told_and_released(client: Client, alone: Server) -> None:
    """An order that nobody confirmed is told once; released it holds nothing, with author and reason in the log."""
    sell(client, "o-1")
    sell(client, "o-2")
    found = audit(client, SOON)
    assert found.broken == []
    told = {(one.order_source, one.order_ref): one for one in found.forgotten}
    assert set(told) == {("web", "o-1"), ("web", "o-2")}
    assert told["web", "o-1"].kind == stk.AUDIT_KIND_ORDER_UNCONFIRMED
    assert told["web", "o-1"].quantity == 2
    freed = release_order(client, "web", "o-1", "paid nowhere", author="anna", event_id="release 1")
    assert (freed.units, freed.what) == (2, "order o-1 of web")
    assert client.get("web", "o-1", min_version=freed.version).sellable_quantity == 5
    again = release_order(client, "web", "o-1", "paid nowhere", author="anna", event_id="release 1")
    assert again.units == 0
    assert {one.order_ref for one in audit(client, SOON).forgotten} == {"o-2"}
    last: DeltasBody = bodies_of(alone, Kind.DELTAS)[-1]
    assert (last.source, last.causes[0].author, last.causes[0].reason) == (
        "reconcile",
        "anna",
        "paid nowhere",
    )
    with pytest.raises(ReleaseRefused, match="64 bytes"):
        release_order(client, "web", "o-2", "x" * 65, author="anna", event_id="release 2")
    with pytest.raises(ClientError, match="ORDER_NOT_FOUND"):
        release_order(client, "web", "nobody's", "why", author="anna", event_id="release 3")
    client.apply_deltas(
        "erp",
        [
            stk.Delta(
                source="erp",
                event_id="allocated",
                type=stk.DELTA_TYPE_ORDER_ALLOCATED,
                sku="o-2",
                node="n1",
                quantity=2,
                order_source="web",
                order_ref="o-2",
            )
        ],
    )
    (stuck,) = audit(client, SOON).forgotten
    assert (stuck.kind, stuck.order_ref, stuck.quantity) == (stk.AUDIT_KIND_ORDER_STUCK, "o-2", 2)
    assert audit(client, AuditLimits(unconfirmed_ms=1, stuck_ms=3_600_000)).forgotten == []


def test_a_hold_is_released_with_a_reason(client: Client, alone: Server) -> None:
    """An ordinary release; author and reason stand in the log, a second one is refused."""
    sell(client, "o-3")
    held = client.reserve("web", {"o-3": 1}, hold_s=3_600).reservation.reservation_id
    assert release_hold(client, held, "the browser is gone").units == 1
    with pytest.raises(ClientError, match="RESERVATION_NOT_ACTIVE"):
        release_hold(client, held, "again")
    body: ReleasedBody = bodies_of(alone, Kind.RELEASED)[-1]
    assert (body.reservation_id, body.reason) == (held, "the browser is gone")


def test_a_hold_that_carries_an_order_goes_with_the_order(client: Client) -> None:
    """Nothing is committed yet, and still there is something to free: the cancel releases the hold."""
    sell(client, "o-5")
    held = client.reserve("web", {"o-5": 3}, hold_s=3_600, order_ref="held").reservation.reservation_id
    freed = release_order(client, "web", "held", "fraud", author="anna", event_id="release held")
    assert (freed.units, freed.what) == (3, "order held of web")
    assert client.get_reservation(held).state == res.RESERVATION_STATE_RELEASED
    assert client.get("web", "o-5", min_version=freed.version).sellable_quantity == 3
    assert release_order(client, "web", "held", "fraud", author="anna", event_id="release held").units == 0


def test_exit_codes_are_for_alerts(alone: Server, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """0: nothing; 5: forgotten; 6: sums; and `release` says what it freed."""
    at = ["--target", alone.grpc]
    assert run(["audit", "--silent", "1d", "--unconfirmed", "1d", *at]) == 0
    assert "everything adds up" in capsys.readouterr().out
    sell(client, "o-4")
    assert run(["audit", "--unconfirmed", "0.001", *at]) == EXIT_FORGOTTEN
    assert "o-4" in capsys.readouterr().out
    assert run(["audit", "release", "--order", "web", "o-4", "--reason", "test", *at]) == 0
    assert "FREED: order o-4 of web, 2 units" in capsys.readouterr().out
    assert run(["audit", "release", "--order", "web", "o-4", "--reason", "test", *at]) == EXIT_REFUSED
    assert run(["audit", "release", "--reason", "test", *at]) == 2
    capsys.readouterr()
    with redis.Redis.from_url(alone.redis) as raw:
        (key,) = raw.keys("*pos:o-4")
        right = raw.hget(key, "nn1")
        assert isinstance(right, bytes)
        raw.hset(key, "nn1", right[:16] + struct.pack("<q", 1) + right[24:])
        try:
            assert run(["audit", "--unconfirmed", "1d", "--json", *at]) == EXIT_BROKEN
            assert "AUDIT_KIND_RESERVED_MISMATCH" in capsys.readouterr().out
        finally:
            raw.hset(key, "nn1", right)
