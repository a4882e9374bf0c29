"""The ERP and the WMS of a replay as the service sees them: numbered facts over StreamDeltas, some of them twice.

A sender's own lock orders its stream; it may be taken while the desk's (replay_desk.py) is held, never the other way.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from availability.v1 import stock_pb2 as stk
from availability.v1 import stock_pb2_grpc as stk_grpc
from benchmarks.replay_plan import NODES, Plan
from benchmarks.replay_words import (
    ABSOLUTE,
    ATTEMPTS_MAX,
    BATCH_FACTS_MAX,
    LINGER_S,
    ORDER_SOURCE,
    REASONS,
    REPEAT_SHARE,
    RETRYABLE,
    STREAM,
    STREAM_TIMEOUT_S,
    UNACKED_MAX,
    Fact,
    ReplayFailed,
    Stop,
    Told,
    refused_call,
)


@dataclass(slots=True)
class Batch:
    """A batch on its way. ``urgent``: how many of its facts somebody waits for."""

    request: stk.StreamDeltasRequest
    facts: list[Fact]
    first_sequence: int
    urgent: int
    sent: int = 0
    repeats: bool = False
    """Its last delta was sent before, in an earlier batch."""


class Sender:
    """One source: a queue of facts, sent in order with gapless sequences over one StreamDeltas call."""

    def __init__(self, channel: grpc.Channel, source: str, plan: Plan, stop: Stop, *, repeats: bool) -> None:
        self.told: list[Told] = []
        self.counts: Counter[str] = Counter()
        self.acked = 0
        self._stub = stk_grpc.StockServiceStub(channel)
        self._source = source
        self._skus = plan.skus
        self._refs = [order.ref for order in plan.orders]
        self._stop = stop
        self._repeats = repeats
        self._random = random.Random(plan.seed)
        self._changed = threading.Condition()
        self._urgent: deque[Fact] = deque()
        self._facts: deque[Fact] = deque()
        self._urgent_acked = 0
        self._unacked: deque[Batch] = deque()
        self._sequence = 0
        self._batches = 0
        self._life = 0
        self._closing = False
        self._sent_once: stk.Delta | None = None
        self._thread = threading.Thread(target=self._run, name=f"{source}-stream", daemon=True)

    def start(self) -> None:
        """Open the stream."""
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Facts that wait to be sent."""
        return len(self._facts) + len(self._urgent)

    def put(self, facts: Iterable[Fact]) -> None:
        """Queue facts."""
        with self._changed:
            self._facts.extend(facts)
            self._changed.notify_all()

    def put_urgent(self, facts: Iterable[Fact]) -> None:
        """Queue facts before all others."""
        with self._changed:
            self._urgent.extend(facts)
            self._changed.notify_all()

    def wait_urgent(self, count: int) -> None:
        """Wait until so many urgent facts, since the start, are durable."""
        with self._changed:
            while self._urgent_acked < count:
                self._stop.check()
                self._changed.wait(1.0)

    def wait_backlog(self, facts_max: int) -> None:
        """Wait until no more than so many facts wait."""
        with self._changed:
            while self.backlog > facts_max:
                self._stop.check()
                self._changed.wait(1.0)

    def close(self) -> None:
        """Send what is queued, wait for its acks and end the stream."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(0.2)
            self._stop.check()

    def _run(self) -> None:
        try:
            for attempt in range(ATTEMPTS_MAX):
                try:
                    self._stream()
                    return
                except grpc.RpcError as error:
                    if error.code() not in RETRYABLE or attempt == ATTEMPTS_MAX - 1:
                        raise
                    self.counts["reconnects"] += 1
                    time.sleep(random.uniform(0.1, 0.2) * 2**attempt)
        except grpc.RpcError as error:
            self._stop.fail(f"stream of {self._source}: {refused_call(error)}")
        except Exception as error:
            self._stop.fail(f"stream of {self._source}: {error!r}")

    def _stream(self) -> None:
        with self._changed:
            self._life += 1
            again = list(self._unacked)
        acks = self._stub.StreamDeltas(self._requests(self._life, again), timeout=STREAM_TIMEOUT_S)
        for ack in acks:
            self._settle(ack)

    def _requests(self, life: int, again: list[Batch]) -> Iterator[stk.StreamDeltasRequest]:
        """Yield batches; gRPC runs this in a thread of its own, which a later life of the stream outlives."""
        for batch in again:
            batch.sent += 1
            yield batch.request
        while True:
            with self._changed:
                fresh = self._next_batch(life)
            if fresh is None:
                return
            yield fresh.request

    def _next_batch(self, life: int) -> Batch | None:
        waited = False
        while life == self._life:
            waiting = self.backlog
            full = waiting >= BATCH_FACTS_MAX or self._urgent or self._closing or waited
            if len(self._unacked) < UNACKED_MAX and waiting and full:
                return self._build()
            if self._closing and not waiting:
                return None
            timed_out = not self._changed.wait(LINGER_S if waiting else 1.0)
            waited = timed_out and waiting > 0
        return None

    def _build(self) -> Batch:
        urgent = min(len(self._urgent), BATCH_FACTS_MAX)
        facts = [self._urgent.popleft() for _ in range(urgent)]
        facts += [self._facts.popleft() for _ in range(min(len(self._facts), BATCH_FACTS_MAX - urgent))]
        first = self._sequence + 1
        deltas = [self._delta(fact, first + i) for i, fact in enumerate(facts)]
        self._sequence += len(facts)
        self._batches += 1
        repeats = self._repeats and self._sent_once is not None and self._random.random() < REPEAT_SHARE
        if repeats and self._sent_once is not None:
            deltas.append(self._sent_once)
        self._sent_once = deltas[self._random.randrange(len(facts))]
        request = stk.StreamDeltasRequest(source=self._source, deltas=deltas, batch_number=self._batches)
        batch = Batch(request, facts, first, urgent, sent=1, repeats=repeats)
        self._unacked.append(batch)
        self._changed.notify_all()
        return batch

    def _delta(self, fact: Fact, sequence: int) -> stk.Delta:
        more: dict[str, Any] = {}  # only fields that are set: half the cost of a message
        if fact.sku >= 0:
            more["sku"] = self._skus[fact.sku]
        if fact.node >= 0:
            more["node"] = NODES[fact.node]
        if fact.order >= 0:
            more["order_source"] = ORDER_SOURCE
            more["order_ref"] = self._refs[fact.order]
        if fact.reason:
            more["reason"] = REASONS[fact.reason]
        if fact.type in ABSOLUTE:
            more["occurred_time"] = Timestamp(seconds=fact.occurred_s)
        return stk.Delta(
            source=self._source,
            stream=STREAM,
            source_sequence=sequence,
            type=fact.type,  # type: ignore[arg-type]  # an enum value as a plain int
            quantity=fact.quantity,
            **more,
        )

    def _settle(self, ack: stk.StreamDeltasResponse) -> None:
        with self._changed:
            batch = self._unacked.popleft()
            self._changed.notify_all()
        if ack.batch_number != batch.request.batch_number:
            raise ReplayFailed(f"ack of batch {ack.batch_number}, expected {batch.request.batch_number}")
        results: list[int] = [*ack.results]
        if len(results) != len(batch.facts) + batch.repeats:
            raise ReplayFailed(f"{len(results)} results for {len(batch.facts) + batch.repeats} deltas")
        if batch.repeats:
            last = results.pop()
            self.counts["duplicates"] += last == stk.DELTA_RESULT_DUPLICATE
            self.counts["repeated"] += 1
        if ack.details:
            self._judge(batch, ack, results)
        self.told.append(
            Told(batch.first_sequence, batch.facts, results, [(c.first_index, c.version) for c in ack.calls])
        )
        with self._changed:
            self.acked += len(batch.facts)
            self._urgent_acked += batch.urgent
            self._changed.notify_all()

    def _judge(self, batch: Batch, ack: stk.StreamDeltasResponse, results: list[int]) -> None:
        """Stop at anything but the duplicates of a batch that was sent again after a break."""
        for detail in ack.details:
            if detail.index >= len(results):
                continue
            if detail.result == stk.DELTA_RESULT_DUPLICATE and batch.sent > 1:
                results[detail.index] = stk.DELTA_RESULT_APPLIED
                continue
            name = stk.DeltaResult.Name(detail.result)
            raise ReplayFailed(
                f"{self._source} sequence {batch.first_sequence + detail.index}: {name} {detail.reason} "
                f"{detail.message}; {batch.facts[detail.index]}"
            )
