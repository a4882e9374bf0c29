"""Replies that are lost and calls that are cancelled: effects are as many as distinct ids (FAILURES 2, 4 and 9)."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable

import grpc
import pytest

from availability.ledger import calls
from availability.ledger.record import Kind
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import Dump, audit, check_ends, entries, positions_of
from tests.faults.lab import BASE, Lab, Process, delta, poll
from tests.faults.proxy import Proxy
from tests.model import Policy
from tests.wire import Service, refusal_of, reserve_request

LOSS = 0.3
THREADS = 8
ROUNDS = 15
ROUNDS_FULL = 500
STORM = 300
STORM_FULL = 5_000


@pytest.mark.timeout(1_800)
def test_effects_are_distinct_request_ids_whatever_replies_are_lost(
    make_lab: Callable[..., Lab], proxy: Proxy, seed: int, full: bool
) -> None:
    """With 30 % of the replies lost, every call ends with its answer, and counts once, however often it was sent."""
    lab = make_lab(through=proxy.url, timeout_s=0.1)
    rounds = ROUNDS_FULL if full else ROUNDS
    lab.receive("a", "n1", 10**6)
    proxy.loss = LOSS
    failures: list[BaseException] = []

    def shop(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        try:
            for turn in range(rounds):
                shop_once(lab, f"{number}.{turn}", rng)
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=shop, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.loss = 0.0
    assert not failures
    assert proxy.lost > rounds, "too few replies were lost to prove anything"
    keys = audit(lab.redis)
    by_request = requests_of(keys)
    assert set(by_request.values()) == {1}, "a request has two effects"
    made = THREADS * rounds
    kinds = Counter(entry.record().kind for entry in entries(keys))
    assert kinds[Kind.RESERVED] == made
    assert kinds[Kind.COMMITTED] + kinds[Kind.RELEASED] == made
    on_hand, _, reserved, committed, _ = positions_of(keys)["a", "n1"]
    assert on_hand == 10**6 + made
    assert reserved == 0
    assert committed == 2 * check_ends(keys)["committed"]


def shop_once(lab: Lab, name: str, rng: random.Random) -> None:
    """Receive one, hold two, then sell or give back; some calls twice."""
    event = delta("RECEIPT", "a", "n1", 1, event_id=name)
    assert lab.results(event)[0] in ("APPLIED", "DUPLICATE")  # DUPLICATE: the first answer was lost
    held = lab.reserve(f"hold {name}", [("a", 2)])
    assert held.status == "RESERVED"
    assert isinstance(held.reservation, calls.HoldView)
    assert held.reservation.reservation_id == f"r-hold {name}"
    sell = rng.random() < 0.5
    ends = [
        lab.commit(f"end {name}", f"r-hold {name}", f"order {name}")
        if sell
        else lab.release(f"end {name}", f"r-hold {name}")
        for _ in range(2)
    ]
    assert ends[0].status == ("COMMITTED" if sell else "RELEASED")
    assert (ends[1].status, ends[1].version) == (ends[0].status, ends[0].version)
    assert lab.results(event) == ["DUPLICATE"]


def requests_of(keys: Dump) -> Counter[str]:
    """Count log entries by request id."""
    found = Counter(entry.record().request_id for entry in entries(keys))
    del found[""]
    return found


@pytest.mark.timeout(1_800)
def test_cancelled_calls_get_no_reply_of_others_and_count_once(
    make_process: Callable[..., Process], seed: int, full: bool
) -> None:
    """Calls cancelled at random moments: each answer is its call's own, and asking again tells what was done."""
    process = make_process()
    process.start()
    rng = random.Random(seed)
    number = STORM_FULL if full else STORM
    service = Service(process.grpc)
    service.set_node("n1", online=True)
    service.set_channel("web", Policy(nodes=("n1",)))
    lines = {f"q{i}": (f"sku {i}", 1 + i % 7) for i in range(number)}
    stock = [delta("RECEIPT", sku, "n1", 10, event_id=f"first {sku}") for sku, _ in lines.values()]
    for first in range(0, number, 1_000):
        service.call(
            service.stock.ApplyDeltas,
            stk.ApplyDeltasRequest(source="erp", deltas=stock[first : first + 1_000]),
        )
    cancelled = storm(process.grpc, lines, rng)
    assert 0 < cancelled < 2 * number, "all or none were cancelled: nothing is proved"
    with process.redis() as client:
        done = poll(lambda: settled(client), "the ledger is quiet")
        before = requests_of(audit(client))
        for name, (sku, quantity) in lines.items():
            request = reserve_request(name, "web", [(sku, quantity)])
            answer = service.call(service.reservations.CreateReservation, request)
            assert answer.replayed == (name in before), f"{name}: asked again"
            assert [(x.sku, x.quantity) for x in answer.reservation.lines] == [(sku, quantity)]
            told = service.call(service.stock.ApplyDeltas, receipt_request(name, sku))
            assert next(iter(told.results)) in (stk.DELTA_RESULT_APPLIED, stk.DELTA_RESULT_DUPLICATE)
        keys = audit(client)
        assert requests_of(keys).keys() >= lines.keys()
        assert set(requests_of(keys).values()) == {1}
        assert len(keys[BASE + "due"]) == number
        assert done
    for name, (sku, quantity) in list(lines.items())[:: max(1, number // 50)]:
        terms = service.explain("web", sku).terms.nodes[0]
        assert (terms.on_hand, terms.reserved) == (11, quantity), name
    service.close()


def receipt_request(name: str, sku: str) -> stk.ApplyDeltasRequest:
    return stk.ApplyDeltasRequest(
        source="erp", deltas=[delta("RECEIPT", sku, "n1", 1, event_id=f"more {name}")]
    )


def settled(client: object) -> int:
    """Tell the length of the log, once it stands still; 0 before."""
    lengths = set()
    for _ in range(20):
        lengths.add(client.xlen(BASE + "log"))  # type: ignore[attr-defined]  # a redis client
        threading.Event().wait(0.01)
    return lengths.pop() if len(lengths) == 1 else 0


def storm(address: str, lines: dict[str, tuple[str, int]], rng: random.Random) -> int:
    """Send a reserve and a receipt per name over few connections, cancel most at random moments. Returns how many."""
    services = [Service(address) for _ in range(4)]
    cancelled = 0
    waiting = threading.Event()
    open_calls: list[tuple[str, grpc.Future]] = []
    for i, (name, (sku, quantity)) in enumerate(lines.items()):
        service = services[i % len(services)]
        request = reserve_request(name, "web", [(sku, quantity)])
        open_calls.append((name, service.reservations.CreateReservation.future(request, timeout=20)))
        open_calls.append(("", service.stock.ApplyDeltas.future(receipt_request(name, sku), timeout=20)))
        if len(open_calls) >= 60:
            rng.shuffle(open_calls)
            waiting.wait(rng.random() * 0.004)
            for _, call in open_calls[:40]:
                cancelled += call.cancel()
            for name_, call in open_calls:
                check_answer(name_, call, lines)
            open_calls = []
    for name_, call in open_calls:
        check_answer(name_, call, lines)
    for service in services:
        service.close()
    return cancelled


def check_answer(name: str, call: grpc.Future, lines: dict[str, tuple[str, int]]) -> None:
    """An answer that arrived is the call's own."""
    try:
        answer = call.result(timeout=30)
    except grpc.FutureCancelledError:
        return
    except grpc.RpcError as error:
        reason = refusal_of(error).reason
        if reason != "OVERLOADED" and not reason.startswith("CANCELLED"):
            raise
        return
    if isinstance(answer, res.CreateReservationResponse):
        assert [(x.sku, x.quantity) for x in answer.reservation.lines] == [lines[name]]
    else:
        assert list(answer.results) == [stk.DELTA_RESULT_APPLIED]
