"""A cancelled order lets go of the holds that carry it, at once and in the ledger."""

from __future__ import annotations

import pytest

from availability.client import Client
from availability.v1 import stock_pb2 as stk
from availability.v1.reservation_pb2 import RESERVATION_STATE_ACTIVE, RESERVATION_STATE_RELEASED
from tests.conftest import Names, Server


@pytest.mark.parametrize("whole", [True, False])
def test_a_cancel_releases_the_holds_that_carry_the_order(server: Server, names: Names, whole: bool) -> None:
    """The order's hold ends RELEASED and its units are sellable again; another order's hold stays."""
    sku, node, channel, source = names.sku("a"), names.node("n"), names.channel("web"), names.id()
    with Client(server.grpc) as client:

        def tell(event: str, **fields: object) -> None:
            delta = stk.Delta(source=source, event_id=event, sku=sku, **fields)  # type: ignore[arg-type]
            if whole and fields["type"] == stk.DELTA_TYPE_ORDER_CANCELLED:
                delta.sku = ""
            answer = client.apply_deltas(source, [delta])
            assert answer.results == [stk.DELTA_RESULT_APPLIED], answer

        tell("receipt", type=stk.DELTA_TYPE_RECEIPT, node=node, quantity=10)
        held = client.reserve(channel, {sku: 4}, hold_s=600, order_ref="1001").reservation
        other = client.reserve(channel, {sku: 1}, hold_s=600, order_ref="1002").reservation
        tell("cancel", type=stk.DELTA_TYPE_ORDER_CANCELLED, order_source=channel, order_ref="1001")
        assert client.get_reservation(held.reservation_id).state == RESERVATION_STATE_RELEASED
        assert client.get_reservation(other.reservation_id).state == RESERVATION_STATE_ACTIVE
        assert client.reserve(channel, {sku: 9}, hold_s=600).reservation.reservation_id
