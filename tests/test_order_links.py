"""One order with several names: what links do for holds, commits and cancels, what is refused, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from availability.cli.root import run
from availability.client import Client
from availability.v1 import stock_pb2 as stk
from availability.v1.reservation_pb2 import RESERVATION_STATE_RELEASED
from tests.conftest import Names, Server

Tell = Callable[..., str]
ALLOCATED, LINK = stk.DELTA_TYPE_ORDER_ALLOCATED, stk.DELTA_TYPE_LINK_ORDER


@pytest.fixture
def api(server: Server) -> Iterator[Client]:
    with Client(server.grpc) as client:
        yield client


@pytest.fixture
def tell(api: Client, names: Names) -> Tell:
    """Tell one delta of this test's ERP; answer its result, or the reason why it was rejected."""
    numbers = count(1)

    def tell_one(type_: int, **fields: object) -> str:
        source = names.id("erp")
        delta = stk.Delta(source=source, event_id=f"e{next(numbers):04}", type=type_, **fields)  # type: ignore[arg-type]
        answer = api.apply_deltas(source, [delta])
        reasons = [detail.reason for detail in answer.details if detail.reason]
        return (
            reasons[0] if reasons else stk.DeltaResult.Name(answer.results[0]).removeprefix("DELTA_RESULT_")
        )

    return tell_one


def link(tell: Tell, one: tuple[str, str], other: tuple[str, str], quantity: int = 1) -> str:
    return tell(
        LINK,
        quantity=quantity,
        order_source=one[0],
        order_ref=one[1],
        linked_order_source=other[0],
        linked_order_ref=other[1],
    )


def committed(order: stk.GetOrderResponse) -> dict[str, int]:
    return {node.node: node.committed for line in order.lines for node in line.nodes if node.committed}


@pytest.mark.parametrize("link_first", [True, False])
def test_the_erps_number_is_not_counted_beside_the_shops(
    api: Client, tell: Tell, names: Names, link_first: bool
) -> None:
    """The shop sourced from a, the ERP allocates at b under its own number: one order, committed once, at b."""
    sku, a, b, web = names.sku("tea"), names.node("a"), names.node("b"), names.channel("web")
    shop, erp = (web, "1001"), (names.id("erp"), "SO-778")
    for node in (a, b):
        tell(stk.DELTA_TYPE_RECEIPT, sku=sku, node=node, quantity=5)
    if link_first:
        assert link(tell, shop, erp) == "APPLIED"
    held = api.reserve(web, {sku: 3}, hold_s=600, node=a).reservation
    api.commit(held.reservation_id, "1001")
    assert tell(ALLOCATED, sku=sku, node=b, quantity=3, order_ref="SO-778") == "APPLIED"
    if not link_first:
        assert sum(committed(api.get_order(*shop)).values()) == 3
        assert link(tell, erp, shop) == "APPLIED"
    for name, other in ((shop, erp), (erp, shop)):
        order = api.get_order(*name)
        assert committed(order) == {b: 3}
        assert [(one.order_source, one.order_ref) for one in order.links] == [other]
    assert link(tell, shop, erp, quantity=-1) == "APPLIED"
    assert (committed(api.get_order(*shop)), committed(api.get_order(*erp))) == ({a: 3}, {b: 3})


def test_a_hold_of_the_shops_order_is_not_counted_beside_the_erps_allocation(
    api: Client, tell: Tell, names: Names
) -> None:
    """Ten in stock, four held for the shop's order, four allocated to the ERP's: six are left once they are linked."""
    sku, node, web = names.sku("tea"), names.node("a"), names.channel("web")
    tell(stk.DELTA_TYPE_RECEIPT, sku=sku, node=node, quantity=10)
    api.reserve(web, {sku: 4}, hold_s=600, order_ref="1001")
    tell(ALLOCATED, sku=sku, node=node, quantity=4, order_ref="SO-1")
    assert not api.reserve(web, {sku: 6}, hold_s=600).reservation.reservation_id
    assert link(tell, (web, "1001"), (names.id("erp"), "SO-1")) == "APPLIED"
    assert api.reserve(web, {sku: 6}, hold_s=600).reservation.reservation_id


