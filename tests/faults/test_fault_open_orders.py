"""Cancels that come late: nothing moves unrecorded."""

from __future__ import annotations

from typing import Any  # Any: fields of a delta

import pytest

from tests.faults.audit import audit
from tests.faults.lab import Lab, delta

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
