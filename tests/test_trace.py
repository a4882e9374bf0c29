"""One name from a source's event to the storefront's write: traceparent in, through the ledger, and out again."""

from __future__ import annotations

import random
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from availability.client import Client
from availability.replica import state
from availability.telemetry import Trace
from availability.v1 import common_pb2, reservation_pb2, reservation_pb2_grpc, stock_pb2
from ingest.mapping import Mapper
from ingest.settings import read_source
from tests.conftest import Names, Server

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
MAPPING = """
source = "wms"
[format]
kind = "json_lines"
[mapping]
version = "1"
author = "ingest"
[mapping.constants]
type = "RECEIPT"
node = "east"
[mapping.columns]
sku = "sku"
quantity = "quantity"
event_id = "id"
correlation_id = "traceparent"
"""


def receipt(names: Names, sku: str, event: str, correlation_id: str = "") -> stock_pb2.Delta:
    return stock_pb2.Delta(
        source=names.id("wms"),
        event_id=names.id(event),
        type=stock_pb2.DELTA_TYPE_RECEIPT,
        sku=sku,
        node=names.node("east"),
        quantity=5,
        correlation_id=correlation_id,
    )


def test_a_watcher_is_told_whose_event_moved_a_sku(server: Server, names: Names) -> None:
    """Of a delta its own id, of a call its traceparent's; after an event without one nothing of before is told."""
    tea, channel = names.sku("tea"), names.channel("web")
    with Client(server.grpc) as client, grpc.insecure_channel(server.grpc) as wire:
        source = names.id("wms")
        client.apply_deltas(source, [receipt(names, tea, "1", "what came first")])
        stream = iter(client.watch(channel, [tea]))
        assert list(next(stream).correlation_ids) == []  # what was before is nobody's news

        def told() -> tuple[int, list[str]]:
            message = next(stream)
            return message.changes[0].sellable_quantity, list(message.correlation_ids)

        client.apply_deltas(source, [receipt(names, tea, "2", "order 1001")])
        assert told() == (10, ["order 1001"])
        reservation_pb2_grpc.ReservationServiceStub(wire).CreateReservation(
            reservation_pb2.CreateReservationRequest(
                request_id=names.id("r"),
                channel=channel,
                lines=[common_pb2.RequestedLine(sku=tea, quantity=1)],
                hold_duration=Duration(seconds=60),
            ),
            metadata=(("traceparent", TRACEPARENT),),
            timeout=10,
        )
        assert told() == (9, [TRACE_ID])
        client.apply_deltas(source, [receipt(names, tea, "3")])
        assert told() == (14, [])


def test_ids_are_remembered_for_so_many_skus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the oldest are forgotten: memory is bounded whatever callers send."""
    from availability.replica.replica import Replica
    from availability.replica.settings import ReplicaSettings
    from tests.fakes_ledger import FakeLedger

    monkeypatch.setattr(state, "CORRELATIONS_MAX", 3)
    ledger = FakeLedger()
    replica = Replica(ledger, ReplicaSettings(auto_create=True, block_ms=0), lambda: 0.0, random.Random(1))
    while not replica.ready:
        replica.step()
    for number in range(6):
        ledger.put((f"s{number}", "a", (4, 0, 0, 0, -1)))
        ledger.correlation_id = f"event {number}"
        ledger.reserve(f"s{number}", "a", 1)
        ledger.correlation_id = ""
    while replica.version < ledger.version:
        replica.step()
    assert replica._state.correlations == {f"s{number}": f"event {number}" for number in (3, 4, 5)}


def test_a_mapping_takes_the_trace_of_an_event(tmp_path: Path) -> None:
    """A column with a traceparent gives its trace id; another text stays as it is."""
    path = tmp_path / "wms.toml"
    path.write_text(MAPPING)
    source = read_source(path)
    mapper = Mapper(source.source, source.mapping)
    from ingest.rows import Row

    place = {column: number for number, column in enumerate(mapper.columns)}
    for told, expected in ((TRACEPARENT, TRACE_ID), ("order 1001", "order 1001"), ("", "")):
        values = [""] * len(place)
        for column, value in (("sku", "tea"), ("quantity", "1"), ("id", "e"), ("traceparent", told)):
            values[place[column]] = value
        delta = mapper.delta(Row(1, tuple(values), b""), "e")
        assert delta is not None
        assert delta.correlation_id == expected


def test_the_write_carries_the_trace_on() -> None:
    """Whoever writes to a storefront makes a traceparent of the id: the same trace, a span of its own."""
    sent = Trace.parse(TRACEPARENT)
    assert sent is not None
    written = Trace.of_correlation(TRACE_ID, "b7ad6b7169203331")
    assert (written.trace_id, written.span_id != sent.span_id) == (sent.trace_id, True)
