"""Play a plan through gRPC: shoppers reserve and commit, the ERP allocates and cancels, the WMS ships.

Everything that was sent and answered is kept as it was, for replay_check.py; nothing is judged here but
answers that no client could go on with. Threads, because the service takes most of the two cores: the
messages of a year cost about half a minute of one.

One lock (the desk's) orders what the replayed world knows; a sender's own lock orders its stream. The desk's
may be held while a sender's is taken, never the other way round.
"""

from __future__ import annotations

import heapq
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from availability.domain.uuid7 import UUID7_RANDOM_BYTES, uuid7
from availability.v1 import common_pb2 as common
from availability.v1 import reservation_pb2 as res
from availability.v1 import reservation_pb2_grpc as res_grpc
from availability.v1 import stock_pb2 as stk
from availability.v1 import stock_pb2_grpc as stk_grpc
from benchmarks.replay_plan import DAY_S, HOUR_S, MAIN, NODES, Cancel, CancelLine, Loss, Order, Plan

ORDER_SOURCE = "shop"
"""Who names the orders; one name for holds, ERP and WMS alike."""
ERP, WMS = "erp", "wms"
STREAM = "replay"
REASONS = ("", "damage", "return")
DAMAGE, RETURN = 1, 2

CALL_TIMEOUT_S = 15.0
ATTEMPTS_MAX = 8
STREAM_TIMEOUT_S = 3600.0
BATCH_FACTS_MAX = 1000
LINGER_S = 0.03
"""A batch waits this long for company."""
UNACKED_MAX = 4
BACKLOG_FACTS_MAX = 20_000
"""Shoppers wait while ERP and WMS are further behind than this."""
REPEAT_SHARE = 0.2
"""Share of WMS batches that end with a delta sent before."""
LINES_MAX = 500
HOLD_S = 900
EXPIRING_HOLD_S = 1
LEFT_HOLD_S = 24 * HOUR_S
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]
RETRYABLE = frozenset(
    (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
)

RECEIPT = stk.DELTA_TYPE_RECEIPT
ADJUSTMENT = stk.DELTA_TYPE_ADJUSTMENT
SHIPMENT = stk.DELTA_TYPE_SHIPMENT
QUARANTINE = stk.DELTA_TYPE_QUARANTINE
QUARANTINE_RELEASE = stk.DELTA_TYPE_QUARANTINE_RELEASE
WRITE_OFF = stk.DELTA_TYPE_WRITE_OFF
RETURN_RECEIVED = stk.DELTA_TYPE_RETURN_RECEIVED
ORDER_CHANGED = stk.DELTA_TYPE_ORDER_CHANGED
ORDER_ALLOCATED = stk.DELTA_TYPE_ORDER_ALLOCATED
ORDER_CANCELLED = stk.DELTA_TYPE_ORDER_CANCELLED
ABSOLUTE = frozenset((ORDER_CHANGED, ORDER_ALLOCATED, ORDER_CANCELLED))

GRANT, COMMIT, RELEASE, EXPIRE = range(4)
"""What an answer did to a hold."""

R = TypeVar("R")


class ReplayFailed(Exception):
    """The replay cannot go on; the text says why."""


class Fact(NamedTuple):
    """A delta before it has a sequence. Indices as in the plan; -1 where there is none."""

    type: int
    sku: int
    node: int
    quantity: int
    order: int = -1
    reason: int = 0
    occurred_s: int = 0


class Told(NamedTuple):
    """A batch of facts and what the service made of it."""

    first_sequence: int
    facts: list[Fact]
    results: list[int]
    calls: list[tuple[int, str]]
    """(index of the first fact, version) of each ledger call."""


class HoldAnswer(NamedTuple):
    """An answer that changed a hold: per sku and node, what it now holds, or what it no longer holds."""

    version: str
    kind: int
    channel: int
    order: int
    skus: list[int]
    nodes: list[int]
    quantities: list[int]


class Refused(NamedTuple):
    """A shortage: what was asked, and what the service said could have been held."""

    version: str
    partial: bool
    channel: int
    sku: int
    requested: int
    sellable: int


class Stop:
    """Shared by all threads: the first failure, which ends them all."""

    def __init__(self) -> None:
        self._failed = threading.Event()
        self._reason = ""

    def fail(self, reason: str) -> None:
        """Keep the first reason."""
        if not self._failed.is_set():
            self._reason = reason
            self._failed.set()

    def check(self) -> None:
        """Raise ReplayFailed where a thread has failed."""
        if self._failed.is_set():
            raise ReplayFailed(self._reason)


def request_id() -> str:
    """Make a new idempotency key."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(UUID7_RANDOM_BYTES))


def ask(method: Callable[..., R], request: Message, counts: Counter[str]) -> R:
    """Call with a deadline; send the same request again, with its request_id, while that can help."""
    for attempt in range(ATTEMPTS_MAX):
        try:
            return method(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() not in RETRYABLE or attempt == ATTEMPTS_MAX - 1:
                raise
        counts["retries"] += 1
        time.sleep(random.uniform(0.5, 1.0) * min(2.0, 0.02 * 2**attempt))
    raise AssertionError("unreachable")


def refused_call(error: grpc.RpcError) -> str:
    """Say in one line what a failed call answered."""
    return f"{error.code().name}: {error.details()}"


# --- sources --------------------------------------------------------------------------------------


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


# --- the replayed world ---------------------------------------------------------------------------


class Line:
    """What a granted order wants of one sku, as the WMS will ship it; units by node."""

    __slots__ = ("allocated", "returned", "shipped")

    def __init__(self, allocated: list[int]) -> None:
        self.allocated = allocated
        self.shipped = [0, 0, 0]
        self.returned = 0


@dataclass(slots=True)
class Book:
    """An order in the offices. ``early``: what fell due before its checkout was answered."""

    order: Order
    lines: dict[int, Line] | None = None
    early_ships: list[int] = field(default_factory=list)
    early_cancels: list[tuple[int, list[CancelLine]]] = field(default_factory=list)
    ships_left: int = 0
    cancels_left: int = 0


class Desk:
    """Hands out orders in time order and does what ERP and WMS do meanwhile."""

    def __init__(self, plan: Plan, erp: Sender, wms: Sender, stop: Stop) -> None:
        self.counts: Counter[str] = Counter()
        self.orders_taken = 0
        self._plan = plan
        self._erp = erp
        self._wms = wms
        self._stop = stop
        self._lock = threading.Lock()
        self._random = random.Random(plan.seed + 1)
        self._next = 0
        self._day = -1
        self._supplied_day = -1
        self._urgent_sent = 0
        self._urgent_needed: list[int] = []
        self._due: list[tuple[int, int, int, int, list[Fact]]] = []
        """Heap of (time, tie, order or -1, part, facts)."""
        self._ties = 0
        self._books: dict[int, Book] = {}
        self._cancels = Counter(
            line.order
            for step in plan.steps
            if isinstance(step, Cancel)
            for line in step.lines
            if line.order >= 0
        )

    def take(self) -> Order | None:
        """Give the next order; before it, let everything happen that is earlier."""
        with self._lock:
            while self._next < len(self._plan.steps):
                self._stop.check()
                step = self._plan.steps[self._next]
                day = self._plan.step_days[self._next]
                self._next += 1
                if day > self._day:
                    self._open(day)
                self._ship_due(step.time_s)
                if isinstance(step, Order):
                    self._erp.wait_backlog(BACKLOG_FACTS_MAX)
                    self._wms.wait_backlog(BACKLOG_FACTS_MAX)
                    self._begin(step)
                    return step
                elif isinstance(step, Cancel):
                    self._cancel(step)
                else:
                    self._lose(step)
            return None

    def finish(self, order: Order, granted: dict[int, list[int]]) -> None:
        """Take over an order whose checkout was answered: units by node for each sku that got any."""
        with self._lock:
            book = self._books[order.number]
            facts = []
            book.lines = {}
            for sku, units in granted.items():
                if order.elsewhere:
                    units = [units[2], units[0], units[1]]
                    self.counts["lines allocated elsewhere"] += 1
                book.lines[sku] = Line(units)
                if not order.unallocated:
                    facts += [
                        Fact(ORDER_ALLOCATED, sku, node, wanted, order.number, 0, order.time_s)
                        for node, wanted in enumerate(units)
                        if wanted
                    ]
            self._erp.put(facts)
            for time_s, lines in book.early_cancels:
                self._cancel_lines(book, time_s, lines)
            for part in book.early_ships:
                self._ship(book, part)

    def open_orders(self) -> int:
        """Count orders that have not been shipped whole."""
        with self._lock:
            return sum(1 for book in self._books.values() if book.ships_left)

    def _open(self, day: int) -> None:
        """Begin a day: order the supply up to the next one, and wait for today's."""
        self._day = day
        for upcoming in range(self._supplied_day + 1, min(day + 2, len(self._plan.receipts))):
            receipts = self._plan.receipts[upcoming]
            self._urgent_sent += len(receipts)
            self._urgent_needed.append(self._urgent_sent)
            self._wms.put_urgent([Fact(RECEIPT, r.sku, r.node, r.quantity) for r in receipts])
            self._supplied_day = upcoming
        self._wms.wait_urgent(self._urgent_needed[day])

    def _begin(self, order: Order) -> None:
        book = Book(order, ships_left=len(order.ships), cancels_left=self._cancels[order.number])
        self._books[order.number] = book
        for time_s, part in order.ships:
            self._later(time_s, order.number, part, [])
        self.orders_taken += 1

    def _later(self, time_s: int, order: int, part: int, facts: list[Fact]) -> None:
        self._ties += 1
        heapq.heappush(self._due, (time_s, self._ties, order, part, facts))

    def _ship_due(self, now_s: int) -> None:
        while self._due and self._due[0][0] <= now_s:
            _, _, number, part, facts = heapq.heappop(self._due)
            if number < 0:
                self._wms.put(facts)
                continue
            book = self._books[number]
            if book.lines is None:
                book.early_ships.append(part)
            else:
                self._ship(book, part)

    def _ship(self, book: Book, part: int) -> None:
        facts = []
        for place, (sku, line) in enumerate((book.lines or {}).items()):
            if part >= 0 and place % 2 != part and not book.order.rerouted:
                continue
            to_ship = [units - line.shipped[node] for node, units in enumerate(line.allocated)]
            for node, units in enumerate(to_ship):
                if units <= 0:
                    continue
                if book.order.rerouted and part == 0:
                    units = (units + 1) // 2
                    line.allocated[node] -= units
                    node = (node + 1) % 3
                    line.allocated[node] += units
                    self.counts["lines shipped from elsewhere"] += 1
                facts.append(Fact(SHIPMENT, sku, node, units, book.order.number))
                line.shipped[node] += units
        self._wms.put(facts)
        book.ships_left -= 1
        self._forget(book)

    def _forget(self, book: Book) -> None:
        if not book.ships_left and not book.cancels_left:
            del self._books[book.order.number]

    def _cancel(self, step: Cancel) -> None:
        by_order: dict[int, list[CancelLine]] = {}
        for line in step.lines:
            by_order.setdefault(line.order, []).append(line)
        for number, lines in by_order.items():
            if number < 0:
                self.counts["C lines without an order"] += len(lines)
                for line in lines:
                    self._take_back(step.time_s, line.sku, MAIN, line.quantity, -1)
                continue
            book = self._books[number]
            if book.lines is None:
                book.early_cancels.append((step.time_s, lines))
            else:
                self._cancel_lines(book, step.time_s, lines)

    def _cancel_lines(self, book: Book, time_s: int, cancelled: list[CancelLine]) -> None:
        """Take units off what has not shipped; what has comes back; what was never granted is nothing."""
        known = book.lines or {}
        number = book.order.number
        facts = []
        for sku, quantity, _ in cancelled:
            line = known.get(sku)
            if line is None:
                self.counts["C lines never granted"] += 1
                continue
            cut = min(quantity, sum(line.allocated) - sum(line.shipped))
            if cut:
                facts += self._cut(line, number, sku, cut, time_s, allocate=not book.order.unallocated)
            back = min(quantity - cut, sum(line.shipped) - line.returned)
            if back:
                line.returned += back
                node = max(range(3), key=line.shipped.__getitem__)
                self._take_back(time_s, sku, node, back, number)
        whole = all(not any(line.allocated) for line in known.values())
        if facts and whole and not any(any(line.shipped) for line in known.values()):
            facts = [Fact(ORDER_CANCELLED, -1, -1, 0, number, 0, time_s)]
            self.counts["whole orders cancelled"] += 1
        self._erp.put(facts)
        book.cancels_left -= len(cancelled)
        self._forget(book)

    def _cut(
        self, line: Line, number: int, sku: int, units: int, time_s: int, *, allocate: bool
    ) -> list[Fact]:
        changed = []
        for node in reversed(range(3)):
            lowered = min(units, line.allocated[node] - line.shipped[node])
            if lowered > 0:
                line.allocated[node] -= lowered
                units -= lowered
                changed.append(node)
        left = sum(line.allocated)
        if not left:
            self.counts["C lines cancelled"] += 1
            return [Fact(ORDER_CANCELLED, sku, -1, 0, number, 0, time_s)]
        self.counts["C lines lowered"] += 1
        facts = [Fact(ORDER_CHANGED, sku, -1, left, number, 0, time_s)]
        if allocate and self._random.random() < 0.7:
            facts += [
                Fact(ORDER_ALLOCATED, sku, node, line.allocated[node], number, 0, time_s) for node in changed
            ]
        return facts

    def _take_back(self, time_s: int, sku: int, node: int, units: int, number: int) -> None:
        """Receive a return; within days it is released or written off, or it stays in quarantine."""
        self.counts["returns"] += 1
        self._wms.put([Fact(RETURN_RECEIVED, sku, node, units, number, 0)])
        draw = self._random.random()
        if draw < 0.9:
            fate = QUARANTINE_RELEASE if draw < 0.7 else WRITE_OFF
            checked = Fact(fate, sku, node, units, -1, RETURN)
            self._later(time_s + self._random.randint(HOUR_S, 3 * DAY_S), -1, 0, [checked])

    def _lose(self, loss: Loss) -> None:
        if not loss.damaged:
            self.counts["losses"] += 1
            self._wms.put([Fact(ADJUSTMENT, loss.sku, loss.node, -loss.quantity)])
            return
        self.counts["damages"] += 1
        self._wms.put([Fact(QUARANTINE, loss.sku, loss.node, loss.quantity, -1, DAMAGE)])
        if self._random.random() < 0.95:
            written_off = Fact(WRITE_OFF, loss.sku, loss.node, loss.quantity, -1, DAMAGE)
            self._later(loss.time_s + self._random.randint(60, DAY_S), -1, 0, [written_off])


# --- shoppers -------------------------------------------------------------------------------------


class Shopper:
    """One checkout client: takes an order at a time from reserve to commit, over its own connection."""

    def __init__(self, name: str, address: str, plan: Plan, desk: Desk, stop: Stop) -> None:
        self.counts: Counter[str] = Counter()
        self.answers: list[HoldAnswer] = []
        self.refused: list[Refused] = []
        self.expiring: list[tuple[str, HoldAnswer]] = []
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = res_grpc.ReservationServiceStub(self._channel)
        self._plan = plan
        self._desk = desk
        self._stop = stop
        self._sku_numbers = {sku: number for number, sku in enumerate(plan.skus)}
        self._node_numbers = {node: number for number, node in enumerate(NODES)}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to shop."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Tell whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def see_expiry(self, deadline_s: float) -> None:
        """Learn at which version each hold that was left to expire did so."""
        for reservation_id, held in self.expiring:
            request = res.GetReservationRequest(reservation_id=reservation_id)
            while True:
                found = ask(self._stub.GetReservation, request, self.counts).reservation
                if found.state == res.RESERVATION_STATE_EXPIRED:
                    break
                if time.monotonic() > deadline_s:
                    raise ReplayFailed(f"a hold of {EXPIRING_HOLD_S} s has not expired: {reservation_id}")
                time.sleep(0.1)
            self.answers.append(held._replace(version=found.version, kind=EXPIRE))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _run(self) -> None:
        try:
            while (order := self._desk.take()) is not None:
                self._play(order)
        except ReplayFailed as error:
            self._stop.fail(str(error))
        except grpc.RpcError as error:
            self._stop.fail(f"checkout: {refused_call(error)}")
        except Exception as error:
            self._stop.fail(f"checkout: {error!r}")

    def _play(self, order: Order) -> None:
        if order.cart:
            self._abandon(order)
        granted: dict[int, list[int]] = {}
        held = []
        for start in range(0, len(order.lines), LINES_MAX):
            hold = self._checkout(order, order.lines[start : start + LINES_MAX])
            if hold is not None:
                held.append(hold)
        for hold in held:
            for sku, node, quantity in self._commit(order, hold):
                granted.setdefault(sku, [0, 0, 0])[node] += quantity
        self.counts["orders"] += 1
        self.counts["orders that got nothing"] += not granted
        self._desk.finish(order, granted)

    def _checkout(self, order: Order, lines: list[tuple[int, int]]) -> res.Reservation | None:
        """Reserve the lines; where they find too little, once more with what there is."""
        named = order.named_early or len(order.lines) > LINES_MAX
        answer = self._reserve(order, lines, HOLD_S, partial=order.partial_first, named=named)
        if answer.shortages:
            short = {self._sku_numbers[shortage.sku] for shortage in answer.shortages}
            self.counts["lines short"] += sum(1 for sku, _ in lines if sku in short)
            self.counts["reservations short"] += 1
        if answer.outcome == res.RESERVATION_OUTCOME_INSUFFICIENT_STOCK and not order.partial_first:
            answer = self._reserve(order, lines, HOLD_S, partial=True, named=named)
        return answer.reservation if answer.HasField("reservation") and answer.reservation.lines else None

    def _reserve(
        self, order: Order, lines: list[tuple[int, int]], hold_s: int, *, partial: bool, named: bool
    ) -> res.CreateReservationResponse:
        skus = self._plan.skus
        request = res.CreateReservationRequest(
            request_id=request_id(),
            channel=self._plan.rules[order.channel].channel,
            lines=[common.RequestedLine(sku=skus[sku], quantity=quantity) for sku, quantity in lines],
            hold_duration=Duration(seconds=hold_s),
            allow_partial=partial,
            order_source=ORDER_SOURCE if named else "",
            order_ref=order.ref if named else "",
        )
        answer = ask(self._stub.CreateReservation, request, self.counts)
        self.counts["reservations asked"] += 1
        if order.repeated:
            again = ask(self._stub.CreateReservation, request, self.counts)
            same = again.reservation.reservation_id == answer.reservation.reservation_id
            self._expect(again.replayed and same and again.outcome == answer.outcome, "a repeated reserve")
            self.counts["repeated requests"] += 1
        for shortage in answer.shortages:
            self.refused.append(
                Refused(
                    answer.version,
                    answer.outcome == res.RESERVATION_OUTCOME_PARTIAL,
                    order.channel,
                    self._sku_numbers[shortage.sku],
                    shortage.requested_quantity,
                    shortage.sellable_quantity,
                )
            )
        if answer.HasField("reservation"):
            self.counts["reservations"] += 1
            self._record(answer.version, GRANT, order, self._units(answer.reservation))
        return answer

    def _commit(self, order: Order, hold: res.Reservation) -> list[tuple[int, int, int]]:
        if order.extended:
            extend = res.ExtendReservationRequest(
                request_id=request_id(),
                reservation_id=hold.reservation_id,
                hold_duration=Duration(seconds=2 * HOLD_S),
            )
            ask(self._stub.ExtendReservation, extend, self.counts)
            self.counts["extended"] += 1
        request = res.CommitReservationRequest(
            request_id=request_id(),
            reservation_id=hold.reservation_id,
            order_source=ORDER_SOURCE,
            order_ref=order.ref,
        )
        answer = ask(self._stub.CommitReservation, request, self.counts)
        self.counts["commits"] += 1
        committed = answer.reservation.state == res.RESERVATION_STATE_COMMITTED
        self._expect(committed and not answer.order_cancelled, "a commit")
        if order.repeated:
            again = ask(self._stub.CommitReservation, request, self.counts)
            self._expect(again.replayed, "a repeated commit")
            self.counts["repeated requests"] += 1
        units = self._units(answer.reservation)
        self._record(answer.version, COMMIT, order, units)
        return units

    def _abandon(self, order: Order) -> None:
        """Fill a cart with the first lines of the order and do not buy it."""
        hold_s = {"expired": EXPIRING_HOLD_S, "left": LEFT_HOLD_S}.get(order.cart, HOLD_S)
        answer = self._reserve(order, order.lines[:20], hold_s, partial=True, named=False)
        hold = answer.reservation
        if not hold.lines:
            return
        self.counts[f"carts {order.cart}"] += 1
        units = self._units(hold)
        if order.cart == "expired":
            grant = self.answers[-1]
            self.expiring.append((hold.reservation_id, grant))
        elif order.cart == "trimmed":
            first = hold.lines[0]
            left = self._release(order, hold, [common.RequestedLine(sku=first.sku, quantity=1)], units)
            if left:
                self._release(order, hold, [], left)
        elif order.cart == "released":
            self._release(order, hold, [], units)

    def _release(
        self,
        order: Order,
        hold: res.Reservation,
        lines: list[common.RequestedLine],
        units: list[tuple[int, int, int]],
    ) -> list[tuple[int, int, int]]:
        """Release lines, or everything; return what is left."""
        request = res.ReleaseReservationRequest(
            request_id=request_id(), reservation_id=hold.reservation_id, lines=lines
        )
        answer = ask(self._stub.ReleaseReservation, request, self.counts)
        left: list[tuple[int, int, int]] = []
        if answer.reservation.state == res.RESERVATION_STATE_ACTIVE:
            left = self._units(answer.reservation)
        before = Counter({(sku, node): quantity for sku, node, quantity in units})
        before.subtract({(sku, node): quantity for sku, node, quantity in left})
        given_back = [(sku, node, quantity) for (sku, node), quantity in before.items() if quantity]
        self._record(answer.version, RELEASE, order, given_back)
        return left

    def _units(self, hold: res.Reservation) -> list[tuple[int, int, int]]:
        skus, nodes = self._sku_numbers, self._node_numbers
        return [(skus[line.sku], nodes[line.node], line.quantity) for line in hold.lines]

    def _record(self, version: str, kind: int, order: Order, units: list[tuple[int, int, int]]) -> None:
        if units:
            skus, nodes, quantities = (list(column) for column in zip(*units, strict=True))
            self.answers.append(
                HoldAnswer(version, kind, order.channel, order.number, skus, nodes, quantities)
            )

    def _expect(self, right: bool, what: str) -> None:
        if not right:
            raise ReplayFailed(f"{what} was answered otherwise than the contract says")
