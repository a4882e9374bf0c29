"""Snapshots and audits as the ledger keeps and tells them: what goes into its functions and what comes back.

A snapshot's marks and rows are kept in Redis (functions/12_snapshots.lua); what the ledger had at its point is worked
out from these reads and the log by `availability.history.as_of`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from availability.domain.version import Version
from availability.ledger.calls import RequestKey
from availability.ledger.commit_queue import Pending
from availability.ledger.ledger import Ledger, fingerprint
from availability.ledger.reader import Head

FIGURES = 4
OPEN, ENDED, CLOSED = 1, 2, 3
"""States of a snapshot, as in availability.v1."""


class SnapshotRow(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot as kept. ``as_of`` is (source, stream, sequence); times are milliseconds since 1970 UTC.

    ``end_epoch`` 0: not ended yet.
    """

    snapshot_id: str
    source: str
    nodes: list[str]
    content: int
    basis: int
    absent: int
    state: int
    as_of: list[tuple[str, str, int]]
    begin_epoch: int
    begin_seq: int
    begin_ms: int
    end_epoch: int
    end_seq: int
    end_ms: int
    rows: int
    chunks: int
    author: str
    changed_clock_ms: int

    @property
    def begin(self) -> Version:
        """Version of the first mark."""
        return Version(self.begin_epoch, self.begin_seq)

    @property
    def end(self) -> Version | None:
        """Version of the second mark, None while open."""
        return Version(self.end_epoch, self.end_seq) if self.end_epoch else None


class SnapshotBegin(msgspec.Struct, array_like=True, frozen=True):
    request: RequestKey
    snapshot_id: str
    source: str
    nodes: list[str]
    content: int
    basis: int
    absent: int


class SnapshotChunk(msgspec.Struct, array_like=True, frozen=True):
    snapshot_id: str
    number: int
    fingerprint: str
    rows: int
    chunk: msgspec.Raw
    rows_max: int


class SnapshotEnd(msgspec.Struct, array_like=True, frozen=True):
    """``rows`` -1: however many came."""

    request: RequestKey
    snapshot_id: str
    as_of: list[tuple[str, str, int]]
    rows: int


class SnapshotClose(msgspec.Struct, array_like=True, frozen=True):
    request: RequestKey
    snapshot_id: str


class SnapshotReply(msgspec.Struct, array_like=True, frozen=True):
    """``status``: OK, or the reason of a refusal."""

    status: str
    version: str
    replayed: bool
    row: SnapshotRow | bool


class StockExtra(msgspec.Struct, array_like=True, frozen=True):
    """What few positions have: reasons of quarantine, and what sources have confirmed. An empty table is a list."""

    place: int
    reasons: dict[str, int] | list[object]
    confirmed: dict[str, int] | list[object]


class StockRest(msgspec.Struct, array_like=True, frozen=True):
    """A page but for its figures; ``next_index`` is -1 after the last. ``nodes`` are those of each sku."""

    head: Head
    next_index: int
    sku_count: int
    skus: list[str]
    nodes: list[list[str]]
    extras: list[StockExtra]


@dataclass(frozen=True, slots=True)
class StockPage:
    """Skus of one moment. ``figures``: a row for each position, in the order of skus and their nodes, int64:

    on_hand, quarantined, reserved, committed.
    """

    rest: StockRest
    figures: NDArray[np.int64]


class OpenLine(msgspec.Struct, array_like=True, frozen=True):
    """An order line that wants units still. ``ordered`` -1: only allocations are known.

    ``nodes`` are (node, units open there, those of them that a source has confirmed).
    """

    line: str
    ordered: int
    shipped: int
    open: int
    nodes: list[tuple[str, int, int]]


class OpenOrder(msgspec.Struct, array_like=True, frozen=True):
    """An order with open lines by sku; ``links`` are its other names as (source, ref)."""

    order_source: str
    order_ref: str
    links: list[tuple[str, str]]
    channel: str
    last_fact_ms: int
    skus: list[tuple[str, list[OpenLine]]]


class OpenOrdersPage(msgspec.Struct, array_like=True, frozen=True):
    """``last``: where the next page begins (False: nowhere)."""

    head: Head
    clock_ms: int
    last: tuple[int, str] | bool
    orders: list[OpenOrder]


class Finding(msgspec.Struct, array_like=True, frozen=True):
    """Something that does not add up or was forgotten; ``kind`` is a number of availability.v1 AuditKind.

    ``name`` is a reservation's id, an order's packed name, or a source.
    """

    kind: int
    sku: str
    node: str
    name: str
    quantity: int
    expected: int
    age_ms: int


class SumsPage(msgspec.Struct, array_like=True, frozen=True):
    """What does not add up among some skus of one moment; ``next_index`` is -1 after the last."""

    head: Head
    next_index: int
    findings: list[Finding]


class ForgottenPage(msgspec.Struct, array_like=True, frozen=True):
    """What was forgotten; ``more``: ask again with the next offset."""

    head: Head
    more: bool
    findings: list[Finding]


