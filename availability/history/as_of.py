"""What a position had as of a point: what it has now, less what came after.

Every record of the log tells the signed changes of each delta, and whose number it has, so nothing more is written
while a snapshot is taken: a change then costs what it always costs, and the two kinds of points are one rule. The
price is that the log reaches back to the point; where it does not, that is told (`PointLost`) and nothing is guessed.

A delta came after the point where
  * the point names its stream, and its number is above the one named;
  * the point does not name it, and it was applied after the second mark.
A delta that the point does not name and that was applied after the first mark (without marks: after the ledger had
applied the last of the named numbers) may be on either side: the position is UNSETTLED, reported and not corrected.
Corrections are no source's events: they say what the ledger should have had, and count as before every point.

Units add up in any order, counts and orders do not. Where something of before the point was applied after something of
later, and a count had its say, or both are facts of one order, what would be without the later one cannot be told by
taking it off: the position (of orders: what is confirmed of the sku) is UNSETTLED. A later word makes an older STALE,
and that leaves no trace; so a later word counts as such where another named stream may have been behind its own number
then. That takes two streams: with one, nothing of before comes after something of later.

Reservations move neither on_hand nor quarantine, and are passed over unread. Reads entries only; pure but for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from availability.domain.snapshots import (
    CORRECTION_SOURCE,
    LINK_ORDER,
    ORDER_CANCELLED,
    SHIPMENT,
    TRANSFER_OUT,
    stock_change,
)
from availability.domain.version import Version
from availability.ledger.record import (
    CommittedBody,
    DeltasBody,
    Effect,
    Entry,
    EpochBody,
    Kind,
    Record,
    StreamBody,
    decode_body,
)

Stream = tuple[str, str]
"""(source, stream)"""
Place = tuple[str, str]
"""(sku, node)"""
OrderName = tuple[str, str]
"""(order_source, order_ref)"""

_ORDER_TYPES = frozenset(range(12, ORDER_CANCELLED + 1)) | {SHIPMENT, TRANSFER_OUT, LINK_ORDER}
_DELTAS, _COMMITTED, _EPOCH, _STREAM = (
    int(Kind.DELTAS),
    int(Kind.COMMITTED),
    int(Kind.EPOCH),
    int(Kind.STREAM),
)
_TOLD = frozenset({_DELTAS, _COMMITTED, _EPOCH, _STREAM})
READ_RECORDS = 2_000
"""Records that are read at once."""


class PointLost(Exception):
    """What the ledger had at the point cannot be told any more; a new snapshot is needed."""


class ForkSeen(Exception):
    """The ledger failed over while it was read, to a log without what was read; read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The moment of a snapshot: a number per stream, or the two marks around a reading, or both."""

    as_of: Mapping[Stream, int] = field(default_factory=dict)
    begin: Version | None = None
    end: Version | None = None

    @property
    def known(self) -> bool:
        """Whether it is a point at all."""
        return bool(self.as_of) or self.end is not None


@dataclass(frozen=True, slots=True)
class Later:
    """What came after the point at one position; ``settled`` is False where that is not known."""

    on_hand: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    confirmed: int = 0
    settled: bool = True
    confirmed_settled: bool = True


NOTHING = Later()
_MIXED = Later(confirmed_settled=False)


class _Change:
    """What came after the point at one position, while it is added up."""

    __slots__ = ("confirmed", "confirmed_unsettled", "moved", "on_hand", "reasons", "unsettled")

    def __init__(self) -> None:
        self.on_hand = 0
        self.reasons: dict[str, int] = {}
        self.confirmed: dict[str, int] = {}
        self.moved = False
        self.unsettled = False
        self.confirmed_unsettled: set[str] = set()


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin to read: after ``version``; ``reached``: where the last of the named numbers was applied.

    ``seen_ms``: when each named stream was last heard, by the ledger's clock: its number was settled by then.
    """

    version: Version
    reached: Version
    seen_ms: Mapping[Stream, int] = field(default_factory=dict)


