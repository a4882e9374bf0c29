"""Redis at maxmemory: reserving is refused, whatever gives stock back or tells of orders works (FAILURES 2, 16)."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from availability.ledger import calls
from availability.ledger.errors import LedgerOutOfMemory
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import audit, differences, dump
from tests.faults.lab import Lab, Process, deadline, delta, request_key, reserve
from tests.wire import Service, refusal_of, reserve_request


def test_out_of_memory_refuses_reserves_and_lets_go_of_the_rest(lab: Lab) -> None:
    """At maxmemory a reserve and a receipt are refused whole; commit, release, extend, facts, sweep and trim work."""
    lab.receive("a", "n1", 20)
    for name in ("sold", "given", "longer", "due"):
        lab.reserve(name, [("a", 1)], hold_ms=1 if name == "due" else 60_000)
    lab.redis.config_set("maxmemory", 1)
    try:
        lab.ledger.sweep(deadline())
        before = dump(lab.redis)
        with pytest.raises(LedgerOutOfMemory):
            lab.reserve("new", [("a", 1)])
        with pytest.raises(LedgerOutOfMemory):
            lab.results(delta("RECEIPT", "a", "n1", 1))
        assert differences(before, dump(lab.redis)) == []
        assert lab.commit("c", "r-sold", "o1").status == "COMMITTED"
        assert lab.release("x", "r-given").status == "RELEASED"
        assert lab.extend("e", "r-longer", 90_000).status == "EXTENDED"
        order = {"order_source": "web", "order_ref": "o1"}
        facts = [delta("ORDER_PLACED", "a", "", 1, **order), delta("ORDER_ALLOCATED", "a", "n1", 1, **order)]
        assert lab.results(*facts) == ["APPLIED"] * 2
        assert lab.results(delta("SHIPMENT", "a", "n1", 1, **order)) == ["APPLIED"]
        assert lab.results(delta("ORDER_CANCELLED", order_source="web", order_ref="o2")) == ["APPLIED"]
        lab.ledger.trim(deadline())
        audit(lab.redis)
    finally:
        lab.redis.config_set("maxmemory", 0)
    view = lab.ledger.reservation("r-due")
    assert view is not None
    assert view.state == 4, "a due hold outlived the lack of memory"
    assert lab.reserve("new", [("a", 1)]).status == "RESERVED", "the refusal was remembered"
    assert lab.position("a", "n1") == (19, 0, 2, 0)
    audit(lab.redis)


def test_calls_of_one_group_do_not_share_the_refusal(lab: Lab) -> None:
    """Calls that travelled with a refused reserve get their own answers."""
    lab.receive("a", "n1", 40)
    for i in range(20):
        lab.reserve(f"h{i}", [("a", 1)])
    lab.redis.config_set("maxmemory", 1)
    try:
        sent = []
        for i in range(20):
            sent.append(lab.ledger.submit("reserve", reserve(f"n{i}", [("a", 1)]), deadline()))
            sent.append(lab.ledger.submit("release", release_call(f"x{i}", f"r-h{i}"), deadline()))
        for pending in sent[::2]:
            with pytest.raises(LedgerOutOfMemory):
                pending.wait()
        for pending in sent[1::2]:
            assert b"RELEASED" in pending.wait()
    finally:
        lab.redis.config_set("maxmemory", 0)
    audit(lab.redis)
    assert lab.position("a", "n1") == (40, 0, 0, 0)


def release_call(request_id: str, reservation: str) -> calls.Release:
    return calls.Release(request_key(request_id), reservation, [])


def test_callers_are_told_that_memory_is_out(make_process: Callable[..., Process]) -> None:
    """Through gRPC: RESOURCE_EXHAUSTED with LEDGER_OUT_OF_MEMORY for a reserve; reads, commits and releases go on."""
    process = make_process()
    process.start()
    service = Service(process.grpc)
    service.call(
        service.stock.ApplyDeltas,
        stk.ApplyDeltasRequest(source="erp", deltas=[delta("RECEIPT", "a", "n1", 9)]),
    )
    held = [service.reserve(f"q{i}", "web", [("a", 1)]).reservation_id for i in range(2)]
    with process.redis() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(grpc.RpcError) as caught:
            service.reservations.CreateReservation(reserve_request("new", "web", [("a", 1)]), timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal_of(caught.value).reason == "LEDGER_OUT_OF_MEMORY"
        assert service.commit("c", held[0], order_ref="o1").state == "COMMITTED"
        assert service.release("x", held[1]).state == "RELEASED"
        assert service.sellables("web", ["a"], at=service.version) == [(8, "IN_STOCK")]
        listed = service.call(
            service.reservations.ListReservations,
            res.ListReservationsRequest(state=res.RESERVATION_STATE_ACTIVE),
        )
        assert list(listed.reservations) == []
        client.config_set("maxmemory", 0)
        assert service.reserve("new", "web", [("a", 1)]).outcome == "RESERVED"
        audit(client)
    service.close()
