"""Snapshots: announced, streamed in chunks, ended, closed; and the rows as they came.

The ledger's side of a snapshot is `snapshot_reads`. Nothing here corrects anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.limits import (
    BALANCE_ABS_MAX,
    CHANNEL_NODES_MAX,
    REFERENCE_BYTES_MAX,
    SNAPSHOT_CHUNK_ROWS_MAX,
    SNAPSHOT_ROWS_MAX,
    SNAPSHOT_STREAMS_MAX,
)
from availability.domain.text import text_problem
from availability.ledger.snapshots import (
    SnapshotBegin,
    SnapshotClose,
    SnapshotEnd,
    SnapshotLedger,
    SnapshotReply,
    SnapshotRow,
)
from availability.service.bounds import NODES, SOURCES
from availability.service.context import CallContext
from availability.service.ledger_calls import call, ledger_failures, refuse
from availability.service.requests import check_id, check_reference, request_key, timestamp
from availability.v1 import common_pb2
from availability.v1 import stock_pb2 as pb

CHUNK_TIMEOUT_S = 30.0
"""How long a chunk may wait for the ledger before its stream ends with an error."""


class SnapshotHandlers:
    """The part of StockService that takes snapshots. ``new_id`` draws their ids."""

    def __init__(
        self,
        store: SnapshotLedger,
        *,
        new_id: Callable[[], str],
        durability: common_pb2.Durability.ValueType,
        rows_max: int = SNAPSHOT_ROWS_MAX,
    ) -> None:
        self._store = store
        self._new_id = new_id
        self._durability = durability
        self._rows_max = rows_max

    def begin_snapshot(self, request: pb.BeginSnapshotRequest, ctx: CallContext) -> pb.BeginSnapshotResponse:
        """Note the first mark."""
        check_id(request.source, "source")
        nodes = checked_nodes(request.nodes)
        _check_kinds(request)
        command = SnapshotBegin(
            request_key(request.request_id, request, ctx),
            self._new_id(),
            request.source,
            nodes,
            request.content or pb.SNAPSHOT_CONTENT_POSITIONS,
            request.basis or pb.SNAPSHOT_BASIS_PHYSICAL,
            request.absent or pb.ABSENT_ROWS_IGNORE,
        )
        reply = call(ctx, lambda: self._store.begin(command, ctx.deadline))
        return pb.BeginSnapshotResponse(
            snapshot=shown(_done(reply, source=request.source)),
            replayed=reply.replayed,
            durability=self._durability,
        )

    def stream_snapshot(
        self, requests: Iterator[pb.StreamSnapshotRequest], ctx: CallContext
    ) -> Iterator[pb.StreamSnapshotResponse]:
        """Keep chunks in order, acknowledging each."""
        mine: set[str] = set()
        for request in requests:
            content = _checked_chunk(request)
            if request.snapshot_id not in mine:
                with ledger_failures():
                    self._owned(request.snapshot_id, ctx)
                mine.add(request.snapshot_id)
            with ledger_failures():
                sent = self._store.submit_chunk(
                    request.snapshot_id,
                    request.chunk_number,
                    content,
                    len(request.rows) + len(request.order_rows),
                    self._rows_max,
                    time.monotonic() + CHUNK_TIMEOUT_S,
                )
                reply = self._store.decode(sent.wait())
            row = _done(reply, snapshot_id=request.snapshot_id, chunk_number=str(request.chunk_number))
            yield pb.StreamSnapshotResponse(
                chunk_number=request.chunk_number,
                row_count=row.rows,
                replayed=reply.replayed,
                durability=self._durability,
            )
            if ctx.cancelled():
                raise ServiceError(Reason.LEDGER_NOT_READY, "the server is leaving; go on with another one")

    def end_snapshot(self, request: pb.EndSnapshotRequest, ctx: CallContext) -> pb.EndSnapshotResponse:
        """Note the second mark."""
        row = call(ctx, lambda: self._owned(request.snapshot_id, ctx))
        if request.HasField("row_count") and request.row_count < 0:
            raise invalid("row_count is at least 0", field="row_count")
        command = SnapshotEnd(
            request_key(request.request_id, request, ctx),
            request.snapshot_id,
            checked_marks(request.as_of, row.source),
            request.row_count if request.HasField("row_count") else -1,
        )
        reply = call(ctx, lambda: self._store.end(command, ctx.deadline))
        return pb.EndSnapshotResponse(
            snapshot=shown(_done(reply, snapshot_id=request.snapshot_id)),
            replayed=reply.replayed,
            durability=self._durability,
        )

    def close_snapshot(self, request: pb.CloseSnapshotRequest, ctx: CallContext) -> pb.CloseSnapshotResponse:
        """Let the rows and the log go."""
        call(ctx, lambda: self._owned(request.snapshot_id, ctx))
        command = SnapshotClose(request_key(request.request_id, request, ctx), request.snapshot_id)
        reply = call(ctx, lambda: self._store.close(command, ctx.deadline))
        return pb.CloseSnapshotResponse(
            snapshot=shown(_done(reply, snapshot_id=request.snapshot_id)),
            replayed=reply.replayed,
            durability=self._durability,
        )

    def list_snapshots(self, request: pb.ListSnapshotsRequest, ctx: CallContext) -> pb.ListSnapshotsResponse:
        """Tell where to resume."""
        check_id(request.source, "source", required=False)
        rows = call(ctx, lambda: self._store.rows(request.source))
        return pb.ListSnapshotsResponse(snapshots=[shown(row) for row in rows])

    def read_snapshot(
        self, request: pb.ReadSnapshotRequest, ctx: CallContext
    ) -> Iterator[pb.ReadSnapshotResponse]:
        """Return the chunks as they came."""
        with ledger_failures():
            row = self._owned(request.snapshot_id, ctx)
        for number in range(max(1, request.first_chunk), row.chunks + 1):
            with ledger_failures():
                content = self._store.chunk(request.snapshot_id, number)
            if content is None:  # closed meanwhile
                raise refuse("SNAPSHOT_NOT_FOUND", snapshot_id=request.snapshot_id)
            yield pb.ReadSnapshotResponse.FromString(content)

    def _owned(self, snapshot_id: str, ctx: CallContext) -> SnapshotRow:
        return owned(self._store, snapshot_id, ctx)


def owned(store: SnapshotLedger, snapshot_id: str, ctx: CallContext) -> SnapshotRow:
    """Return a snapshot; ServiceError where there is none, or where the token is not for what it names."""
    check_reference(snapshot_id, "snapshot_id", required=True)
    row = store.row(snapshot_id)
    if row is None:
        raise refuse("SNAPSHOT_NOT_FOUND", snapshot_id=snapshot_id)
    bounds = ctx.principal.bounds
    if bounds is not None:
        sources, nodes = bounds.within(SOURCES), bounds.within(NODES)
        if (sources is not None and row.source not in sources) or (
            nodes is not None and not (row.nodes and nodes.issuperset(row.nodes))
        ):
            raise ServiceError(
                Reason.PERMISSION_DENIED, "the token is not for this snapshot's source or nodes"
            )
    return row


def shown(row: SnapshotRow) -> pb.Snapshot:
    """A snapshot as the contract tells it."""
    return pb.Snapshot(
        snapshot_id=row.snapshot_id,
        source=row.source,
        nodes=row.nodes,
        content=pb.SnapshotContent.ValueType(row.content),
        basis=pb.SnapshotBasis.ValueType(row.basis),
        absent=pb.AbsentRows.ValueType(row.absent),
        state=pb.SnapshotState.ValueType(row.state),
        as_of=[
            pb.SequenceMark(source=source, stream=stream, source_sequence=number)
            for source, stream, number in row.as_of
        ],
        begin_version=str(row.begin),
        end_version=str(row.end or ""),
        begin_time=timestamp(row.begin_ms),
        end_time=timestamp(row.end_ms) if row.end is not None else None,
        row_count=row.rows,
        chunk_count=row.chunks,
        author=row.author,
    )


def checked_nodes(nodes: Sequence[str]) -> list[str]:
    """Nodes of a request, each once."""
    if len(nodes) > CHANNEL_NODES_MAX:
        raise invalid(f"{len(nodes)} nodes, at most {CHANNEL_NODES_MAX}", field="nodes")
    for node in nodes:
        check_id(node, "node")
    return list(dict.fromkeys(nodes))


def checked_marks(marks: Sequence[pb.SequenceMark], source: str) -> list[tuple[str, str, int]]:
    """Numbers of a request as (source, stream, number), each stream once."""
    if len(marks) > SNAPSHOT_STREAMS_MAX:
        raise invalid(f"{len(marks)} streams, at most {SNAPSHOT_STREAMS_MAX}", field="as_of")
    found: dict[tuple[str, str], int] = {}
    for mark in marks:
        of = mark.source or source
        check_id(of, "source")
        check_id(mark.stream, "stream")
        if not 0 <= mark.source_sequence < 2**53:
            raise invalid("source_sequence must be 0 to 2^53 - 1", field="source_sequence")
        if (of, mark.stream) in found:
            raise invalid(f"as_of names stream {mark.stream!r} twice", field="as_of")
        found[of, mark.stream] = mark.source_sequence
    return [(of, stream, number) for (of, stream), number in found.items()]


def _check_kinds(request: pb.BeginSnapshotRequest) -> None:
    for value, kind, name in (
        (request.content, pb.SnapshotContent, "content"),
        (request.basis, pb.SnapshotBasis, "basis"),
        (request.absent, pb.AbsentRows, "absent"),
    ):
        if value not in kind.values():
            raise invalid(f"no such {name}", field=name)
    if request.content == pb.SNAPSHOT_CONTENT_OPEN_ORDERS and request.basis == pb.SNAPSHOT_BASIS_NET:
        raise invalid("a basis belongs to positions", field="basis")


def _done(reply: SnapshotReply, **facts: str) -> SnapshotRow:
    if reply.status == "OK" and isinstance(reply.row, SnapshotRow):
        return reply.row
    if isinstance(reply.row, SnapshotRow):
        facts |= {"rows": str(reply.row.rows), "chunks": str(reply.row.chunks)}
    raise refuse("SNAPSHOT_NOT_FOUND" if reply.status == "OK" else reply.status, **facts)


def _checked_chunk(request: pb.StreamSnapshotRequest) -> bytes:
    """Content of a chunk as it is kept. Shape only: what a row means is for who compares it."""
    rows, order_rows = request.rows, request.order_rows
    if bool(rows) == bool(order_rows):
        raise invalid("a chunk has rows or order_rows, not both", field="rows")
    count = len(rows) + len(order_rows)
    if count > SNAPSHOT_CHUNK_ROWS_MAX:
        raise ServiceError(
            Reason.BATCH_TOO_LARGE,
            f"{count} rows, at most {SNAPSHOT_CHUNK_ROWS_MAX}",
            limit=str(SNAPSHOT_CHUNK_ROWS_MAX),
        )
    if not 1 <= request.chunk_number < 2**31:
        raise invalid("chunk_number begins at 1", field="chunk_number")
    for number, row in enumerate(rows):
        _check_row(number, (row.sku, row.node, *(one.reason for one in row.quarantined)), (), row.on_hand)
        for one in row.quarantined:
            _check_row(number, (), (), one.quantity)
    for number, order_row in enumerate(order_rows):
        ids = (order_row.sku, *filter(None, (order_row.node, order_row.order_source, order_row.line)))
        _check_row(number, ids, (order_row.order_ref,), order_row.open_quantity)
    kept = pb.ReadSnapshotResponse(chunk_number=request.chunk_number, rows=rows, order_rows=order_rows)
    return kept.SerializeToString(deterministic=True)


def _check_row(number: int, ids: tuple[str, ...], references: tuple[str, ...], units: int) -> None:
    if abs(units) > BALANCE_ABS_MAX:
        raise invalid(
            f"row {number}: {units} units are more than a balance may be", field="rows", row=str(number)
        )
    for value in ids:
        if (problem := text_problem(value, "text")) is not None:
            raise invalid(f"row {number}: {problem}", field="rows", row=str(number))
    for value in references:
        if (problem := text_problem(value, "order_ref", bytes_max=REFERENCE_BYTES_MAX)) is not None:
            raise invalid(f"row {number}: {problem}", field="rows", row=str(number))
