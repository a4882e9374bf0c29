"""One name from a source's event to the storefront's write: traceparent in, through the ledger, and out again."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import grpc
import httpx2
import pytest
from google.protobuf.duration_pb2 import Duration

from availability.client import Client
from availability.history.database import open_database
from availability.replica import state
from availability.telemetry import Trace
from availability.v1 import common_pb2, reservation_pb2, reservation_pb2_grpc, stock_pb2
from ingest.mapping import Mapper
from ingest.settings import read_source
from publisher.testing.server import serve
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.stock import WooStock
from tests.conftest import Names, Server
from tests.publishing import KEYS, FakeLedger, double_shop, publishing, shop_settings

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
        client.batch_get(channel, [tea], strong=True)  # memory has it: the watch begins after it
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
    from tests.fakes_ledger import FakeLedger as FakeRedisLedger

    monkeypatch.setattr(state, "CORRELATIONS_MAX", 3)
    ledger = FakeRedisLedger()
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


class Recording(httpx2.AsyncBaseTransport):
    """The network, with the traceparent of each write noted by the numbers that it carries."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self.writes: list[tuple[list[int], str]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method != "GET":
            numbers = [int(found) for found in re.findall(rb'"stock_quantity":(\d+)', await request.aread())]
            self.writes.append((numbers, request.headers.get("traceparent", "")))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def test_the_write_to_a_shop_carries_the_trace_on(tmp_path: Path) -> None:
    """The call has the trace of the event behind it, with a span of its own; without an event it has none."""
    network = Recording()

    async def scenario() -> None:
        engine = open_database("", tmp_path)
        ledger = FakeLedger()
        with serve(double_shop(tea=10, cup=10), tls=False) as double:
            storefront = WooStock(WooClient(shop_settings(double.url), lambda: KEYS, transport=network))
            ledger.tell({"tea": 10, "cup": 10})
            async with publishing(engine, ledger, double, storefront=storefront) as running:
                await running.quiet()
                ledger.correlation_ids = {"tea": TRACE_ID}
                ledger.tell({"tea": 7})
                await running.quiet()
                ledger.correlation_ids = {}
                ledger.tell({"tea": 6})
                await running.quiet()
                ledger.correlation_ids = {"cup": "order 1001"}
                ledger.tell({"cup": 5})
                await running.quiet()
        engine.dispose()

    asyncio.run(scenario())
    found = {numbers[0]: Trace.parse(told) for numbers, told in network.writes if numbers}
    sent = Trace.parse(TRACEPARENT)
    assert sent is not None
    assert found[7] is not None
    assert (found[7].trace_id, found[7].span_id != sent.span_id) == (TRACE_ID, True)
    assert found[6] is None
    assert found[5] is not None
    assert found[5].trace_id == Trace.of_correlation("order 1001", sent.span_id).trace_id