BEFORE, AFTER, UNKNOWN = "before", "after", "unknown"


class After:
    """Adds up what came after a point, record by record, in the order of the log from ``start`` on."""

    def __init__(self, point: Point, start: Start) -> None:
        self.point = point
        self.version = start.version
        """Everything up to here is added up."""
        self._first = point.begin if point.begin is not None else start.reached
        self._behind = {
            stream: start.seen_ms.get(stream, 0) for stream, number in point.as_of.items() if number
        }
        """Named streams that may be behind their number still, and the clock by which they were not."""
        self._places: dict[Place, _Change] = {}
        self._skus: set[str] = set()
        self.since_ms = 0
        """Ledger clock of the first delta or commit that was looked at; 0: none yet."""
        self._orders: dict[OrderName, set[str]] = {}
        """Orders that facts name that are not of before the point: with the skus (empty: all) that these name."""
        self._mixed_skus: set[str] = set()
        """Skus of which it cannot be told what was confirmed."""

    def add(self, entry: Entry) -> None:
        """Take the next entry. Raises PointLost where a named stream was reset, or entries are missing; ForkSeen."""
        kind = kind_of(entry.raw)
        self._follow(entry, kind)
        if kind == _DELTAS:
            record = entry.record()
            self.since_ms = self.since_ms or record.clock_ms
            self._add_deltas(record, decode_body(record))
        elif kind == _COMMITTED:
            record = entry.record()
            self.since_ms = self.since_ms or record.clock_ms
            self._add_commit(record)
        elif kind == _STREAM:
            body: StreamBody = decode_body(entry.record())
            if body.action == "RESET" and (body.source, body.stream) in self.point.as_of:
                raise PointLost(f"stream {body.stream!r} of {body.source} was reset after the point")

    def _follow(self, entry: Entry, kind: int) -> None:
        version, before = entry.version, self.version
        if version.epoch == before.epoch and version.seq == before.seq + 1:
            self.version = version
            return
        if kind == _EPOCH and version.seq == 1:
            body: EpochBody = decode_body(entry.record())
            if (body.old_epoch, body.last_seq) == (before.epoch, before.seq):
                self.version = version
                return
            if (body.old_epoch, body.last_seq) < (before.epoch, before.seq):
                raise ForkSeen("the ledger failed over meanwhile; read again")
        raise PointLost(
            f"the log does not reach back to the point: nothing is left between {before} and {version}"
        )

    def later(self, sku: str, node: str, source: str = "") -> Later:
        """Tell what came after the point at a position; ``source``: of whose confirmations, corrections' included."""
        change = self._places.get((sku, node))
        if change is None:
            return NOTHING if sku not in self._mixed_skus else _MIXED
        return Later(
            change.on_hand,
            change.reasons,
            change.confirmed.get(source, 0) + change.confirmed.get(CORRECTION_SOURCE, 0),
            not change.unsettled,
            change.confirmed_unsettled.isdisjoint((source, CORRECTION_SOURCE))
            and sku not in self._mixed_skus,
        )

    def has(self, sku: str) -> bool:
        """Tell whether anything came after the point at any position of a sku."""
        return sku in self._skus or sku in self._mixed_skus

    def touched(self, order_source: str, order_ref: str) -> bool:
        """Tell whether a fact after the point, or one of which that is not known, names an order."""
        return (order_source, order_ref) in self._orders

    def _change(self, sku: str, node: str) -> _Change:
        change = self._places.get((sku, node))
        if change is None:
            change = self._places[sku, node] = _Change()
            self._skus.add(sku)
        return change

    def _side(self, source: str, stream: str, number: int) -> str:
        """On which side of the point a delta of the record under way is."""
        if source == CORRECTION_SOURCE:
            return BEFORE
        named = self.point.as_of.get((source, stream)) if number else None
        if named is not None:
            return AFTER if number > named else BEFORE
        return self._side_by_marks()

    def _side_by_marks(self) -> str:
        if self.version <= self._first:
            return BEFORE
        end = self.point.end
        return AFTER if end is not None and self.version > end else UNKNOWN

    def _add_deltas(self, record: Record, body: DeltasBody) -> None:
        moved = {effect.cause: effect.units for effect in record.effects if not effect.source}
        sides = []
        mixed: set[int] = set()
        for index, cause in enumerate(body.causes):
            side = self._side(body.source, cause.stream, cause.source_sequence)
            sides.append(side)
            if self._behind:
                self._hear(body.source, cause.stream, cause.source_sequence)
                if side is not BEFORE and self._is_behind((body.source, cause.stream), record.clock_ms):
                    mixed.add(index)
            if cause.type in _ORDER_TYPES and cause.order_ref:
                if index in mixed:
                    self._mixed_skus.add(cause.sku)
                names = [(cause.order_source, cause.order_ref)]
                if cause.type == LINK_ORDER:
                    names.append((cause.linked_order_source, cause.linked_order_ref))
                self._name_orders(names, cause.sku, side)
            if side is BEFORE:
                known = self._places.get((cause.sku, cause.node)) if index in moved else None
                if known is not None and known.moved:
                    known.unsettled = True
                continue
            on_hand, reason, units = stock_change(cause.type, cause.quantity, cause.state, cause.reason)
            on_hand = moved.get(index, on_hand)
            if not on_hand and not units and index not in moved:
                continue  # of stock it says nothing
            change = self._change(cause.sku, cause.node)
            if side is UNKNOWN or (index in mixed and index in moved):
                change.unsettled = True
            change.on_hand += on_hand
            change.moved = True
            if units:
                change.reasons[reason] = change.reasons.get(reason, 0) + units
        for effect in record.effects:
            if effect.source and sides[effect.cause] is not BEFORE:
                cause = body.causes[effect.cause]
                self._orders.setdefault((cause.order_source, cause.order_ref), set()).add(effect.sku)
                if effect.cause in mixed:
                    self._mixed_skus.add(effect.sku)
                self._confirm(effect, known=sides[effect.cause] is AFTER)

    def _hear(self, source: str, stream: str, number: int) -> None:
        known = self.point.as_of.get((source, stream)) if number else None
        if known is not None and number >= known:
            self._behind.pop((source, stream), None)

    def _is_behind(self, but: Stream, clock_ms: int) -> bool:
        return any(seen_ms >= clock_ms for stream, seen_ms in self._behind.items() if stream != but)

    def _name_orders(self, names: list[OrderName], sku: str, side: str) -> None:
        """Note orders that a fact names; what it says of a sku ('': of all)."""
        for name in names:
            later = self._orders.get(name)
            if side is not AFTER and later is not None:
                if not sku:
                    self._mixed_skus |= later
                elif sku in later or "" in later:
                    self._mixed_skus.add(sku)
            if side is not BEFORE:
                self._orders.setdefault(name, set()).add(sku)

    def _add_commit(self, record: Record) -> None:
        """A commit of ours is no source's event: only marks can tell on which side it is."""
        side = self._side_by_marks()
        if side is BEFORE and not self._orders:
            return
        body: CommittedBody = decode_body(record)
        for sku in {line.sku for line in body.lines}:
            self._name_orders([(body.order_source, body.order_ref)], sku, side)
        if side is BEFORE:
            return
        for effect in record.effects:
            self._confirm(effect, known=side is AFTER)

    def _confirm(self, effect: Effect, *, known: bool) -> None:
        change = self._change(effect.sku, effect.node)
        change.confirmed[effect.source] = change.confirmed.get(effect.source, 0) + effect.units
        if not known:
            change.confirmed_unsettled.add(effect.source)


