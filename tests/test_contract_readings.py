"""What CONTRACT says in a clause, as a caller who has read only that meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from availability.app import StartRefused, check_callers
from availability.client import Client, ClientError
from availability.config import AuthSettings, Settings
from availability.v1 import policy_pb2 as po
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from tests.conftest import Names, Server, serving
from tests.model import Refusal
from tests.wire import Service


def receive(client: Client, names: Names, sku: str, quantity: int) -> None:
    delta = stk.Delta(
        source=names.id(),
        event_id=f"receipt {sku}",
        type=stk.DELTA_TYPE_RECEIPT,
        sku=sku,
        node=names.node(),
        quantity=quantity,
    )
    assert client.apply_deltas(names.id(), [delta]).results == [stk.DELTA_RESULT_APPLIED]


def test_a_commit_that_comes_after_its_orders_cancel_is_told_so(server: Server, names: Names) -> None:
    """The cancel let go of the hold: OK with order_cancelled, nothing is held; a hold that a buyer gave up is over."""
    sku, channel = names.sku(), names.channel()
    with Client(server.grpc) as client:
        receive(client, names, sku, 10)
        held = client.reserve(channel, {sku: 4}, hold_s=600, order_ref="1").reservation
        given_up = client.reserve(channel, {sku: 1}, hold_s=600, order_ref="2").reservation
        cancel = stk.Delta(
            source=names.id(),
            event_id="cancel",
            type=stk.DELTA_TYPE_ORDER_CANCELLED,
            order_source=channel,
            order_ref="1",
        )
        assert client.apply_deltas(names.id(), [cancel]).results == [stk.DELTA_RESULT_APPLIED]
        late = client.commit(held.reservation_id, request_id=names.id("late"))
        assert (late.order_cancelled, late.replayed) == (True, False)
        assert late.reservation.state == res.RESERVATION_STATE_RELEASED
        again = client.commit(held.reservation_id, request_id=names.id("late"))
        assert (again.order_cancelled, again.replayed) == (True, True)
        client.release(given_up.reservation_id)
        with pytest.raises(ClientError) as refused:
            client.commit(given_up.reservation_id)
        assert refused.value.reason == "RESERVATION_NOT_ACTIVE"
        # The order is wanted again: the hold that was let go stays so.
        wanted = stk.Delta(
            source=names.id(),
            event_id="wanted",
            type=stk.DELTA_TYPE_ORDER_CHANGED,
            sku=sku,
            quantity=1,
            order_source=channel,
            order_ref="1",
        )
        assert client.apply_deltas(names.id(), [wanted]).results == [stk.DELTA_RESULT_APPLIED]
        with pytest.raises(ClientError) as refused:
            client.commit(held.reservation_id)
        assert refused.value.reason == "RESERVATION_NOT_ACTIVE"


def test_reservations_are_listed_by_the_orders_name_alone(client: Service, names: Names) -> None:
    """Without a source: those of every order of that name, by source; page by page."""
    ref = names.id("order")
    with Client(client.address) as writer:
        receive(writer, names, names.sku(), 10)
        ids = [
            writer.reserve(
                names.channel(), {names.sku(): 1}, hold_s=600, order_source=source, order_ref=ref
            ).reservation.reservation_id
            for source in (names.id("b"), names.id("a"), names.id("b"), "")
        ]
        writer.reserve(names.channel(), {names.sku(): 1}, hold_s=600, order_ref=names.id("other"))

    def listed(**fields: object) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = res.ListReservationsRequest(page_size=2, page_token=token, **fields)  # type: ignore[arg-type]
            page = client.call(client.reservations.ListReservations, request)
            found += [one.reservation_id for one in page.reservations]
            token = page.next_page_token
            if not token:
                return found

    assert listed(order_ref=ref) == [ids[3], ids[1], ids[0], ids[2]]
    assert listed(order_ref=ref, order_source=names.id("b")) == [ids[0], ids[2]]
    assert listed(order_ref=ref, order_source=names.channel()) == [ids[3]]
    assert listed(order_ref=names.id("nobody's")) == []


def test_a_stream_moves_once_its_gap_is_given_up(client: Service, names: Names) -> None:
    """Nothing is missing before the number that waited; where one still is, the stream stays parked."""

    def send(number: int) -> int:
        delta = stk.Delta(
            source=names.id(),
            stream="s",
            source_sequence=number,
            type=stk.DELTA_TYPE_RECEIPT,
            sku=names.sku(),
            node=names.node(),
            quantity=1,
        )
        request = stk.ApplyDeltasRequest(source=names.id(), deltas=[delta])
        return int(client.call(client.stock.ApplyDeltas, request).results[0])

    def skip(number: int) -> stk.StreamStatus:
        request = stk.SkipGapRequest(
            request_id=names.id(f"skip {number}"),
            source=names.id(),
            stream="s",
            next_sequence=number,
            reason="lost",
        )
        answer: stk.SkipGapResponse = client.call(client.stock.SkipGap, request)
        return answer.stream

    assert send(1) == stk.DELTA_RESULT_APPLIED
    assert send(9) == stk.DELTA_RESULT_PARKED
    half = skip(5)
    assert (half.state, half.last_sequence, half.parked_sequence) == (stk.STREAM_STATE_PARKED, 4, 9)
    whole = skip(9)
    assert (whole.state, whole.last_sequence, whole.parked_sequence) == (stk.STREAM_STATE_OPEN, 8, 0)
    assert send(9) == stk.DELTA_RESULT_APPLIED


def test_an_embedded_ledger_can_be_strict_about_channels_and_nodes() -> None:
    """What a setting says outright is kept: --embedded only makes auto_create the default."""
    with serving(settings={"AVAIL_AUTO_CREATE": "false"}) as strict:
        service = Service(strict.grpc)
        try:
            with pytest.raises(Refusal, match="UNKNOWN_CHANNEL"):
                service.call(service.policies.GetPolicy, po.GetPolicyRequest(channel="web"))
            delta = stk.Delta(
                source="s", event_id="e", type=stk.DELTA_TYPE_RECEIPT, sku="a", node="n", quantity=1
            )
            answer = service.call(
                service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="s", deltas=[delta])
            )
            assert [detail.reason for detail in answer.details] == ["UNKNOWN_NODE"]
        finally:
            service.close()


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "localhost:http", "::1"])
def test_an_address_without_a_port_is_refused(listen: str, tmp_path: Path) -> None:
    """Taken as it is, it would be served at port 443, or not at all."""
    settings = Settings(listen=listen, data_dir=tmp_path, auth=AuthSettings(no_auth=True))
    with pytest.raises(StartRefused, match="give HOST:PORT"):
        check_callers(settings)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:7443", "localhost:65535", "unix:/tmp/x"])
def test_an_address_with_a_port_is_taken(listen: str, tmp_path: Path) -> None:
    """IPv6 in brackets; a unix socket has none."""
    check_callers(Settings(listen=listen, data_dir=tmp_path, auth=AuthSettings(no_auth=True)))