class SnapshotLedger:
    """The ledger's calls about snapshots and audits. Errors: LedgerError."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    # Writes -------------------------------------------------------------------------------------------------

    def begin(self, call: SnapshotBegin, deadline: float) -> SnapshotReply:
        """Note the first mark. Refusals: UNKNOWN_NODE, TOO_MANY_SNAPSHOTS, or of the request id."""
        return _REPLY.decode(self._ledger.submit("snapshot_begin", call, deadline).wait())

    def end(self, call: SnapshotEnd, deadline: float) -> SnapshotReply:
        """Note the second mark. Refusals: SNAPSHOT_NOT_FOUND, SNAPSHOT_NOT_OPEN, SNAPSHOT_INCOMPLETE, …"""
        return _REPLY.decode(self._ledger.submit("snapshot_end", call, deadline).wait())

    def close(self, call: SnapshotClose, deadline: float) -> SnapshotReply:
        """Let it go. Refusals: SNAPSHOT_NOT_FOUND, or of the request id."""
        return _REPLY.decode(self._ledger.submit("snapshot_close", call, deadline).wait())

    def submit_chunk(
        self, snapshot_id: str, number: int, content: bytes, rows: int, rows_max: int, deadline: float
    ) -> Pending:
        """Queue a chunk; decode the reply with ``decode``. A number that was kept is not kept again."""
        packed = zlib.compress(content, 1)
        # Lua's msgpack reads text of any bytes, and no binary.
        text = msgspec.Raw(b"\xdb" + len(packed).to_bytes(4, "big") + packed)
        call = SnapshotChunk(snapshot_id, number, fingerprint(content), rows, text, rows_max)
        return self._ledger.submit("snapshot_chunk", call, deadline)

    @staticmethod
    def decode(reply: bytes) -> SnapshotReply:
        """Reply of a call about a snapshot."""
        return _REPLY.decode(reply)

    # Reads --------------------------------------------------------------------------------------------------

    def rows(self, source: str) -> list[SnapshotRow]:
        """Snapshots that are not forgotten, of one source or ('') of all, the latest last."""
        rows = _ROWS.decode(self._ledger.ask("snapshots", source))
        return sorted(rows, key=lambda row: (row.begin_ms, row.snapshot_id))

    def row(self, snapshot_id: str) -> SnapshotRow | None:
        """One snapshot, or None."""
        (row,) = _ROW.decode(self._ledger.ask("snapshot", snapshot_id))
        return row if isinstance(row, SnapshotRow) else None

    def chunk(self, snapshot_id: str, number: int) -> bytes | None:
        """A chunk's content, or None."""
        kept = self._ledger.ask("chunk", snapshot_id, number)
        return zlib.decompress(kept) if kept else None

    def marks(self, streams: list[tuple[str, str]]) -> tuple[Head, list[tuple[int, int]]]:
        """How far streams (source, stream) have come (-1: there is no such stream), and when they were last heard."""
        return _MARKS.decode(self._ledger.ask("marks", _encode(streams)))

    def stock(self, index: int, count: int, *, confirmed: bool) -> StockPage:
        """Positions of skus number index .. index+count-1; ``confirmed`` costs a look at their orders."""
        raw = self._ledger.ask("stock", index, count, "1" if confirmed else "0")
        length = 4 + int.from_bytes(raw[:4], "little")
        figures = np.frombuffer(raw, "<i8", offset=length).reshape(-1, FIGURES)
        return StockPage(_STOCK.decode(raw[4:length]), figures)

    def open_orders(self, after: tuple[int, str] | None, count: int, since_ms: int = 0) -> OpenOrdersPage:
        """Orders with open lines among the next ``count``; with a fact since a clock (0: never) all their lines."""
        score, name = after or (0, "")
        return _ORDERS.decode(self._ledger.ask("open_orders", _encode([score, name, count, since_ms])))

    def sums(self, index: int, count: int) -> SumsPage:
        """What does not add up among skus number index .. index+count-1."""
        return _SUMS.decode(self._ledger.ask("sums", index, count))

    def forgotten(
        self,
        offset: int,
        count: int,
        *,
        overdue_ms: int,
        unconfirmed_ms: int,
        stuck_ms: int,
        silent_ms: int,
    ) -> ForgottenPage:
        """Holds, orders and sources (with the first page) that were forgotten for so long."""
        query = [offset, count, overdue_ms, unconfirmed_ms, stuck_ms, silent_ms]
        return _FORGOTTEN.decode(self._ledger.ask("forgotten", _encode(query)))


_encode = msgspec.msgpack.Encoder().encode
_REPLY = msgspec.msgpack.Decoder(SnapshotReply)
_ROWS = msgspec.msgpack.Decoder(list[SnapshotRow])
_ROW = msgspec.msgpack.Decoder(tuple[SnapshotRow | bool])
_MARKS = msgspec.msgpack.Decoder(tuple[Head, list[tuple[int, int]]])
_STOCK = msgspec.msgpack.Decoder(StockRest)
_ORDERS = msgspec.msgpack.Decoder(OpenOrdersPage)
_SUMS = msgspec.msgpack.Decoder(SumsPage)
_FORGOTTEN = msgspec.msgpack.Decoder(ForgottenPage)
