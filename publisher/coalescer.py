"""What a shop has yet to be told: the latest number of each sku, and in which order. Pure.

One entry a sku, however often it changes. An entry is taken, written, and given back as written, to be tried again, or
dropped; meanwhile it is under way and not taken twice, and what the ledger says meanwhile waits in the entry. First go
stop-sales, then what goes out of stock, then what comes back, then the rest; within each the longest waiting.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum


class Lane(IntEnum):
    """Who goes first."""

    STOP_SALE = 0
    OUT_OF_STOCK = 1
    BACK_IN_STOCK = 2
    OTHER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One number on its way. ``since``: when the oldest change was heard that the shop does not show yet.

    ``acked``: what the shop acknowledged last; None: not known. ``read_first``: nobody knows what it shows.
    """

    sku: str
    quantity: int
    version: str
    since: float
    acked: int | None
    attempts: int
    read_first: bool
    lane: Lane


@dataclass(slots=True)
class _Entry:
    quantity: int
    version: str
    since: float
    blocked: bool
    lane: Lane = Lane.OTHER
    attempts: int = 0
    not_before: float = 0.0
    sending: int | None = None
    heard_while_sending: float | None = None
    forced: bool = False
    read_first: bool = False
    held: bool = False
    queued: bool = False
    waiting: float | None = None


