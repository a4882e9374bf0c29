"""The ledger's side of a snapshot: positions and open order lines as of its point, page by page.

A page is read from Redis at one version; what came after the point up to there is taken off (`history.as_of`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.snapshots import CORRECTION_SOURCE
from availability.domain.version import Version
from availability.history.as_of import After, ForkSeen, Later, Mark, Point, PointLost, Stream, find_start
from availability.ledger.ledger import Ledger
from availability.ledger.record import Entry
from availability.ledger.snapshots import OpenLine, OpenOrder, SnapshotLedger, StockPage, StockRest
from availability.service.context import CallContext
from availability.service.ledger_calls import ledger_failures
from availability.service.requests import check_id, timestamp
from availability.service.snapshot_handlers import checked_marks, checked_nodes, owned
from availability.v1 import stock_pb2 as pb

SKUS_PER_PAGE = 250
"""Redis serves nobody else while it reads a page."""
ORDERS_PER_PAGE = 250
LOG_RECORDS_PER_READ = 2_000
WAIT_S_MAX = 60.0
"""Longest wait for a stream to reach its number; the caller's deadline may be sooner."""
WAIT_STEP_S = 0.1
DEADLINE_MARGIN_S = 0.5
"""So long before its deadline a caller is told that the point is not reached."""

