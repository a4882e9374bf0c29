"""What happened in the demo: entries for the books, and counters and news for whoever watches.

Every answer of the service carries the version at which it was decided. The journal keeps one entry for
each and posts them to the books in that order, whatever order the threads heard of them in.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from availability.client import Acked
from availability.demo.books import Books
from availability.domain.version import Version
from availability.v1 import stock_pb2 as stk

ENDED, CHANGED, REFUSED = 0, 1, 2
"""Order within one version: due holds end first, then the change itself; a refusal saw what that left."""

NEWS_MAX = 200
LATENCIES_MAX = 5_000

Post = Callable[[Books], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    version: Version
    rank: int
    index: int
    post: Post


@dataclass(frozen=True, slots=True)
class News:
    """One line for the person who watches."""

    at_s: float
    kind: str
    text: str


@dataclass(slots=True)
class FlashSale:
    """The flash sale; who bought and who was refused is among the counters."""

    units: int = 0
    buyers: int = 0
    took_s: float = 0.0


@dataclass(slots=True)
class Journal:
    """Shared by all actors; every method may be called from any thread."""

    started_s: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    news: deque[News] = field(default_factory=lambda: deque(maxlen=NEWS_MAX))
    news_total: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_MAX))
    flash: FlashSale = field(default_factory=FlashSale)
    offline: set[str] = field(default_factory=set)
    short_holds: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _entries: list[_Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, version: str, post: Post, *, rank: int = CHANGED, index: int = 0) -> None:
        """Keep one entry for the books."""
        with self._lock:
            self._entries.append(_Entry(Version.parse(version), rank, index, post))

    def enter_acked(self, acked: Acked) -> None:
        """Keep an entry for each APPLIED delta of a batch; all else but DUPLICATE is a failure."""
        calls = list(acked.answer.calls)
        version = ""
        for index, (delta, result) in enumerate(zip(acked.deltas, acked.answer.results, strict=True)):
            while calls and calls[0].first_index <= index:
                version = calls.pop(0).version
            if result == stk.DELTA_RESULT_APPLIED:
                self.enter(version, _delta_post(delta), index=index)
                self.count("deltas")
            elif result == stk.DELTA_RESULT_DUPLICATE:
                self.count("duplicates")
        for detail in acked.answer.details:
            if detail.result != stk.DELTA_RESULT_DUPLICATE:
                told = f"{stk.DeltaResult.Name(detail.result)} {detail.reason} {detail.message}"
                self.fail(f"delta {acked.deltas[detail.index]!s} of {acked.batch_number}: {told}")

    def post_all(self, books: Books) -> None:
        """Post every entry in the ledger's order."""
        with self._lock:
            entries = sorted(self._entries, key=lambda entry: (entry.version, entry.rank, entry.index))
        for entry in entries:
            entry.post(books)

    @property
    def last_version(self) -> str:
        """Return the latest version that any answer named."""
        with self._lock:
            return str(max((entry.version for entry in self._entries), default=Version(0, 0)))

    def count(self, what: str, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self.counts[what] += by

    def tell(self, kind: str, text: str) -> None:
        """Add a line of news."""
        with self._lock:
            self.news.append(News(time.monotonic() - self.started_s, kind, text))
            self.news_total += 1

    def fail(self, text: str) -> None:
        """Keep what should not have happened; the demo then cannot succeed."""
        with self._lock:
            self.failures.append(text)

    def latency(self, ms: float) -> None:
        """Keep how long a reservation took."""
        with self._lock:
            self.latencies_ms.append(ms)

    def latency_percentiles(self) -> tuple[float, float] | None:
        """Return the median and 99th percentile in milliseconds."""
        with self._lock:
            ordered: Sequence[float] = sorted(self.latencies_ms)
        if not ordered:
            return None
        return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]

    def news_since(self, seen: int) -> tuple[list[News], int]:
        """Return the lines after the first ``seen`` ones, and how many there are now."""
        with self._lock:
            fresh = min(self.news_total - seen, len(self.news))
            return list(self.news)[len(self.news) - fresh :], self.news_total


def _delta_post(delta: stk.Delta) -> Post:
    """Return what a delta does to the books (CONTRACT section 3, table of types)."""
    sku, node, quantity = delta.sku, delta.node, delta.quantity
    order = (delta.order_source or delta.source, delta.order_ref)
    match delta.type:
        case stk.DELTA_TYPE_RECEIPT:
            return lambda books: books.receive(sku, node, quantity)
        case stk.DELTA_TYPE_ADJUSTMENT:
            return lambda books: books.receive(sku, node, quantity)
        case stk.DELTA_TYPE_SHIPMENT:
            return lambda books: books.ship(order, sku, node, quantity)
        case stk.DELTA_TYPE_QUARANTINE:
            return lambda books: books.receive(sku, node, 0, quarantined=quantity)
        case stk.DELTA_TYPE_QUARANTINE_RELEASE:
            return lambda books: books.receive(sku, node, 0, quarantined=-quantity)
        case stk.DELTA_TYPE_WRITE_OFF:
            return lambda books: books.receive(sku, node, -quantity, quarantined=-quantity)
        case stk.DELTA_TYPE_RETURN_RECEIVED:
            return lambda books: books.receive(sku, node, quantity, quarantined=quantity)
        case stk.DELTA_TYPE_ORDER_PLACED | stk.DELTA_TYPE_ORDER_CHANGED:
            return lambda books: books.order(order, sku, quantity)
        case stk.DELTA_TYPE_ORDER_ALLOCATED:
            return lambda books: books.allocate(order, sku, node, quantity)
        case stk.DELTA_TYPE_ORDER_CANCELLED:
            return lambda books: books.cancel(order)
    raise ValueError(f"the demo's books know no {stk.DeltaType.Name(delta.type)}")
