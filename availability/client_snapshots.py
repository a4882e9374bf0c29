"""What a client asks about snapshots and audits; `client.Client` joins it, and nobody else uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import grpc
from google.protobuf.message import Message

from availability.client_errors import ClientError
from availability.v1 import stock_pb2 as stk
from availability.v1 import stock_pb2_grpc as stk_grpc

AUDIT_PAGE_S = 30.0
SNAPSHOT_S = 3600.0
"""Longest time to send or to read a snapshot."""
CHUNK_ROWS = 2_000


class SnapshotCalls(ABC):
    """The calls; what they need of the client is named first."""

    stock: stk_grpc.StockServiceStub
    call: Any  # Any: `Client.call`, generic in the messages of each stub's method
    _metadata: tuple[tuple[str, str], ...]

    @abstractmethod
    def read_error(self, error: grpc.RpcError) -> tuple[ClientError, float | None]:
        """See `Client.read_error`."""

    def begin_snapshot(
        self,
        source: str,
        nodes: Sequence[str] = (),
        *,
        content: stk.SnapshotContent.ValueType = stk.SNAPSHOT_CONTENT_POSITIONS,
        basis: stk.SnapshotBasis.ValueType = stk.SNAPSHOT_BASIS_PHYSICAL,
        absent: stk.AbsentRows.ValueType = stk.ABSENT_ROWS_IGNORE,
        request_id: str = "",
    ) -> stk.Snapshot:
        """Note the first mark, before the source reads its stock; no ``nodes``: every one."""
        request = stk.BeginSnapshotRequest(
            request_id=request_id, source=source, nodes=nodes, content=content, basis=basis, absent=absent
        )
        return self._snapshot(self.stock.BeginSnapshot, request)

    def stream_snapshot(
        self,
        snapshot_id: str,
        rows: Iterable[stk.SnapshotRow | stk.OpenOrderRow],
        *,
        kept: Callable[[stk.StreamSnapshotResponse], None] | None = None,
        timeout_s: float = SNAPSHOT_S,
    ) -> int:
        """Send a begun snapshot's rows in chunks and return how many are kept; ``kept`` is told of each ack.

        To go on after a failure send all rows again, in the same order: chunks that are kept are not kept twice.
        Raises ClientError, and whatever reading ``rows`` raises.
        """
        count = 0
        failed: list[Exception] = []
        try:
            for ack in self.stock.StreamSnapshot(
                _chunks(snapshot_id, rows, failed), timeout=timeout_s, metadata=self._metadata
            ):
                count = ack.row_count
                if kept is not None:
                    kept(ack)
        except grpc.RpcError as error:
            if not failed:
                raise self.read_error(error)[0] from None
        if failed:
            raise failed[0]
        return count

    def end_snapshot(
        self,
        snapshot_id: str,
        as_of: Sequence[stk.SequenceMark] = (),
        *,
        row_count: int | None = None,
        request_id: str = "",
    ) -> stk.Snapshot:
        """Note the second mark; ``as_of`` are the last numbers that the snapshot contains, where its source counts."""
        request = stk.EndSnapshotRequest(
            request_id=request_id, snapshot_id=snapshot_id, as_of=as_of, row_count=row_count
        )
        return self._snapshot(self.stock.EndSnapshot, request)

    def close_snapshot(self, snapshot_id: str, *, request_id: str = "") -> stk.Snapshot:
        """Let a snapshot's rows and the log go."""
        request = stk.CloseSnapshotRequest(request_id=request_id, snapshot_id=snapshot_id)
        return self._snapshot(self.stock.CloseSnapshot, request)

    def list_snapshots(self, source: str = "") -> list[stk.Snapshot]:
        """Return the snapshots that are not forgotten, the latest last."""
        answer = self.call(self.stock.ListSnapshots, stk.ListSnapshotsRequest(source=source))
        return list(answer.snapshots)

    def read_snapshot(
        self, snapshot_id: str, *, first_chunk: int = 1, timeout_s: float = SNAPSHOT_S
    ) -> Iterator[stk.ReadSnapshotResponse]:
        """Yield a snapshot's rows as they were sent, by chunk. Raises ClientError."""
        request = stk.ReadSnapshotRequest(snapshot_id=snapshot_id, first_chunk=first_chunk)
        return self._pages(self.stock.ReadSnapshot, request, timeout_s)

    def read_positions(
        self, request: stk.ReadPositionsRequest, *, timeout_s: float = SNAPSHOT_S
    ) -> Iterator[stk.ReadPositionsResponse]:
        """Yield the ledger's positions as of a snapshot's point, in columns. Raises ClientError."""
        return self._pages(self.stock.ReadPositions, request, timeout_s)

    def read_order_lines(
        self, request: stk.ReadOrderLinesRequest, *, timeout_s: float = SNAPSHOT_S
    ) -> Iterator[stk.ReadOrderLinesResponse]:
        """Yield the ledger's open order lines as of a snapshot's point. Raises ClientError."""
        return self._pages(self.stock.ReadOrderLines, request, timeout_s)

    def _snapshot(self, method: Any, request: Message) -> stk.Snapshot:  # Any: a stub's method
        found: stk.Snapshot = self.call(method, request).snapshot
        return found

    def _pages(
        self,
        method: Any,  # Any: a stub's method that yields messages
        request: Message,
        timeout_s: float,
    ) -> Iterator[Any]:
        call = method(request, timeout=timeout_s, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self.read_error(error)[0] from None
        finally:
            call.cancel()

    def audit_ledger(self, request: stk.AuditLedgerRequest) -> Iterator[stk.AuditFinding]:
        """Yield what does not add up and what was forgotten, page by page; ``request`` names from when on."""
        page = stk.AuditLedgerRequest()
        page.CopyFrom(request)
        while True:
            answer = self.call(self.stock.AuditLedger, page, timeout_s=AUDIT_PAGE_S)
            yield from answer.findings
            page.page_token = answer.next_page_token
            if not page.page_token:
                return


def _chunks(
    snapshot_id: str, rows: Iterable[stk.SnapshotRow | stk.OpenOrderRow], failed: list[Exception]
) -> Iterator[stk.StreamSnapshotRequest]:
    """Cut rows into chunks. gRPC reads them in a thread of its own, so a failure to read them is handed over."""
    left, number = iter(rows), 0
    try:
        while some := list(islice(left, CHUNK_ROWS)):
            number += 1
            yield stk.StreamSnapshotRequest(
                snapshot_id=snapshot_id,
                chunk_number=number,
                rows=[row for row in some if isinstance(row, stk.SnapshotRow)],
                order_rows=[row for row in some if isinstance(row, stk.OpenOrderRow)],
            )
    except Exception as error:
        failed.append(error)
