"""The replayed world: which order comes next, what ERP and WMS do with it, what is cancelled, shipped and lost.

One lock, the desk's, orders what the replayed world knows. It may be held while a sender's is taken, never the other
way round.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.replay_plan import DAY_S, HOUR_S, MAIN, Cancel, CancelLine, Loss, Order, Plan
from benchmarks.replay_sender import Sender
from benchmarks.replay_words import (
    ADJUSTMENT,
    BACKLOG_FACTS_MAX,
    DAMAGE,
    ORDER_ALLOCATED,
    ORDER_CANCELLED,
    ORDER_CHANGED,
    QUARANTINE,
    QUARANTINE_RELEASE,
    RECEIPT,
    RETURN,
    RETURN_RECEIVED,
    SHIPMENT,
    WRITE_OFF,
    Fact,
    Stop,
)


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
