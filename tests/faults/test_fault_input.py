"""Hostile and mistaken input through gRPC: each a clear error with its reason, and nothing changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any  # Any: requests of several types, and redis' clients

import grpc
import pytest
import redis

from availability.ledger.embedded import EmbeddedRedis
from availability.v1 import availability_pb2 as av
from availability.v1 import common_pb2 as co
from availability.v1 import policy_pb2 as pol
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import Dump, audit, differences, dump
from tests.faults.lab import Lab, Process, delta, new_folder, poll
from tests.model import Policy
from tests.wire import Service, duration, refusal_of, reserve_request

INT64_MAX = 2**63 - 1
MAX = 10**9
BOOKKEEPING = ("req:", "meta", "src:", "sources", "seen:", "evt:")
"""What a refused call may touch: the memory of ids, marks of streams, the clock in the head."""
TEXTS = {
    "braces": "{0}:{sku}",
    "colons": "a:b::c",
    "like a key": "avail:{0}:meta",
    "spaces": " a  b ",
    "emoji": "👟 blue/42",
    "64 bytes": "x" * 64,
    "64 bytes of four each": "👟" * 16,
    "quotes": "a'b\"c\\d",
    "right to left": "مقاس ٤٢",
    "percent": "%s%d%n",
}
NOT_TEXTS = {
    "empty": "",
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape": "\x1b[31m",
    "65 bytes": "x" * 65,
    "17 of four bytes": "👟" * 17,
    "10 kB": "x" * 10_240,
    "a line separator": "a\u2028b",
    "a right-to-left override": "a\u202eb",
    "a byte order mark": "\ufeffa",
}
"""Lone surrogates are no text: protobuf refuses them before anything is sent."""


@dataclass(frozen=True)
class Strict:
    """A server that declares nothing by itself, over a Redis that it did not start."""

    service: Service
    redis: Any

    def unchanged(self, before: Dump) -> None:
        assert differences(before, dump(self.redis), exempt=BOOKKEEPING) == []


@pytest.fixture(scope="module")
def strict() -> Iterator[Strict]:
    folder = new_folder()
    server = EmbeddedRedis(folder / "redis")
    server.start()
    process = Process(
        folder,
        embedded=False,
        AVAIL_REDIS__URL=server.url,
        AVAIL_REDIS__PROFILE="demo",
        AVAIL_AUTO_CREATE="false",
    )
    process.start()
    service = Service(process.grpc)
    service.set_node("n1", online=True)
    service.set_channel("web", Policy(nodes=("n1",)))
    receipts = [delta("RECEIPT", sku, "n1", 9) for sku in ("a", "b")]
    service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=receipts))
    client = redis.Redis.from_url(server.url)
    yield Strict(service, client)
    client.close()
    service.close()
    process.stop()
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def refused(strict: Strict, method: Callable[..., Any], request: Any) -> tuple[str, str]:
    """Send a request that must fail; its status and reason. Nothing may have changed."""
    before = dump(strict.redis)
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10)
    strict.unchanged(before)
    assert len(caught.value.details() or "") <= 1_000
    return caught.value.code().name, refusal_of(caught.value).reason


INVALID = ("INVALID_ARGUMENT", "INVALID_REQUEST")


@pytest.mark.parametrize("quantity", [0, -1, MAX + 1, INT64_MAX, -INT64_MAX - 1])
def test_quantities_outside_the_range_are_refused(strict: Strict, quantity: int) -> None:
    """A quantity that is zero, negative or above 1e9 is INVALID_REQUEST, in a reserve and in a release."""
    service = strict.service.reservations
    request = reserve_request("q", "web", [("a", quantity)])
    assert refused(strict, service.CreateReservation, request) == INVALID
    lines = [co.RequestedLine(sku="a", quantity=quantity)]
    release = res.ReleaseReservationRequest(request_id="q", reservation_id="r", lines=lines)
    assert refused(strict, service.ReleaseReservation, release) == INVALID
    basket = av.CheckBasketRequest(channel="web", lines=lines)
    assert refused(strict, strict.service.reads.CheckBasket, basket) == INVALID


def test_a_huge_quantity_within_the_range_is_short(strict: Strict) -> None:
    """1e9 units may be asked for, and are not there."""
    answer = strict.service.reserve("huge", "web", [("a", MAX)])
    assert answer.outcome == "INSUFFICIENT_STOCK"


def test_lines_that_are_too_many_too_few_or_too_much_together_are_refused(strict: Strict) -> None:
    """No lines, 501 lines, and equal skus whose sum is above 1e9 are refused."""
    create = strict.service.reservations.CreateReservation
    assert refused(strict, create, reserve_request("q", "web", [])) == INVALID
    many = reserve_request("q", "web", [(f"s{i}", 1) for i in range(501)])
    assert refused(strict, create, many) == ("INVALID_ARGUMENT", "BATCH_TOO_LARGE")
    together = reserve_request("q", "web", [("a", MAX), ("b", 1), ("a", 1)])
    assert refused(strict, create, together) == INVALID


def test_equal_skus_of_a_request_are_added_up(strict: Strict) -> None:
    """Two lines of a sku are one demand: 5 + 5 of 9 is short by one, 4 + 5 is held as 9."""
    short = strict.service.reserve("twice 10", "web", [("b", 5), ("a", 1), ("b", 5)])
    assert (short.outcome, [(s.sku, s.requested) for s in short.shortages]) == (
        "INSUFFICIENT_STOCK",
        [("b", 10)],
    )
    held = strict.service.reserve("twice 9", "web", [("b", 5), ("b", 4)])
    assert held.outcome == "RESERVED"
    assert [(x.sku, x.quantity) for x in strict.service.reservation.lines] == [("b", 9)]
    strict.service.release("twice back", held.reservation_id)


@pytest.mark.parametrize("what", NOT_TEXTS)
def test_text_that_is_no_id_is_refused(strict: Strict, what: str) -> None:
    """An id that is empty, too long or not printable is INVALID_REQUEST wherever it stands, and rejects its delta."""
    text = NOT_TEXTS[what]
    service = strict.service
    create = service.reservations.CreateReservation
    assert refused(strict, create, reserve_request("q", "web", [(text, 1)])) == INVALID
    assert refused(strict, create, reserve_request("q", text, [("a", 1)])) == INVALID
    assert refused(strict, create, reserve_request(text, "web", [("a", 1)])) == INVALID
    if text:
        long = reserve_request("q", "web", [("a", 1)], order_ref=text * 2)
        assert refused(strict, create, long) == INVALID
        assert refused(strict, create, reserve_request("q", "web", [("a", 1)], node=text)) == INVALID
    get = av.GetAvailabilityRequest(channel="web", sku=text)
    assert refused(strict, service.reads.GetAvailability, get) == INVALID
    explain = av.ExplainAvailabilityRequest(channel="web", sku=text)
    assert refused(strict, service.reads.ExplainAvailability, explain) == INVALID
    node = pol.SetNodeRequest(request_id="q", reason="test", node=text, state=co.NODE_STATE_ONLINE)
    assert refused(strict, service.policies.SetNode, node) == INVALID
    before = dump(strict.redis)
    told = [delta("RECEIPT", text, "n1", 1), delta("RECEIPT", "a", text, 1), delta("RECEIPT", "a", "n1", -1)]
    answer = service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=told))
    reasons = [detail.reason for detail in answer.details]
    assert reasons == (
        ["INVALID_TEXT", "INVALID_TEXT", "INVALID_QUANTITY"]
        if text
        else ["SKU_REQUIRED", "NODE_REQUIRED", "INVALID_QUANTITY"]
    )
    strict.unchanged(before)


@pytest.mark.parametrize("what", TEXTS)
def test_text_that_looks_hostile_is_an_id_like_any_other(strict: Strict, what: str) -> None:
    """Braces, colons, quotes and any script are one sku each, that is received, held, sold, shipped and shown."""
    text = TEXTS[what]
    service = strict.service
    told = [delta("RECEIPT", text, "n1", 3)]
    answer = service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=told))
    assert list(answer.results) == [stk.DELTA_RESULT_APPLIED]
    held = service.reserve("t" + what, "web", [(text, 2)], order_source=text, order_ref=text)
    assert held.outcome == "RESERVED"
    assert (
        service.commit("c" + what, held.reservation_id, order_ref=text, order_source=text).state
        == "COMMITTED"
    )
    shipped = [delta("SHIPMENT", text, "n1", 1, order_source=text, order_ref=text)]
    service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=shipped))
    assert service.sellables("web", [text], at=service.version) == [(1, "IN_STOCK")]
    order = service.get_order(text, text)
    assert [(x.sku, x.ordered) for x in order.lines] == [(text, 2)]
    assert [n.sku for n in service.reservation.lines] == [text]
    assert service.explain("web", text).terms.sellable_quantity == 1
    audit(strict.redis)


def test_a_lone_surrogate_cannot_be_sent(strict: Strict) -> None:
    """Half a character is refused by the message itself."""
    with pytest.raises((UnicodeEncodeError, ValueError)):
        reserve_request("q", "web", [("\ud800", 1)]).SerializeToString()


def test_names_that_nobody_declared_are_unknown(strict: Strict) -> None:
    """An undeclared channel or node is NOT_FOUND with its reason; an unknown sku is short, not an error."""
    service = strict.service
    create = service.reservations.CreateReservation
    channel = reserve_request("unknown 1", "nobody", [("a", 1)])
    assert refused(strict, create, channel) == ("NOT_FOUND", "UNKNOWN_CHANNEL")
    get = av.GetAvailabilityRequest(channel="nobody", sku="a")
    assert refused(strict, service.reads.GetAvailability, get) == ("NOT_FOUND", "UNKNOWN_CHANNEL")
    node = reserve_request("unknown 2", "web", [("a", 1)], node="nowhere")
    assert refused(strict, create, node) == ("NOT_FOUND", "UNKNOWN_NODE")
    policy = pol.SetChannelPolicyRequest(
        request_id="unknown 3",
        reason="test",
        policy=pol.ChannelPolicy(channel="web", nodes=["nowhere"], buffer=co.Buffer(units=0)),
    )
    assert refused(strict, service.policies.SetChannelPolicy, policy) == ("NOT_FOUND", "UNKNOWN_NODE")
    before = dump(strict.redis)
    told = [delta("RECEIPT", "a", "nowhere", 1), delta("ORDER_ALLOCATED", "a", "nowhere", 1, order_ref="o")]
    answer = service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=told))
    assert [detail.reason for detail in answer.details] == ["UNKNOWN_NODE"] * 2
    assert service.reserve("unknown 4", "web", [("nothing", 1)]).outcome == "INSUFFICIENT_STOCK"
    strict.unchanged(before)
    assert service.sellables("web", ["a", "nothing"])[1] == (0, "UNKNOWN_SKU")


def test_reservations_that_are_foreign_or_over_are_refused(strict: Strict) -> None:
    """An unknown, released or committed reservation, and one of another order, each has its own reason."""
    service = strict.service
    calls = service.reservations
    unknown = ("NOT_FOUND", "RESERVATION_NOT_FOUND")
    over = ("FAILED_PRECONDITION", "RESERVATION_NOT_ACTIVE")
    for name in ("nothing", "avail:{0}:meta", "*", "r-{", "x" * 128):
        assert refused(strict, calls.CommitReservation, commit("f1" + name[:8], name)) == unknown
        assert refused(strict, calls.ReleaseReservation, release("f2" + name[:8], name)) == unknown
        assert refused(strict, calls.ExtendReservation, extend("f3" + name[:8], name)) == unknown
        assert (
            refused(strict, calls.GetReservation, res.GetReservationRequest(reservation_id=name)) == unknown
        )
    for name in ("", "a\0b", "x" * 129):
        assert refused(strict, calls.CommitReservation, commit("f4", name)) == INVALID
    sold = service.reserve("f5", "web", [("a", 1)]).reservation_id
    service.commit("f6", sold, order_ref="mine")
    given = service.reserve("f7", "web", [("a", 1)]).reservation_id
    service.release("f8", given)
    assert refused(strict, calls.CommitReservation, commit("f9", sold, "another")) == over
    assert refused(strict, calls.ReleaseReservation, release("f10", sold)) == over
    assert refused(strict, calls.ExtendReservation, extend("f11", given)) == over
    assert refused(strict, calls.CommitReservation, commit("f12", given)) == over
    held = service.reserve("f13", "web", [("a", 1)]).reservation_id
    too_much = release("f14", held, ("a", 2))
    assert refused(strict, calls.ReleaseReservation, too_much) == INVALID
    other_sku = release("f15", held, ("b", 1))
    assert refused(strict, calls.ReleaseReservation, other_sku) == INVALID
    nameless = res.CommitReservationRequest(request_id="f16", reservation_id=held)
    assert refused(strict, calls.CommitReservation, nameless) == INVALID
    reused = reserve_request("f13", "web", [("a", 2)])
    assert refused(strict, calls.CreateReservation, reused) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert refused(strict, calls.ReleaseReservation, release("f13", held)) == (
        "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED",
    )
    service.release("f17", held)
    audit(strict.redis)


def commit(request_id: str, reservation: str, ref: str = "o") -> res.CommitReservationRequest:
    return res.CommitReservationRequest(request_id=request_id, reservation_id=reservation, order_ref=ref)


def release(request_id: str, reservation: str, *lines: tuple[str, int]) -> res.ReleaseReservationRequest:
    wanted = [co.RequestedLine(sku=sku, quantity=quantity) for sku, quantity in lines]
    return res.ReleaseReservationRequest(request_id=request_id, reservation_id=reservation, lines=wanted)


def extend(request_id: str, reservation: str) -> res.ExtendReservationRequest:
    return res.ExtendReservationRequest(
        request_id=request_id, reservation_id=reservation, hold_duration=duration(5_000)
    )


def test_an_expired_reservation_says_so(strict: Strict) -> None:
    """After expiry extend and release are RESERVATION_EXPIRED; a commit whose units are gone as well."""
    service = strict.service
    held = service.reserve("e1", "web", [("b", 9)], hold_ms=1_000).reservation_id
    poll(
        lambda: service.get_reservation(held).state == res.RESERVATION_STATE_EXPIRED, "it expires", within_s=5
    )
    expired = ("FAILED_PRECONDITION", "RESERVATION_EXPIRED")
    calls = service.reservations
    assert refused(strict, calls.ExtendReservation, extend("e2", held)) == expired
    assert refused(strict, calls.ReleaseReservation, release("e3", held)) == expired
    others = service.reserve("e4", "web", [("b", 1)]).reservation_id
    assert refused(strict, calls.CommitReservation, commit("e5", held)) == expired
    service.release("e6", others)


@pytest.mark.parametrize("ms", [0, -1, 999, 24 * 3_600_000 + 1, 10**15])
def test_holds_of_no_sensible_length_are_refused(strict: Strict, ms: int) -> None:
    """A hold lasts 1 s to 24 h."""
    request = reserve_request("q", "web", [("a", 1)], hold_ms=0)
    request.hold_duration.seconds, request.hold_duration.nanos = ms // 1000, ms % 1000 * 10**6
    assert refused(strict, strict.service.reservations.CreateReservation, request) == INVALID


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"quantity": 0}, "INVALID_QUANTITY"),
        ({"quantity": -5}, "INVALID_QUANTITY"),
        ({"quantity": INT64_MAX}, "INVALID_QUANTITY"),
        ({"type_": "ADJUSTMENT", "quantity": 0}, "INVALID_QUANTITY"),
        ({"type_": "ADJUSTMENT", "quantity": -INT64_MAX - 1}, "INVALID_QUANTITY"),
        ({"type_": "ORDER_PLACED", "quantity": -1, "order_ref": "o"}, "INVALID_QUANTITY"),
        ({"type_": "ORDER_PLACED", "order_ref": ""}, "ORDER_REQUIRED"),
        ({"type_": "QUARANTINE"}, "REASON_REQUIRED"),
        ({"type_": "UNSPECIFIED"}, "INVALID_TYPE"),
        ({"type_": "TRANSFER_OUT", "to_node": "n1"}, "SAME_NODE"),
        ({"type_": "TRANSFER_OUT"}, "TO_NODE_REQUIRED"),
        ({"event_id": "", "source_sequence": 0}, "ID_REQUIRED"),
        ({"event_id": "e", "source_sequence": 1, "stream": "s"}, "ID_REQUIRED"),
        ({"event_id": "", "source_sequence": 1}, "STREAM_REQUIRED"),
        ({"event_id": "", "source_sequence": INT64_MAX, "stream": "s"}, "INVALID_SEQUENCE"),
        ({"event_id": "", "source_sequence": -1, "stream": "s"}, "INVALID_SEQUENCE"),
        ({"source": "wms"}, "OTHER_SOURCE"),
        ({"occurred_us": 10**17}, "INVALID_TIME"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_delta_is_rejected_and_stops_no_other(
    strict: Strict, fields: dict[str, Any], reason: str
) -> None:
    """Each malformed delta is REJECTED with its reason; the good ones before and after it are applied."""
    given = {"type_": "RECEIPT", "sku": "good", "node": "n1", "quantity": 1, **fields}
    bad = delta(given.pop("type_"), **given)
    service = strict.service
    good = [delta("ADJUSTMENT", "good", "n1", 2), bad, delta("ADJUSTMENT", "good", "n1", -2)]
    answer = service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=good))
    results = [stk.DELTA_RESULT_APPLIED, stk.DELTA_RESULT_REJECTED, stk.DELTA_RESULT_APPLIED]
    assert list(answer.results) == results
    assert [(d.index, d.reason) for d in answer.details] == [(1, reason)]
    assert service.sellables("web", ["good"], at=service.version)[0][0] == 0
    audit(strict.redis)


def test_batches_over_their_limit_are_refused_whole(strict: Strict) -> None:
    """5,001 deltas or skus are BATCH_TOO_LARGE; an empty batch of skus is INVALID_REQUEST."""
    service = strict.service
    many = [delta("RECEIPT", "a", "n1", 1) for _ in range(5_001)]
    too_large = ("INVALID_ARGUMENT", "BATCH_TOO_LARGE")
    request = stk.ApplyDeltasRequest(source="erp", deltas=many)
    assert refused(strict, service.stock.ApplyDeltas, request) == too_large
    skus = av.BatchGetAvailabilityRequest(channel="web", skus=["a"] * 5_001)
    assert refused(strict, service.reads.BatchGetAvailability, skus) == too_large
    none = av.BatchGetAvailabilityRequest(channel="web")
    assert refused(strict, service.reads.BatchGetAvailability, none) == INVALID


def test_a_balance_does_not_leave_its_range(strict: Strict) -> None:
    """Receipts that would take a balance past 1e11 are rejected; the position stays as it was."""
    service = strict.service
    told = [delta("RECEIPT", "mountain", "n1", MAX) for _ in range(102)]
    answer = service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=told))
    assert list(answer.results).count(stk.DELTA_RESULT_APPLIED) == 100
    assert {d.reason for d in answer.details} == {"BALANCE_OUT_OF_RANGE"}
    assert service.explain("web", "mountain").terms.nodes[0].on_hand == 100 * MAX
    audit(strict.redis)


@pytest.mark.parametrize("version", ["x", "1", "1-", "-1-1", "1-1-1", "9" * 40 + "-1", "1-\0"])
def test_a_version_that_is_none_is_refused(strict: Strict, version: str) -> None:
    """A min_version that is no version is INVALID_REQUEST at once, not waited for."""
    request = av.GetAvailabilityRequest(channel="web", sku="a", min_version=version)
    assert refused(strict, strict.service.reads.GetAvailability, request) == INVALID


@pytest.mark.parametrize("token", ["x", "1", "-1.a", "99999999999999999999.a", "1.\0", "."])
def test_a_page_token_that_is_none_is_refused_or_harmless(strict: Strict, token: str) -> None:
    """A forged page token is INVALID_REQUEST, or names an empty page; never a failure inside."""
    request = res.ListReservationsRequest(state=res.RESERVATION_STATE_ACTIVE, page_token=token)
    before = dump(strict.redis)
    try:
        answer = strict.service.reservations.ListReservations(request, timeout=5)
    except grpc.RpcError as error:
        told = refusal_of(error).reason
        if told != "INVALID_REQUEST":
            raise
    else:
        assert len(answer.reservations) == 0
    strict.unchanged(before)


def test_a_source_has_no_streams_without_end(make_lab: Callable[..., Lab]) -> None:
    """A new stream a message fills no memory: one too many is rejected and leaves nothing, and others go on."""
    lab = make_lab(source_streams_max=3)

    def told(*names: str, event: bool = False, source: str = "erp") -> list[str]:
        numbers = [{"event_id": f"e {name}"} if event else {"source_sequence": 1} for name in names]
        return lab.results(
            *(
                delta("RECEIPT", "a", "n1", 1, stream=name, source=source, **number)
                for name, number in zip(names, numbers, strict=True)
            )
        )

    assert told("s1", "s2") == ["APPLIED"] * 2
    assert told("s3", "s4", "s1", "s3") == ["APPLIED", "REJECTED TOO_MANY_STREAMS", "DUPLICATE", "DUPLICATE"]
    assert told("s4", "s5", event=True) == ["REJECTED TOO_MANY_STREAMS"] * 2
    assert told("s3", event=True) == ["APPLIED"]
    assert told("s4", source="wms") == ["APPLIED"]
    assert lab.position("a", "n1") == (5, 0, 0, 0)
    assert {name for name, _ in lab.ledger.streams("erp")[1]} == {"s1", "s2", "s3"}
    assert not [key for key in audit(lab.redis) if "s4" in key and "erp" in key]
