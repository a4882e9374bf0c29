"""What a record was about, in words: kind, who, from which source and number, for which order or reservation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from availability.history.rows import UNREADABLE
from availability.history.tables import journal, unpacked
from availability.ledger.record import (
    Cause,
    CommittedBody,
    DeltasBody,
    EpochBody,
    ExceptionBody,
    ExpiredBody,
    ExtendedBody,
    FeedBody,
    Kind,
    PolicyBody,
    Record,
    ReleasedBody,
    ReservedBody,
    StreamBody,
    decode_body,
)

DELTA_TYPES = (
    "UNSPECIFIED", "RECEIPT", "ADJUSTMENT", "SET_ON_HAND", "SHIPMENT", "QUARANTINE", "QUARANTINE_RELEASE",
    "WRITE_OFF", "RETURN_RECEIVED", "EXPECTED", "TRANSFER_OUT", "TRANSFER_IN", "ORDER_PLACED", "ORDER_CHANGED",
    "ORDER_ALLOCATED", "ORDER_CANCELLED", "LINK_ORDER",
)  # fmt: skip
"""Names of availability.v1 DeltaType, by number; a test compares them."""
_STOCK = {1, 2, 3, 4, 7, 8, 10, 11}
_ORDER = {4, 10, 12, 13, 14, 15, 16}
MOVERS = {
    "on_hand": _STOCK,
    "quarantined": {1, 2, 5, 6, 7, 8},
    "reserved": _ORDER,
    "committed": _ORDER,
}
"""Delta types that can move each figure."""
_RECORD = msgspec.msgpack.Decoder(Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One record as it concerns one position. Empty text and 0 where a thing has none.

    ``event`` is a delta's type or the kind of the record; ``more`` is how many other deltas of the same record
    moved the same figure.
    """

    version: str
    clock_ms: int
    event: str
    author: str = ""
    reason: str = ""
    source: str = ""
    stream: str = ""
    source_sequence: int = 0
    event_id: str = ""
    quantity: int = 0
    order_source: str = ""
    order_ref: str = ""
    line: str = ""
    reservation_id: str = ""
    channel: str = ""
    reference: str = ""
    occurred_us: int = 0
    correlation_id: str = ""
    request_id: str = ""
    more: int = 0


def origins(
    connection: Connection, wanted: Sequence[tuple[int, int, str, str, str]]
) -> dict[tuple[int, str, str, str], Origin]:
    """Read records and say what they were to positions: (day, version, sku, node, figure or empty) in, origin out."""
    if not wanted:
        return {}
    days, versions = {row[0] for row in wanted}, {row[1] for row in wanted}
    rows = connection.execute(
        sa.select(journal).where(journal.c.day.in_(days), journal.c.version.in_(versions))
    ).all()
    records = {row.version: row for row in rows}
    return {
        (version, sku, node, figure): origin_of(records[version], sku, node, figure)
        for _, version, sku, node, figure in wanted
        if version in records
    }


def origin_of(row: sa.Row[Any], sku: str, node: str, figure: str = "") -> Origin:  # Any: a row of the journal
    """Say what a record was to a position, or to one of its figures."""
    version = str(unpacked(row.version))
    if row.kind == UNREADABLE:
        return Origin(version=version, clock_ms=row.clock_ms, event="UNREADABLE")
    record = _RECORD.decode(row.raw)
    try:
        body = decode_body(record)
    except (msgspec.DecodeError, KeyError):
        return Origin(version=version, clock_ms=row.clock_ms, event=f"KIND {row.kind}", author=row.author)
    told: dict[str, Any] = {  # Any: fields of Origin
        "version": version,
        "clock_ms": row.clock_ms,
        "event": Kind(row.kind).name,
        "author": record.author,
        "correlation_id": record.correlation_id,
        "request_id": record.request_id,
    }
    match body:
        case ReservedBody() | CommittedBody():
            told |= {
                "reservation_id": body.reservation_id,
                "channel": body.channel,
                "order_source": body.order_source,
                "order_ref": body.order_ref,
                "quantity": sum(
                    source.quantity
                    for line in body.lines
                    if line.sku == sku
                    for source in line.sources
                    if source.node == node
                ),
            }
        case ExtendedBody() | ReleasedBody() | ExpiredBody():
            told["reservation_id"] = body.reservation_id
        case DeltasBody():
            told |= _of_deltas(body, sku, node, figure)
            told["author"] = told["author"] or record.author
        case PolicyBody():
            told["reason"] = body.reason
        case StreamBody():
            told |= {"source": body.source, "stream": body.stream, "reason": body.reason}
        case FeedBody():
            told |= {"source": body.source, "event": "NODE_FEED_STALE" if body.stale else "NODE_FEED_FRESH"}
        case EpochBody():
            told["reason"] = f"epoch {body.old_epoch} ended at {body.last_seq}"
        case ExceptionBody():
            pass
    return Origin(**told)


def _of_deltas(body: DeltasBody, sku: str, node: str, figure: str) -> dict[str, Any]:  # Any: as above
    causes = causes_of(body, sku, node, figure)
    if not causes:
        return {"source": body.source}
    last = causes[-1]
    return {
        "event": DELTA_TYPES[last.type] if last.type < len(DELTA_TYPES) else f"DELTA {last.type}",
        "source": body.source,
        "stream": last.stream,
        "source_sequence": last.source_sequence,
        "event_id": last.event_id,
        "quantity": last.quantity,
        "author": last.author,
        "reason": last.reason,
        "order_source": last.order_source,
        "order_ref": last.order_ref,
        "line": last.line,
        "reference": last.reference,
        "occurred_us": last.occurred_us,
        "correlation_id": last.correlation_id,
        "more": len(causes) - 1,
    }


def causes_of(body: DeltasBody, sku: str, node: str, figure: str = "") -> list[Cause]:
    """Return the deltas of a record that can have moved a position, or one of its figures; in order.

    A fact of an order may move any node's figures: where none names the position itself, those of the sku count,
    and then those of a whole order.
    """
    movers = MOVERS.get(figure)
    fit = [cause for cause in body.causes if movers is None or cause.type in movers]
    here = [cause for cause in fit if cause.sku == sku and cause.node == node]
    of_orders = [
        cause for cause in fit if cause.type in _ORDER and cause.sku in (sku, "") and cause.node != node
    ]
    if figure in ("on_hand", "quarantined"):
        return here
    return here or of_orders
