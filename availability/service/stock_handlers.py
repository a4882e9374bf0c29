"""Stock facts: deltas in batches and streams, orders, and the streams that sources send them by."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

from availability.domain.errors import Reason, ServiceError, invalid
from availability.ledger import calls
from availability.ledger.ledger import Ledger
from availability.ledger.snapshots import SnapshotLedger
from availability.service.audit_handlers import AuditHandlers
from availability.service.context import CallContext
from availability.service.delta_calls import DeltaSender, SentBatch
from availability.service.ledger_calls import call, refuse
from availability.service.requests import check_id, check_reason, check_reference, request_key
from availability.service.snapshot_handlers import SnapshotHandlers
from availability.service.snapshot_reads import SnapshotReader
from availability.v1 import common_pb2
from availability.v1 import stock_pb2 as pb

STREAM_BATCH_TIMEOUT_S = 30.0
"""How long a batch of a stream may wait for the ledger before its stream ends with an error."""
_QUEUE_POLL_S = 0.5


_Read = tuple[int, SentBatch] | BaseException | None
"""What the reading thread of a stream hands on: a batch under way, what ended the stream, or its end."""


class StockHandlers(SnapshotHandlers, SnapshotReader, AuditHandlers):
    """StockService; its snapshots and audits are the classes that it joins. ``new_id`` draws ids of snapshots."""

    def __init__(
        self,
        ledger: Ledger,
        sender: DeltaSender,
        *,
        new_id: Callable[[], str],
        durability: common_pb2.Durability.ValueType,
        unacked_batches_max: int,
    ) -> None:
        store = SnapshotLedger(ledger)
        SnapshotHandlers.__init__(self, store, new_id=new_id, durability=durability)
        SnapshotReader.__init__(self, ledger, store)
        AuditHandlers.__init__(self, store)
        self._ledger = ledger
        self._sender = sender
        self._unacked_max = unacked_batches_max

    def apply_deltas(self, request: pb.ApplyDeltasRequest, ctx: CallContext) -> pb.ApplyDeltasResponse:
        """Apply a batch."""
        sent = self._sender.send(request.source, request.deltas, lambda: ctx.deadline, ctx.principal.bounds)
        answer = call(ctx, sent.answer)
        return pb.ApplyDeltasResponse(
            results=answer.results,  # type: ignore[arg-type]  # plain ints, as protobuf takes them
            details=answer.details,
            calls=answer.calls,
            accepted_count=answer.accepted_count,
            version=answer.version,
            durability=self._durability,
        )

    def stream_deltas(
        self, requests: Iterator[pb.StreamDeltasRequest], ctx: CallContext
    ) -> Iterator[pb.StreamDeltasResponse]:
        """Apply batches in order, acknowledging each; at most unacked_batches_max are read ahead of their acks.

        One thread reads and submits, this one waits and acknowledges: the next batch is packed while the ledger works.
        """
        window: queue.Queue[_Read] = queue.Queue(self._unacked_max)
        ended = threading.Event()

        def read() -> None:
            last: BaseException | None = None
            try:
                for request in requests:
                    sent = self._sender.send(
                        request.source,
                        request.deltas,
                        lambda: time.monotonic() + STREAM_BATCH_TIMEOUT_S,
                        ctx.principal.bounds,
                    )
                    if not _put(window, (request.batch_number, sent), ended) or ctx.cancelled():
                        break
            except BaseException as error:
                last = error
            _put(window, last, ended)

        reader = threading.Thread(target=read, name="delta-stream", daemon=True)
        reader.start()
        try:
            while True:
                try:
                    item = window.get(timeout=_QUEUE_POLL_S)
                except queue.Empty:
                    if ctx.cancelled():  # all that was read is acknowledged
                        raise ServiceError(
                            Reason.LEDGER_NOT_READY, "the server is leaving; resume by ListStreams"
                        ) from None
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield self._ack(*item)
        finally:
            ended.set()

    def _ack(self, batch_number: int, sent: SentBatch) -> pb.StreamDeltasResponse:
        answer = sent.answer()
        return pb.StreamDeltasResponse(
            batch_number=batch_number,
            results=answer.results,  # type: ignore[arg-type]  # plain ints, as protobuf takes them
            details=answer.details,
            calls=answer.calls,
            accepted_count=answer.accepted_count,
            version=answer.version,
            durability=self._durability,
        )

    def get_order(self, request: pb.GetOrderRequest, ctx: CallContext) -> pb.GetOrderResponse:
        """Return an order's facts and what they commit."""
        check_id(request.order_source, "order_source")
        check_reference(request.order_ref, "order_ref", required=True)
        head, meta, skus, kits, links = call(
            ctx, lambda: self._ledger.order(request.order_source, request.order_ref)
        )
        if meta is None:
            raise refuse_order(request.order_source, request.order_ref)
        cancel_key = None if isinstance(meta.cancel_key, bool) else meta.cancel_key
        holds: dict[str, None] = {}
        lines: list[pb.OrderLineFacts] = []
        for sku, facts in sorted(skus, key=lambda row: row[0].encode()):
            holds.update(dict.fromkeys(facts.holds if isinstance(facts.holds, dict) else ()))
            lines += _order_lines(sku, facts, cancel_key)
        return pb.GetOrderResponse(
            order_source=request.order_source,
            order_ref=request.order_ref,
            cancelled=cancel_key is not None and not any(line.ordered for line in lines),
            lines=lines,
            links=[pb.OrderName(order_source=source, order_ref=ref) for source, ref in links],
            holds=list(holds),
            version=str(head.version),
            kits=[
                pb.OrderKit(kit_sku=kit, quantity=made.quantity, components=_components(made.flat))
                for kit, recipes in sorted(kits, key=lambda row: row[0].encode())
                for made in recipes
            ],
        )

    def list_streams(self, request: pb.ListStreamsRequest, ctx: CallContext) -> pb.ListStreamsResponse:
        """Tell a source where to resume."""
        check_id(request.source, "source")
        clock_ms, rows = call(ctx, lambda: self._ledger.streams(request.source))
        rows = sorted((row for row in rows if row[0]), key=lambda row: row[0].encode())
        return pb.ListStreamsResponse(streams=[_status(name, row, clock_ms) for name, row in rows])

    def skip_gap(self, request: pb.SkipGapRequest, ctx: CallContext) -> pb.SkipGapResponse:
        """Give up the missing numbers of a stream."""
        if not 1 <= request.next_sequence < 2**53:
            raise invalid("next_sequence must be 1 to 2^53 - 1", field="next_sequence")
        reply = self._change_stream(request, ctx, "SKIP_GAP", request.next_sequence)
        return pb.SkipGapResponse(
            stream=_changed(request.stream, reply),
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
        )

    def reset_stream(self, request: pb.ResetStreamRequest, ctx: CallContext) -> pb.ResetStreamResponse:
        """Forget a stream's mark."""
        reply = self._change_stream(request, ctx, "RESET", 0)
        return pb.ResetStreamResponse(
            stream=_changed(request.stream, reply),
            version=reply.version,
            replayed=reply.replayed,
            durability=self._durability,
        )

    def _change_stream(
        self,
        request: pb.SkipGapRequest | pb.ResetStreamRequest,
        ctx: CallContext,
        action: str,
        next_sequence: int,
    ) -> calls.StreamReply:
        check_id(request.source, "source")
        check_id(request.stream, "stream")
        check_reason(request.reason)
        command = calls.StreamChange(
            request_key(request.request_id, request, ctx),
            request.source,
            request.stream,
            action,
            next_sequence,
            request.reason,
        )
        reply = call(ctx, lambda: self._ledger.change_stream(command, ctx.deadline))
        if reply.status != "OK":
            raise refuse(reply.status, source=request.source, stream=request.stream)
        return reply