@pytest.mark.parametrize("link_first", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_cancel_under_one_name_releases_holds_that_carry_the_other(
    api: Client, tell: Tell, names: Names, link_first: bool, whole: bool
) -> None:
    """Whether the link comes before the cancel or after it."""
    sku, node, web = names.sku("tea"), names.node("a"), names.channel("web")
    shop, erp = (web, "1001"), (names.id("erp"), "SO-1")
    tell(stk.DELTA_TYPE_RECEIPT, sku=sku, node=node, quantity=4)
    held = api.reserve(web, {sku: 4}, hold_s=600, order_ref="1001").reservation
    if link_first:
        link(tell, shop, erp)
    tell(stk.DELTA_TYPE_ORDER_CANCELLED, order_ref="SO-1", sku="" if whole else sku)
    if not link_first:
        link(tell, shop, erp)
    assert api.get_reservation(held.reservation_id).state == RESERVATION_STATE_RELEASED


def test_what_cannot_be_linked_is_refused(tell: Tell, names: Names) -> None:
    """A name with itself, what is one order already, two names of one source, no second name, too many names."""
    shop, erp, wms = (names.channel("web"), "1"), (names.id("erp"), "SO-1"), (names.id("wms"), "W1")
    assert link(tell, shop, shop) == "INVALID_REQUEST"
    assert link(tell, shop, ("", "")) == "LINKED_ORDER_REQUIRED"
    assert link(tell, shop, erp, quantity=2) == "INVALID_QUANTITY"
    assert link(tell, shop, erp) == "APPLIED"
    assert link(tell, erp, shop) == "APPLIED"
    assert link(tell, erp, wms) == "APPLIED"
    assert link(tell, wms, shop) == "LINK_CYCLE"
    assert link(tell, shop, (erp[0], "SO-2")) == "LINK_CONFLICT"
    assert link(tell, (shop[0], "2"), wms) == "LINK_CONFLICT"
    assert link(tell, erp, wms, quantity=-1) == "APPLIED"
    assert link(tell, wms, shop) == "APPLIED"
    more = [link(tell, shop, (names.id(f"other{number}"), "x")) for number in range(14)]
    assert more == ["APPLIED"] * 13 + ["TOO_MANY_NAMES"]


def test_the_reference_is_the_reporters_own_name_where_no_other_is_given(
    api: Client, tell: Tell, names: Names
) -> None:
    """LINK_ORDER of the shop's order with a reference: the ERP calls it so."""
    web, erp = names.channel("web"), names.id("erp")
    assert tell(LINK, quantity=1, order_source=web, order_ref="1", reference="SO-1") == "APPLIED"
    assert [(one.order_source, one.order_ref) for one in api.get_order(erp, "SO-1").links] == [(web, "1")]


def test_open_allocations_name_what_was_shipped(api: Client, tell: Tell, names: Names) -> None:
    """Three still to ship when two were shipped is five in all, whenever the shipment is heard of."""
    sku, node = names.sku("tea"), names.node("a")
    fields = {"sku": sku, "node": node, "order_ref": "SO-1", "allocation_basis": stk.ALLOCATION_BASIS_OPEN}
    assert tell(ALLOCATED, quantity=3, **fields) == "SHIPPED_QUANTITY_REQUIRED"
    assert tell(ALLOCATED, quantity=3, shipped_quantity=-1, **fields) == "INVALID_QUANTITY"
    assert tell(ALLOCATED, quantity=3, **{**fields, "allocation_basis": 9}) == "INVALID_BASIS"
    assert tell(ALLOCATED, quantity=3, shipped_quantity=2, **fields) == "APPLIED"
    assert committed(api.get_order(names.id("erp"), "SO-1")) == {node: 5}
    tell(stk.DELTA_TYPE_SHIPMENT, sku=sku, node=node, quantity=2, order_ref="SO-1")
    assert committed(api.get_order(names.id("erp"), "SO-1")) == {node: 3}


def test_the_command_line_shows_an_order(
    server: Server,
    tell: Tell,
    names: Names,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its names, lines, nodes and figures; an unknown one is refused."""
    monkeypatch.setenv("AVAIL_TARGET", server.grpc)
    sku, node, erp = names.sku("tea"), names.node("a"), names.id("erp")
    tell(ALLOCATED, sku=sku, node=node, quantity=3, order_ref="SO-1")
    link(tell, (erp, "SO-1"), (names.channel("web"), "1001"))
    assert run(["order", "show", names.channel("web"), "1001"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("also", erp, "SO-1", sku, node, "committed"))
    assert run(["order", "show", erp, "SO-2"]) == 3