def kind_of(raw: bytes) -> int:
    """Kind of a record without decoding the rest: the first element of its array, a small number."""
    return raw[1]


Read = Callable[[Version, int], list[Entry]]
"""Entries after a version, at most so many, oldest first."""
ReadBack = Callable[[Version | None, int], list[Entry]]
"""Entries before a version (None: the end of the log), at most so many, latest first."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a stream had come, and when it was last heard (ledger clock, ms)."""

    number: int
    seen_ms: int


def find_start(point: Point, marks: Mapping[Stream, Mark], head: Version, read_back: ReadBack) -> Start:
    """Find where to begin to add up: before the first delta that came after the point.

    ``marks`` are those of the named streams at ``head``, none below the point's numbers. Raises PointLost where the log
    does not reach back so far.
    """
    if not point.as_of:
        assert point.begin is not None
        return Start(point.begin, point.begin)
    search = _Search(point, marks, head)
    while not search.is_done():
        entries = read_back(search.oldest, READ_RECORDS)
        for entry in entries:
            search.add(entry)
            if search.is_done():
                break
        if len(entries) < READ_RECORDS:
            break
    return search.found()


class _Search:
    """Goes back through the log until every named number, and the first mark, is passed."""

    def __init__(self, point: Point, marks: Mapping[Stream, Mark], head: Version) -> None:
        self._marks = marks
        self._as_of = point.as_of
        self._begin = point.begin
        self._head = head
        self._sources = {source for source, _ in point.as_of}
        self._went_on = {stream for stream, number in point.as_of.items() if marks[stream].number > number}
        """Streams of which deltas above the number are to be found; the others had none up to ``head``."""
        self._unseen = set(point.as_of)
        self._first_above: dict[Stream, int] = {}
        self._reached: Version | None = None
        self.oldest: Version | None = None

    def is_done(self) -> bool:
        """Tell whether nothing older can matter."""
        if self._went_on & self._unseen or self.oldest is None:
            return False
        return self._reached is not None if self._begin is None else self.oldest <= self._begin

    def add(self, entry: Entry) -> None:
        """Look at the next older entry."""
        self.oldest = entry.version
        kind = kind_of(entry.raw)
        if not self._unseen or kind not in (_DELTAS, _STREAM):
            return
        if kind == _STREAM:
            told: StreamBody = decode_body(entry.record())
            if told.action == "RESET" and (told.source, told.stream) in self._unseen:
                raise PointLost(f"stream {told.stream!r} of {told.source} was reset after the point")
            return
        body: DeltasBody = decode_body(entry.record())
        if body.source not in self._sources:
            return
        passed = set()
        for cause in body.causes:
            stream = (body.source, cause.stream)
            if not cause.source_sequence or stream not in self._unseen:
                continue
            if cause.source_sequence <= self._as_of[stream]:
                passed.add(stream)
            elif cause.source_sequence < self._first_above.get(stream, cause.source_sequence + 1):
                self._first_above[stream] = cause.source_sequence
        self._unseen -= passed
        if passed and self._reached is None:
            self._reached = entry.version

    def found(self) -> Start:
        """Give the start, after the search."""
        first = self.oldest
        whole = self._head.seq == 0 if first is None else first[:2] == (1, 1)
        for stream in self._went_on & self._unseen:
            # The log ends before the number itself; that is no harm where the one after it is there.
            if not whole and self._first_above.get(stream) != self._as_of[stream] + 1:
                raise PointLost(
                    f"the log does not reach back to number {self._as_of[stream]} of stream {stream[1]!r}"
                )
        start = self._head if first is None else Version(first.epoch, first.seq - 1)
        if self._begin is not None and start > self._begin:
            raise PointLost("the log does not reach back to the first mark")
        seen_ms = {stream: mark.seen_ms for stream, mark in self._marks.items()}
        return Start(start, self._reached if self._reached is not None else start, seen_ms)