_SETTLED = {True: pb.SETTLING_SETTLED, False: pb.SETTLING_UNSETTLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whose snapshot, of which nodes (none: every one), as of which point."""

    source: str
    nodes: frozenset[str]
    point: Point

    @property
    def kind(self) -> pb.PointKind.ValueType:
        """How exactly the moment is known."""
        if self.point.as_of:
            return pb.POINT_KIND_SEQUENCES
        return pb.POINT_KIND_MARKS if self.point.known else pb.POINT_KIND_UNSPECIFIED


class Follower:
    """Keeps what came after a point up to date with the pages that are read."""

    def __init__(self, after: After, read: Callable[[Version, int], list[Entry]]) -> None:
        self.after = after
        self._read = read
        self._ahead: deque[Entry] = deque()

    def advance(self, version: Version) -> None:
        """Add up every record up to a version. Raises PointLost, ForkSeen, LedgerError."""
        while self.after.version < version:
            if not self._ahead:
                self._ahead.extend(self._read(self.after.version, LOG_RECORDS_PER_READ))
            if not self._ahead:
                raise PointLost("the log does not reach back to the point")
            while self._ahead and self._ahead[0].version <= version:
                self.after.add(self._ahead.popleft())
            if self._ahead:
                break
        if self.after.version != version:
            raise PointLost("the log ends before what was read")


class SnapshotReader:
    """The part of StockService that tells the ledger's side. ``sleep`` waits so many seconds; ``wall_ms`` is UTC."""

    def __init__(
        self,
        ledger: Ledger,
        store: SnapshotLedger,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._monotonic = monotonic
        self._sleep = sleep
        self._wall_ms = wall_ms

    def read_positions(
        self, request: pb.ReadPositionsRequest, ctx: CallContext
    ) -> Iterator[pb.ReadPositionsResponse]:
        """Return positions as of the point."""
        with ledger_failures(), _point_failures():
            asked = self._asked(request, ctx)
            follower = self._follower(asked, ctx)
        index = 0
        while index >= 0:
            if ctx.cancelled():
                return
            with ledger_failures(), _point_failures():
                page = self._store.stock(index, SKUS_PER_PAGE, confirmed=request.include_confirmed)
                if follower is not None:
                    follower.advance(page.rest.head.version)
            after = None if follower is None else follower.after
            yield pb.ReadPositionsResponse(
                point_kind=asked.kind,
                version=str(page.rest.head.version),
                positions=_columns(page, asked, after, include_confirmed=request.include_confirmed),
                sku_number=index + len(page.rest.skus),
                sku_count=page.rest.sku_count,
            )
            index = page.rest.next_index

    def read_order_lines(
        self, request: pb.ReadOrderLinesRequest, ctx: CallContext
    ) -> Iterator[pb.ReadOrderLinesResponse]:
        """Return open order lines; those that a fact touched after the point are UNSETTLED."""
        with ledger_failures(), _point_failures():
            asked = self._asked(request, ctx)
            follower = self._follower(asked, ctx)
        last: tuple[int, str] | None = None
        since_ms = 0
        while True:
            if ctx.cancelled():
                return
            with ledger_failures(), _point_failures():
                if follower is not None and not since_ms:  # what came after the point began when?
                    follower.advance(self._ledger.head().version)
                    since_ms = follower.after.since_ms
                page = self._store.open_orders(last, ORDERS_PER_PAGE, since_ms)
                if follower is not None:
                    follower.advance(page.head.version)
            ahead_ms = self._wall_ms() - page.clock_ms
            after = None if follower is None else follower.after
            yield pb.ReadOrderLinesResponse(
                point_kind=asked.kind,
                version=str(page.head.version),
                lines=[line for order in page.orders for line in _lines(order, asked.nodes, after, ahead_ms)],
            )
            if isinstance(page.last, bool):
                return
            last = page.last

    # Inside -------------------------------------------------------------------------------------------------

    def _asked(self, request: pb.ReadPositionsRequest | pb.ReadOrderLinesRequest, ctx: CallContext) -> Asked:
        if bool(request.snapshot_id) == request.HasField("point"):
            raise invalid("exactly one of snapshot_id and point is required", field="snapshot_id")
        if not request.snapshot_id:
            point = request.point
            check_id(point.source, "source")
            as_of = {(of, stream): number for of, stream, number in checked_marks(point.as_of, point.source)}
            return Asked(
                source=point.source, nodes=frozenset(checked_nodes(point.nodes)), point=Point(as_of=as_of)
            )
        row = owned(self._store, request.snapshot_id, ctx)
        if row.end is None:
            raise ServiceError(
                Reason.SNAPSHOT_NOT_ENDED, "the snapshot has not ended yet", snapshot_id=request.snapshot_id
            )
        as_of = {(of, stream): number for of, stream, number in row.as_of}
        if not as_of and row.begin.epoch != row.end.epoch:
            raise PointLost(
                "Redis was restarted or failed over between the two marks: what was lost is not known"
            )
        return Asked(
            source=row.source,
            nodes=frozenset(row.nodes),
            point=Point(as_of=as_of, begin=row.begin, end=row.end),
        )

    def _follower(self, asked: Asked, ctx: CallContext) -> Follower | None:
        point = asked.point
        if not point.known:
            return None
        head, marks = self._ledger.head().version, dict[Stream, Mark]()
        if point.as_of:
            head, marks = self._reached(point, ctx)
        start = find_start(point, marks, head, self._ledger.read_back)
        return Follower(After(point, start), lambda version, count: self._ledger.read(version, count, 0))

    def _reached(self, point: Point, ctx: CallContext) -> tuple[Version, dict[Stream, Mark]]:
        """Wait until the ledger has applied every named number."""
        streams = list(point.as_of)
        until = min(self._monotonic() + WAIT_S_MAX, ctx.deadline - DEADLINE_MARGIN_S)
        while True:
            head, found = self._store.marks(streams)
            marks = {
                stream: Mark(max(0, number), seen_ms)
                for stream, (number, seen_ms) in zip(streams, found, strict=True)
            }
            missing = [stream for stream in streams if marks[stream].number < point.as_of[stream]]
            if not missing:
                return head.version, marks
            if self._monotonic() + WAIT_STEP_S >= until or ctx.cancelled():
                source, stream = missing[0]
                raise ServiceError(
                    Reason.SNAPSHOT_NOT_REACHED,
                    f"stream {stream!r} of {source} has come to {marks[missing[0]].number}, the snapshot contains"
                    f" {point.as_of[missing[0]]}",
                    source=source,
                    stream=stream,
                    last_sequence=str(marks[missing[0]].number),
                )
            self._sleep(WAIT_STEP_S)


class _point_failures:  # noqa: N801 - a context manager, named like the function beside which it stands
    """Turns what the log cannot tell into ServiceError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, PointLost):
            raise ServiceError(Reason.SNAPSHOT_POINT_LOST, str(error)) from error
        if isinstance(error, ForkSeen):
            raise ServiceError(Reason.LEDGER_NOT_READY, str(error)) from error


def _columns(
    page: StockPage, asked: Asked, after: After | None, *, include_confirmed: bool
) -> pb.PositionColumns:
    rest, source = page.rest, asked.source
    nodes: dict[str, int] = {}
    places = np.fromiter(
        (nodes.setdefault(node, len(nodes)) for some in rest.nodes for node in some),
        np.int64,
        len(page.figures),
    )
    numbers = np.repeat(np.arange(len(rest.skus)), [len(some) for some in rest.nodes])
    on_hand, quarantined = page.figures[:, 0].copy(), page.figures[:, 1].copy()
    confirmed = np.zeros(len(places), np.int64)
    reasons: dict[int, dict[str, int]] = {}
    for extra in rest.extras:
        if isinstance(extra.reasons, dict):
            reasons[extra.place] = extra.reasons
        if isinstance(extra.confirmed, dict):
            # What a correction allocated stands for what the source had allocated.
            by = extra.confirmed
            confirmed[extra.place] = by.get(source, 0) + by.get(CORRECTION_SOURCE, 0)
    known = pb.SETTLING_UNSPECIFIED if after is None else pb.SETTLING_SETTLED
    settling, confirmed_settling = np.full(len(places), known), np.full(len(places), known)
    for place, later in _changed(rest, after, source):
        on_hand[place] -= later.on_hand
        confirmed[place] -= later.confirmed
        settling[place] = _SETTLED[later.settled]
        confirmed_settling[place] = _SETTLED[later.confirmed_settled]
        if later.reasons:
            quarantined[place] -= sum(later.reasons.values())
            now = reasons.get(place, {})
            reasons[place] = {
                reason: now.get(reason, 0) - later.reasons.get(reason, 0)
                for reason in {**now, **later.reasons}
            }
    kept = np.arange(len(places))
    if asked.nodes:
        kept = kept[np.isin(places, [number for node, number in nodes.items() if node in asked.nodes])]
    rows = {int(place): row for row, place in enumerate(kept)} if reasons else {}
    return pb.PositionColumns(
        skus=rest.skus,
        nodes=nodes,
        sku_indexes=numbers[kept].tolist(),
        node_indexes=places[kept].tolist(),
        on_hand=on_hand[kept].tolist(),
        quarantined=quarantined[kept].tolist(),
        confirmed=confirmed[kept].tolist() if include_confirmed else (),
        settling=settling[kept].tolist(),
        confirmed_settling=confirmed_settling[kept].tolist() if include_confirmed else (),
        reserved=page.figures[kept, 2].tolist(),
        committed=page.figures[kept, 3].tolist(),
        on_hand_now=page.figures[kept, 0].tolist(),
        quarantined_units=[
            pb.QuarantinedUnits(row=rows[place], reason=reason, quantity=units)
            for place, by_reason in reasons.items()
            if place in rows
            for reason, units in by_reason.items()
            if units
        ],
    )


def _changed(rest: StockRest, after: After | None, source: str) -> Iterator[tuple[int, Later]]:
    """Yield what came after the point, by place in the page; most positions had nothing."""
    if after is None:
        return
    place = 0
    for sku, nodes in zip(rest.skus, rest.nodes, strict=True):
        if after.has(sku):
            for number, node in enumerate(nodes, start=place):
                yield number, after.later(sku, node, source)
        place += len(nodes)


def _lines(
    order: OpenOrder, wanted: frozenset[str], after: After | None, ahead_ms: int
) -> Iterator[pb.OrderLineOpen]:
    names = [(order.order_source, order.order_ref), *order.links]
    settling = pb.SETTLING_UNSPECIFIED
    if after is not None:
        settling = _SETTLED[not any(after.touched(*name) for name in names)]
    for sku, lines in order.skus:
        for line in lines:
            if not line.open and settling != pb.SETTLING_UNSETTLED:
                continue
            if not wanted or not line.nodes or any(node in wanted for node, _, _ in line.nodes):
                yield _line(order, sku, line, settling, ahead_ms)


def _line(
    order: OpenOrder, sku: str, line: OpenLine, settling: pb.Settling.ValueType, ahead_ms: int
) -> pb.OrderLineOpen:
    return pb.OrderLineOpen(
        order_source=order.order_source,
        order_ref=order.order_ref,
        links=[pb.OrderName(order_source=source, order_ref=ref) for source, ref in order.links],
        line=line.line,
        sku=sku,
        ordered=line.ordered if line.ordered >= 0 else None,
        shipped=line.shipped,
        open_quantity=line.open,
        nodes=[
            pb.OpenAtNode(node=node, open_quantity=units, confirmed=confirmed)
            for node, units, confirmed in line.nodes
        ],
        last_fact_time=timestamp(order.last_fact_ms + ahead_ms),
        settling=settling,
        channel=order.channel,
    )
