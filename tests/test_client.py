"""What the Python client promises: typed errors, one request_id a request, bounded retries, no lost delta."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from availability.client import Acked, Client, ClientError, Retry, SequenceGapError
from availability.demo.books import Buffer, Channel
from availability.domain.uuid7 import uuid7
from availability.v1 import common_pb2 as common
from availability.v1 import policy_pb2 as pol
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from tests.fake_service import FakeService, serving


@pytest.fixture
def fake() -> FakeService:
    made = FakeService()
    made.books.channels["web"] = Channel(nodes=("east", "west"), buffer=Buffer(units=1))
    made.books.receive("A", "east", 5)
    made.books.receive("A", "west", 3)
    return made


@pytest.fixture
def client(fake: FakeService) -> Iterator[Client]:
    with serving(fake) as target, Client(target, retry=Retry(backoff_s=0.001)) as made:
        yield made


def receipt(sequence: int, quantity: int = 1, stream: str = "s") -> stk.Delta:
    return stk.Delta(
        source="wms",
        stream=stream,
        source_sequence=sequence,
        type=stk.DELTA_TYPE_RECEIPT,
        sku="A",
        node="east",
        quantity=quantity,
    )


# --- Request ids ------------------------------------------------------------------------------------------


def test_a_uuid7_carries_its_time_version_and_variant() -> None:
    """The first 48 bits are the time, and the standard library reads the rest as RFC 9562 says."""
    made = uuid.UUID(uuid7(1_700_000_000_123, bytes(range(10))))
    assert made.int >> 80 == 1_700_000_000_123
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert uuid7(2, b"\xff" * 10) < uuid7(3, b"\x00" * 10)


def test_a_uuid7_needs_exactly_ten_random_bytes() -> None:
    """Too little chance is an error, never a weaker id."""
    with pytest.raises(ValueError, match="10 random bytes"):
        uuid7(1, b"short")


def test_a_request_without_an_id_gets_one(client: Client, fake: FakeService) -> None:
    """Every mutation carries a UUIDv7, filled into the message, so the same message again is a replay."""
    request = pol.SetNodeRequest(node="east", state=common.NODE_STATE_ONLINE, reason="test")
    client.call(client.policies.SetNode, request)
    assert uuid.UUID(request.request_id).version == 7
    assert fake.plan.request_ids == [request.request_id]


def test_the_same_request_id_again_is_answered_once(client: Client) -> None:
    """A caller that names its request_id gets the first outcome back."""
    first = client.reserve("web", {"A": 2}, hold_s=60, request_id="mine")
    again = client.reserve("web", {"A": 2}, hold_s=60, request_id="mine")
    assert again.replayed
    assert again.reservation.reservation_id == first.reservation.reservation_id


# --- Errors and retries -----------------------------------------------------------------------------------


def test_an_error_carries_the_reason_and_facts_of_its_error_info(client: Client) -> None:
    """Code, reason, message and metadata of the server arrive whole."""
    with pytest.raises(ClientError) as caught:
        client.get("nope", "A")
    error = caught.value
    assert (error.code, error.reason, error.metadata) == ("NOT_FOUND", "UNKNOWN_CHANNEL", {"fact": "1"})
    assert error.message == "no policy for channel 'nope'"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("UNAVAILABLE", "LEDGER_UNREACHABLE"),
        ("RESOURCE_EXHAUSTED", "OVERLOADED"),
        ("CANCELLED", ""),  # as a server that is being stopped ends a call that has just come
    ],
)
def test_a_retry_keeps_the_request_id(client: Client, fake: FakeService, code: str, reason: str) -> None:
    """What may be sent again is, with the id it had."""
    fake.plan.failures["CreateReservation"] = [(code, reason, 0.0)] * 2
    answer = client.reserve("web", {"A": 1}, hold_s=60)
    assert answer.outcome == res.RESERVATION_OUTCOME_RESERVED
    assert len(fake.plan.request_ids) == 3
    assert len(set(fake.plan.request_ids)) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [("INVALID_ARGUMENT", "INVALID_REQUEST"), ("INTERNAL", "INTERNAL"), ("RESOURCE_EXHAUSTED", "")],
)
def test_what_will_not_change_is_not_retried(
    client: Client, fake: FakeService, code: str, reason: str
) -> None:
    """A refusal is final, and so is a message that gRPC finds too large (no reason of the server's)."""
    fake.plan.failures["CreateReservation"] = [(code, reason, 0.0)]
    with pytest.raises(ClientError):
        client.reserve("web", {"A": 1}, hold_s=60)
    assert len(fake.plan.request_ids) == 1


def test_retries_are_bounded(fake: FakeService) -> None:
    """After attempts_max the last error is told."""
    fake.plan.failures["GetAvailability"] = [("UNAVAILABLE", "LEDGER_NOT_READY", 0.0)] * 9
    with (
        serving(fake) as target,
        Client(target, retry=Retry(attempts_max=3, backoff_s=0.001)) as client,
        pytest.raises(ClientError, match="LEDGER_NOT_READY"),
    ):
        client.get("web", "A")
    assert len(fake.plan.failures["GetAvailability"]) == 6


def test_a_retry_waits_as_long_as_the_server_asks(fake: FakeService) -> None:
    """RetryInfo is the least wait."""
    fake.plan.failures["GetAvailability"] = [("RESOURCE_EXHAUSTED", "OVERLOADED", 0.7)]
    waits: list[float] = []
    with serving(fake) as target, Client(target, sleep=waits.append) as client:
        client.get("web", "A")
    assert len(waits) == 1
    assert waits[0] >= 0.7


def test_no_retry_goes_past_the_total_deadline(fake: FakeService) -> None:
    """A wait that would outlast the deadline is not begun: the error comes at once."""
    fake.plan.failures["GetAvailability"] = [("UNAVAILABLE", "STALE", 30.0)] * 3
    waits: list[float] = []
    with (
        serving(fake) as target,
        Client(target, timeout_s=2.0, sleep=waits.append) as client,
        pytest.raises(ClientError, match="STALE"),
    ):
        client.get("web", "A")
    assert waits == []


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """Without a server the error says so, names the target, and comes before the deadline."""
    begin = time.monotonic()
    with Client("127.0.0.1:1", retry=Retry(attempts_max=2)) as client, pytest.raises(ClientError) as caught:
        client.get("web", "A")
    assert caught.value.code == caught.value.reason == "UNAVAILABLE"
    assert caught.value.metadata == {"target": "127.0.0.1:1"}
    assert time.monotonic() - begin < 4.0


def test_the_token_travels_with_every_call(fake: FakeService) -> None:
    """Unary calls and streams are authenticated alike."""
    fake.plan.token = "secret"
    with serving(fake) as target, Client(target, "secret") as client:
        client.get("web", "A")
        next(iter(client.watch("web", ["A"])))
    with (
        serving(fake) as target,
        Client(target, "wrong") as client,
        pytest.raises(ClientError, match="UNAUTHENTICATED"),
    ):
        client.get("web", "A")


# --- Watching ---------------------------------------------------------------------------------------------


def test_a_watch_goes_on_after_a_lost_connection(client: Client, fake: FakeService) -> None:
    """The iterator resumes by itself; the caller sees values, not reconnects."""
    fake.plan.failures["WatchAvailability"] = [("UNAVAILABLE", "LEDGER_NOT_READY", 0.0)]
    changes = client.watch("web", ["A"])
    assert next(changes).changes[0].sellable_quantity == 7
    client.reserve("web", {"A": 2}, hold_s=60)
    assert next(changes).changes[0].sellable_quantity == 5


# --- Streams of deltas ------------------------------------------------------------------------------------


def test_deltas_are_acknowledged_in_order(client: Client, fake: FakeService) -> None:
    """Each batch's ack comes back with what was sent, once and in order."""
    acks: list[Acked] = []
    with client.delta_sender("wms", acked=acks.append) as sender:
        for number in range(1, 21):
            sender.send([receipt(number)])
    assert [ack.batch_number for ack in acks] == list(range(1, 21))
    assert all(list(ack.answer.results) == [stk.DELTA_RESULT_APPLIED] for ack in acks)
    assert fake.books.on_hand["A", "east"] == 25


def test_a_cut_stream_is_sent_again_from_the_first_unsettled_batch(client: Client, fake: FakeService) -> None:
    """Acks lost in a cut cost nothing: what was applied is a DUPLICATE, and everything counts once."""
    fake.plan.cut_streams_after = [3, 1, 2]
    acks: list[Acked] = []
    with client.delta_sender("wms", acked=acks.append) as sender:
        for number in range(1, 13):
            sender.send([receipt(number)])
    assert [ack.batch_number for ack in acks] == list(range(1, 13))
    assert fake.books.on_hand["A", "east"] == 5 + 12
    results = [result for ack in acks for result in ack.answer.results]
    assert results.count(stk.DELTA_RESULT_DUPLICATE) >= 2


def test_unacknowledged_batches_are_bounded(client: Client, fake: FakeService) -> None:
    """A ledger that does not answer stops the sender instead of filling memory."""
    with fake.lock:  # the fake answers nothing while we hold it
        sender = client.delta_sender("wms", unacked_batches_max=3)
        for number in range(1, 4):
            sender.send([receipt(number)])
        with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
            sender.send([receipt(4)], timeout_s=0.2)
    sender.close()
    assert fake.marks["wms", "s"] == 3


def test_a_gap_is_told_to_the_source(client: Client) -> None:
    """A number that the sender skipped stops it with the number to go on from."""
    sender = client.delta_sender("wms")
    sender.send([receipt(1), receipt(4)])
    with pytest.raises(SequenceGapError) as caught:
        sender.flush(timeout_s=10)
    assert (caught.value.stream, caught.value.expected_sequence) == ("s", 2)


def test_a_source_resumes_after_its_last_settled_number(client: Client) -> None:
    """last_sequences is where each stream stands, by the ledger's word."""
    client.apply_deltas("wms", [receipt(1), receipt(2), receipt(1, stream="other")])
    assert client.last_sequences("wms") == {"other": 1, "s": 2}


def test_a_closed_client_says_so() -> None:
    """A call after the end is CANCELLED, like one that was under way; no other error."""
    client = Client("127.0.0.1:1")
    client.close()
    with pytest.raises(ClientError) as caught:
        client.get("web", "a")
    assert caught.value.code == "CANCELLED"