class Coalescer:
    """The entries of one shop. ``skip_equal``: a number that the shop acknowledged last is not written again.

    That is right only where nobody else changes the shop's numbers (Owner mode).
    """

    def __init__(self, *, skip_equal: bool) -> None:
        self._skip_equal = skip_equal
        self._entries: dict[str, _Entry] = {}
        self._acked: dict[str, int] = {}
        self._lanes: tuple[OrderedDict[str, None], ...] = tuple(OrderedDict() for _ in Lane)
        self._later: list[tuple[float, int, str]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sku: str) -> bool:
        return sku in self._entries

    def acked(self, sku: str) -> int | None:
        """Return what the shop acknowledged last; None: not known."""
        return self._acked.get(sku)

    @property
    def known(self) -> int:
        """Return of how many skus it is known what the shop acknowledged."""
        return len(self._acked)

    def oldest_since(self, only: Collection[str] | None = None) -> float | None:
        """Return when the oldest change was heard that waits or is under way. Looks at every entry.

        ``only``: of these skus.
        """
        if only is None:
            return min((entry.since for entry in self._entries.values()), default=None)
        fewer, more = (only, self._entries) if len(only) < len(self._entries) else (self._entries, only)
        return min((self._entries[sku].since for sku in fewer if sku in more), default=None)

    def pending(self) -> list[str]:
        """Return the skus that wait or are under way."""
        return list(self._entries)

    def zeros(self) -> list[str]:
        """Return the skus whose latest number is 0 and no stop-sale. Looks at every entry."""
        return [sku for sku, entry in self._entries.items() if entry.quantity <= 0 and not entry.blocked]

    def learn(self, sku: str, quantity: int | None) -> None:
        """Note what the shop is known to show; None: no longer known."""
        if quantity is None:
            self._acked.pop(sku, None)
        else:
            self._acked[sku] = quantity

    def offer(self, sku: str, quantity: int, version: str, heard_at: float, *, blocked: bool = False) -> bool:
        """Take the ledger's latest number. Returns whether it has to be written; False: the shop shows it already."""
        entry = self._entries.get(sku)
        if entry is None:
            if self._settled(sku, quantity):
                return False
            entry = _Entry(quantity, version, heard_at, blocked)
            self._entries[sku] = entry
            self._queue(sku, entry)
            return True
        if entry.quantity != quantity:
            entry.attempts, entry.held = 0, False  # another number is another question
        entry.quantity, entry.version, entry.blocked = quantity, version, blocked
        if entry.sending is not None:
            if entry.heard_while_sending is None:
                entry.heard_while_sending = heard_at
            return True
        if not entry.forced and not entry.read_first and self._settled(sku, quantity):
            self._remove(sku, entry)
            return False
        self._queue(sku, entry)
        return True

    def force(
        self,
        sku: str,
        quantity: int,
        version: str,
        since: float,
        *,
        blocked: bool = False,
        not_before: float = 0.0,
        read_first: bool = False,
    ) -> None:
        """Have a number written (or read back first), whatever the shop acknowledged: replay, repair, a second look."""
        entry = self._entries.get(sku)
        if entry is None:
            entry = self._entries[sku] = _Entry(quantity, version, since, blocked)
        entry.forced = True
        entry.read_first = entry.read_first or read_first
        entry.not_before = max(entry.not_before, not_before)
        if entry.sending is None:
            self._queue(sku, entry)

    def take(self, items_max: int, now: float) -> list[Taken]:
        """Return what goes next, each sku once; it is under way until it is given back."""
        while (at := self.next_at()) is not None and at <= now:
            _, _, sku = heapq.heappop(self._later)
            entry = self._entries[sku]
            entry.waiting, entry.not_before = None, 0.0
            self._queue(sku, entry)
        taken: list[Taken] = []
        for lane in self._lanes:
            while lane and len(taken) < items_max:
                sku, _ = lane.popitem(last=False)
                entry = self._entries[sku]
                entry.queued = False
                entry.sending = entry.quantity
                taken.append(
                    Taken(
                        sku=sku,
                        quantity=entry.quantity,
                        version=entry.version,
                        since=entry.since,
                        acked=self._acked.get(sku),
                        attempts=entry.attempts,
                        read_first=entry.read_first,
                        lane=entry.lane,
                    )
                )
        return taken

    def ready(self) -> int:
        """Return how many entries could be taken at once."""
        return sum(len(lane) for lane in self._lanes)

    def next_at(self) -> float | None:
        """Return when the next entry may be tried again; None: none waits for a time."""
        while self._later:
            at, _, sku = self._later[0]
            entry = self._entries.get(sku)
            if entry is not None and entry.waiting == at:
                return at
            heapq.heappop(self._later)
        return None

    def written(self, taken: Taken, shown: int) -> bool:
        """Give back what the shop acknowledged: it shows ``shown``. Returns whether the sku has nothing left to do."""
        self._acked[taken.sku] = shown
        heard = self._entries[taken.sku].heard_while_sending is not None
        entry = self._back(taken)
        entry.attempts, entry.forced, entry.read_first, entry.not_before = 0, False, False, 0.0
        # Mirror may have written another number than was taken; what was heard since may be the one that was taken.
        if entry.quantity == shown or (entry.quantity == taken.quantity and not heard):
            del self._entries[taken.sku]
            return True
        self._queue(taken.sku, entry)
        return False

    def again(
        self,
        taken: Taken,
        not_before: float,
        *,
        count: bool = True,
        unknown: bool = False,
        forced: bool = True,
    ) -> bool:
        """Give back what is to be tried again, not before a time. ``count``: it was the item's own failure.

        ``unknown``: nobody knows what the shop shows now; the next attempt reads first, and no number is skipped
        because it was the last one acknowledged. Always with the number that is current then. Returns False where
        nothing is left to do: the number went back meanwhile to what the shop shows.
        """
        entry = self._back(taken)
        entry.attempts += count
        entry.forced = entry.forced or forced
        entry.not_before = not_before
        if unknown:
            self._acked.pop(taken.sku, None)
            entry.read_first = True
        if not entry.forced and not entry.read_first and self._settled(taken.sku, entry.quantity):
            del self._entries[taken.sku]
            return False
        self._queue(taken.sku, entry)
        return True

    def drop(self, taken: Taken) -> bool:
        """Give up a number (it has become a dead letter). Returns False where a newer number waits: it is tried."""
        entry = self._back(taken)
        if entry.quantity != taken.quantity:
            entry.attempts, entry.not_before = 0, 0.0
            self._queue(taken.sku, entry)
            return False
        del self._entries[taken.sku]
        return True

    def hold(self, taken: Taken) -> None:
        """Give back what an operator has to release first; it stays the latest number."""
        entry = self._back(taken)
        entry.held = True

    def release(self, skus: list[str] | None = None) -> int:
        """Let held entries go, of these skus or all. Returns how many."""
        count = 0
        for sku in self._entries if skus is None else skus:
            entry = self._entries.get(sku)
            if entry is not None and entry.held:
                entry.held, count = False, count + 1
                self._queue(sku, entry)
        return count

    def _back(self, taken: Taken) -> _Entry:
        entry = self._entries[taken.sku]
        assert entry.sending is not None, "given back twice"
        entry.sending = None
        if entry.heard_while_sending is not None and entry.quantity != taken.quantity:
            entry.since = entry.heard_while_sending
        entry.heard_while_sending = None
        return entry

    def _settled(self, sku: str, quantity: int) -> bool:
        return self._skip_equal and self._acked.get(sku) == quantity

    def _queue(self, sku: str, entry: _Entry) -> None:
        """Put an entry where it belongs; one that waits for a time goes there, one that is queued may move up."""
        if entry.held:
            self._unqueue(sku, entry)
            return
        if entry.not_before > 0.0:
            self._unqueue(sku, entry)
            if entry.waiting == entry.not_before:
                return
            entry.waiting = entry.not_before
            self._number += 1
            heapq.heappush(self._later, (entry.not_before, self._number, sku))
            return
        lane = self._lane(sku, entry)
        if entry.queued and lane is entry.lane:
            return
        self._unqueue(sku, entry)
        entry.lane, entry.queued = lane, True
        self._lanes[lane][sku] = None

    def _unqueue(self, sku: str, entry: _Entry) -> None:
        if entry.queued:
            del self._lanes[entry.lane][sku]
            entry.queued = False
        elif entry.waiting is not None and entry.not_before <= 0.0:
            entry.waiting = None  # its place in the heap is void

    def _remove(self, sku: str, entry: _Entry) -> None:
        self._unqueue(sku, entry)
        del self._entries[sku]

    def _lane(self, sku: str, entry: _Entry) -> Lane:
        if entry.blocked and entry.quantity <= 0:
            return Lane.STOP_SALE
        acked = self._acked.get(sku)
        if entry.quantity <= 0:
            return Lane.OUT_OF_STOCK if acked is None or acked > 0 else Lane.OTHER
        if acked is not None and acked <= 0:
            return Lane.BACK_IN_STOCK
        return Lane.OTHER