def refuse_order(source: str, ref: str) -> ServiceError:
    """The error of an order that the ledger does not know."""
    return ServiceError(Reason.ORDER_NOT_FOUND, "no such order", order_source=source, order_ref=ref)


def _put(window: queue.Queue[_Read], item: _Read, ended: threading.Event) -> bool:
    """Hand on; False where nobody takes any more."""
    while not ended.is_set():
        try:
            window.put(item, timeout=_QUEUE_POLL_S)
            return True
        except queue.Full:
            continue
    return False


def _table(value: dict[str, int] | list[object]) -> dict[str, int]:
    return value if isinstance(value, dict) else {}


def _components(flat: list[tuple[str, int]]) -> list[pb.OrderKitComponent]:
    return [pb.OrderKitComponent(sku=sku, units=units) for sku, units in flat]


def _order_lines(
    sku: str, facts: calls.OrderSkuState, cancel_key: list[object] | None
) -> list[pb.OrderLineFacts]:
    own = facts.cancel_key
    if isinstance(own, list) and (cancel_key is None or _later(own, cancel_key)):
        cancel_key = own
    committed = dict(_table(facts.committed))
    lines = []
    for number, line in enumerate(sorted(facts.lines, key=lambda one: one.line.encode())):
        sourced, shipped = _table(line.sourced), _table(line.shipped)
        allocated = (
            {node: word[0] for node, word in line.allocated.items()}
            if isinstance(line.allocated, dict)
            else {}
        )
        counted = committed if number == 0 else {}
        nodes = sorted({*sourced, *shipped, *allocated, *counted}, key=str.encode)
        lines.append(
            pb.OrderLineFacts(
                line=line.line,
                sku=sku,
                ordered=_ordered(line, cancel_key),
                nodes=[
                    pb.OrderNodeFacts(
                        node=node,
                        sourced=sourced.get(node, 0),
                        allocated=allocated.get(node),
                        shipped=shipped.get(node, 0),
                        committed=counted.get(node, 0),
                    )
                    for node in nodes
                ],
            )
        )
    return lines


def _ordered(line: calls.OrderLineState, cancel_key: list[object] | None) -> int | None:
    """The quantity in force: the source's word, unless the order was cancelled after it; else our own commits."""
    if isinstance(line.word_key, list) and (cancel_key is None or _later(line.word_key, cancel_key)):
        return line.word
    if cancel_key is not None:
        return 0
    return line.own or None


def _later(a: list[object], b: list[object]) -> bool:
    """Key order of functions/08_orders_facts.lua: time, source, stream, then sequence before event id."""

    def order(key: list[object]) -> tuple[int, bytes, bytes, bool, int, bytes]:
        occurred, source, stream, sequence, event_id = key
        assert isinstance(occurred, int)
        assert isinstance(sequence, int)
        return (
            occurred,
            str(source).encode(),
            str(stream).encode(),
            sequence == 0,
            sequence,
            str(event_id).encode(),
        )

    return order(a) > order(b)


def _status(name: str, row: calls.StreamRow, clock_ms: int) -> pb.StreamStatus:
    state = pb.STREAM_STATE_OPEN
    if row.parked_sequence:
        state = pb.STREAM_STATE_PARKED
    elif row.was_reset:
        state = pb.STREAM_STATE_RESET
    return pb.StreamStatus(
        stream=name,
        last_sequence=row.mark,
        age_ms=max(0, clock_ms - row.seen_ms),
        state=state,
        parked_sequence=row.parked_sequence,
    )


def _changed(name: str, reply: calls.StreamReply) -> pb.StreamStatus:
    assert isinstance(reply.row, calls.StreamRow)
    return _status(name, reply.row, reply.clock_ms)
