"""Orders that stay open for long, and cancels that come late: nothing moves unrecorded, nothing is lost sight of."""

from __future__ import annotations

from typing import Any  # Any: fields of a delta

import pytest

from availability.ledger.snapshots import OpenOrder, SnapshotLedger
from availability.service.audit_handlers import AuditHandlers
from availability.service.auth import Principal
from availability.service.context import CallContext
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import audit
from tests.faults.lab import DAY_MS, Lab, deadline, delta

NOW_MS = 1_760_000_000_000
SHOP: dict[str, Any] = {"order_source": "web", "order_ref": "1001"}
ERP: dict[str, Any] = {"order_source": "erp", "order_ref": "SO-1"}


@pytest.mark.parametrize("name", ["SO-1", "1001"])
def test_a_late_cancel_under_one_name_counts_for_lines_of_the_other(lab: Lab, name: str) -> None:
    """The name that it is told under has said something later, the order's other name has not: it is no stale word."""
    lab.receive("a", "n1", 9)
    now_us = lab.head()[2] * 1000
    first = delta("ORDER_PLACED", "a", "n1", 2, line="1", occurred_us=now_us, **SHOP)
    link = delta("LINK_ORDER", quantity=1, linked_order_source="web", linked_order_ref="1001", **ERP)
    later = delta("ORDER_PLACED", "a", "n1", 3, line="7", occurred_us=now_us + 20, **ERP)
    assert lab.results(first, link, later) == ["APPLIED"] * 3
    assert lab.position("a", "n1") == (9, 0, 0, 5)
    told = ERP if name == "SO-1" else SHOP
    seq = lab.head()[1]
    assert lab.results(delta("ORDER_CANCELLED", "a", occurred_us=now_us + 10, **told)) == ["APPLIED"]
    assert lab.position("a", "n1") == (9, 0, 0, 3)
    assert lab.head()[1] == seq + 1
    audit(lab.redis)


def _listed(lab: Lab) -> list[OpenOrder]:
    """Return the open orders that reconciliation is told of, every page."""
    store, found, last = SnapshotLedger(lab.ledger), list[OpenOrder](), None
    while True:
        page = store.open_orders(last, 7)
        found += page.orders
        if isinstance(page.last, bool):
            return found
        last = page.last


def test_an_order_that_is_open_for_months_stays_listed(lab: Lab) -> None:
    """Reconciliation and the audit are told of it as long as it holds stock; what has ended around it is forgotten."""
    lab.control(now_ms=NOW_MS)
    lab.receive("a", "n1", 9)
    orders = [
        delta("ORDER_PLACED", "a", "", 1, order_source="web", order_ref=f"open {n:03}") for n in range(150)
    ]
    ended = [
        delta("ORDER_PLACED", "b", "", 0, order_source="web", order_ref=f"ended {n:03}") for n in range(150)
    ]
    mixed = [one for pair in zip(orders, ended, strict=True) for one in pair]
    assert lab.results(*mixed[:150]) == ["APPLIED"] * 150
    assert lab.results(*mixed[150:]) == ["APPLIED"] * 150
    for _ in range(3):
        lab.age(40 * DAY_MS)
        lab.control(now_ms=lab.head()[3])
        for _ in range(8):
            lab.sweep()
    assert sorted(one.order_ref for one in _listed(lab)) == [f"open {n:03}" for n in range(150)]
    handlers = AuditHandlers(SnapshotLedger(lab.ledger))
    request = stk.AuditLedgerRequest(stuck_ms=90 * DAY_MS, page_token="forgotten.0")
    page = handlers.audit_ledger(
        request, CallContext(Principal(id="tester", scopes=frozenset()), deadline(30))
    )
    stuck = [one for one in page.findings if one.kind == stk.AUDIT_KIND_ORDER_STUCK]
    assert {one.order_ref for one in stuck} <= {f"open {n:03}" for n in range(150)}
    assert len(stuck) >= 100
    assert all(one.age_ms >= 120 * DAY_MS for one in stuck)
    assert lab.ledger.order("web", "ended 149")[1] is None
    audit(lab.redis)
