"""StreamDeltas: durable deltas a second, with client, server and Redis on the same cores.

Redis writes to disk before it answers (profile single-strict), so an ack means durable. The client makes its
messages before the clock starts and encodes them while it runs; every delta must be APPLIED.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator
from functools import partial

from availability.v1 import stock_pb2 as stk
from benchmarks.common import (
    DELTAS_PER_CALL,
    NODES,
    SKUS,
    SOURCE,
    Meter,
    Row,
    Server,
    Size,
    in_turns,
    main_thread_s,
    receipt,
    say,
    short,
    sku,
)
from benchmarks.load import Load, channel, client, metadata
from benchmarks.reads import filled_service

STREAM = "/availability.v1.StockService/StreamDeltas"
TARGET = 50_000
BATCHES = (250, 1_000, 5_000)
ACK_TIMEOUT_S = 120.0


def stream(address: str, token: str, total: int, batch: int, run: str, named: bool = False) -> float:
    """In the client: send deltas as one stream, and return how many a second were acknowledged.

    ``named``: by event ids instead of numbers.
    """
    deltas = [
        receipt(sku(i * 7_919 % SKUS), NODES[i % len(NODES)], 1, stream=run, sequence=i + 1)
        for i in range(total)
    ]
    if named:
        for delta in deltas:
            delta.event_id = f"{run}:{delta.source_sequence}"
            delta.source_sequence, delta.stream = 0, ""
    requests = [
        stk.StreamDeltasRequest(source=SOURCE, deltas=deltas[first : first + batch], batch_number=first)
        for first in range(0, total, batch)
    ]
    del deltas
    call = channel(address).stream_stream(
        STREAM,
        request_serializer=stk.StreamDeltasRequest.SerializeToString,
        response_deserializer=stk.StreamDeltasResponse.FromString,
        _registered_method=True,  # type: ignore[call-arg]  # as generated stubs do
    )
    applied = 0
    left = deque(requests)
    del requests

    def outgoing() -> Iterator[stk.StreamDeltasRequest]:
        while left:
            yield left.popleft()

    began = time.perf_counter()
    for ack in call(outgoing(), timeout=ACK_TIMEOUT_S, metadata=metadata(token)):
        applied += list(ack.results).count(stk.DELTA_RESULT_APPLIED)
    took = time.perf_counter() - began
    if applied != total:
        raise RuntimeError(f"{applied} of {total} deltas were applied")
    return total / took


class Stream:
    """One batch size; remembers the processor time of client, server and Redis per delta."""

    def __init__(self, load: Load, server: Server, total: int, batch: int, named: bool = False) -> None:
        self._load, self._server, self._total, self._batch = load, server, total, batch
        self._named = named
        self._costs: list[tuple[float, float, float]] = []
        self.others: list[float] = []

    def __call__(self) -> float:
        """Send once; return deltas a second."""
        meter = Meter([self._load.pid, self._server.pid])
        redis = main_thread_s(self._server.redis_pid)
        run = secrets.token_hex(4)
        rate: float = self._load.run(
            stream, self._server.grpc, self._server.token, self._total, self._batch, run, self._named
        )
        (client_s, server_s), others = meter.used()
        redis_s = main_thread_s(self._server.redis_pid) - redis
        self._costs.append(tuple(s / self._total * 1e6 for s in (client_s, server_s, redis_s)))  # type: ignore[arg-type]  # three
        self.others.append(max(0.0, others))
        return rate

    @property
    def costs_us(self) -> tuple[float, float, float]:
        """Client, server, Redis: processor time per delta, the least of the blocks."""
        client_us, server_us, redis_us = (min(one[i] for one in self._costs) for i in range(3))
        return client_us, server_us, redis_us


def compare(load: Load, server: Server, size: Size) -> tuple[list[Row], Stream]:
    """Measure each batch size."""
    arms = {batch: Stream(load, server, size.deltas, batch) for batch in BATCHES}
    rates = in_turns(min(3, size.blocks), {str(batch): partial(arm) for batch, arm in arms.items()})
    for batch, arm in arms.items():
        client_us, server_us, redis_us = arm.costs_us
        say(
            f"  batches of {batch}: {short(rates[str(batch)].median)}/s; a delta: client {client_us:.1f} "
            f"(making the messages included), server {server_us:.1f}, Redis {redis_us:.1f} µs of processor"
        )
    batch = max(BATCHES, key=lambda one: rates[str(one)].median)
    rate = rates[str(batch)].median
    _, server_us, redis_us = arms[batch].costs_us
    rows = [
        Row(
            measure=f"StreamDeltas, durable, batches of {batch:,}",
            figure=f"{short(rate)}/s",
            ratio=rate / TARGET,
            target=f"≥ {short(TARGET)}/s",
            met=rate >= TARGET,
        ),
        Row(
            measure="  where server and Redis have a core each",
            figure=f"{short(1e6 / max(server_us, redis_us))}/s ({server_us:.1f} and {redis_us:.1f} µs a delta)",
        ),
    ]
    return rows, arms[batch]


def run(size: Size) -> list[Row]:
    """Measure."""
    say(f"ledger calls hold at most {DELTAS_PER_CALL} deltas")
    with filled_service(strict=True) as server, client() as load:
        return compare(load, server, size)[0]
