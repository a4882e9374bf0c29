"""Calling the ledger from a handler: wait politely, and say in the contract's reasons what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from availability.domain.errors import Reason, ServiceError
from availability.ledger.commit_queue import DeadlinePassed, DurabilityUnconfirmed, NoLedger
from availability.ledger.errors import (
    LedgerError,
    LedgerFunctionFailed,
    LedgerOutOfMemory,
    LedgerRefused,
    LedgerUnreachable,
)
from availability.service.context import CallContext
from availability.v1 import common_pb2

_LOG = structlog.get_logger(__name__)
_T = TypeVar("_T")

_REASONS: tuple[tuple[type[LedgerError], Reason], ...] = (
    (DeadlinePassed, Reason.DEADLINE_EXCEEDED),
    (DurabilityUnconfirmed, Reason.DURABILITY_UNCONFIRMED),
    (NoLedger, Reason.LEDGER_NOT_READY),
    (LedgerOutOfMemory, Reason.LEDGER_OUT_OF_MEMORY),
    (LedgerUnreachable, Reason.LEDGER_UNREACHABLE),
    (LedgerFunctionFailed, Reason.INTERNAL),
    (LedgerRefused, Reason.LEDGER_UNREACHABLE),
)

DURABILITIES: dict[str, common_pb2.Durability.ValueType] = {
    "demo": common_pb2.DURABILITY_DEMO,
    "single-strict": common_pb2.DURABILITY_SINGLE_STRICT,
    "ha": common_pb2.DURABILITY_HA,
    "ha-confirmed": common_pb2.DURABILITY_HA_CONFIRMED,
}


@contextmanager
def ledger_failures() -> Iterator[None]:
    """Turn LedgerError into ServiceError."""
    try:
        yield
    except LedgerError as error:
        raise service_error(error) from error


def service_error(error: LedgerError) -> ServiceError:
    """The contract's word for a failure of the ledger. Bugs and refusals are logged in full, told in brief."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            if kind in (LedgerFunctionFailed, LedgerRefused):
                _LOG.error("ledger call failed", error=str(error))
                text = (
                    "the ledger failed; nothing was done"
                    if kind is LedgerFunctionFailed
                    else "the ledger refused"
                )
                return ServiceError(reason, text)
            return ServiceError(reason, str(error))
    return ServiceError(Reason.INTERNAL, "the ledger failed")


def call(ctx: CallContext, work: Callable[[], _T]) -> _T:
    """Run a ledger call that waits, with this call's thread slot lent to others meanwhile."""
    with ctx.blocking(), ledger_failures():
        return work()


_REFUSALS: dict[str, tuple[Reason, str]] = {
    "REQUEST_ID_REUSED": (Reason.REQUEST_ID_REUSED, "this request_id was used for other content"),
    "REQUEST_ID_TOO_OLD": (Reason.REQUEST_ID_TOO_OLD, "this request_id is older than ids are remembered"),
    "UNKNOWN_CHANNEL": (Reason.UNKNOWN_CHANNEL, "no such channel"),
    "UNKNOWN_NODE": (Reason.UNKNOWN_NODE, "no such node here"),
    "UNTIL_IN_PAST": (Reason.UNTIL_IN_PAST, "until is past already"),
    "NOT_READY": (Reason.LEDGER_NOT_READY, "there is no ledger yet"),
    "ETAG_MISMATCH": (Reason.ETAG_MISMATCH, "somebody else changed this since the etag was read"),
    "TOO_MANY_NODES": (Reason.INVALID_REQUEST, "as many nodes as there may be are declared already"),
    "KIT_SKU": (Reason.KIT_SKU, "this is a kit: it has no positions, name its parts"),
    "FENCE_OVER_POOL": (
        Reason.FENCE_OVER_POOL,
        "more units than the pool of the channel's nodes has now",
    ),
    "TOO_MANY_FENCES": (Reason.INVALID_REQUEST, "as many channels as may fence a sku do so already"),
    "TOO_MANY_FEEDS": (Reason.INVALID_REQUEST, "as many feeds as there may be are watched already"),
    "RESERVATION_NOT_FOUND": (
        Reason.RESERVATION_NOT_FOUND,
        "no such reservation, or it ended more than 24 h ago",
    ),
    "RESERVATION_NOT_ACTIVE": (Reason.RESERVATION_NOT_ACTIVE, "the reservation has ended"),
    "RESERVATION_EXPIRED": (Reason.RESERVATION_EXPIRED, "the reservation has expired"),
    "EXCEPTION_NOT_FOUND": (
        Reason.EXCEPTION_NOT_FOUND,
        "no such exception, or it was resolved too long ago to be known",
    ),
    "EXCEPTION_RESOLVED": (Reason.EXCEPTION_RESOLVED, "its cause is gone: there is nothing to take in hand"),
    "STREAM_NOT_FOUND": (Reason.STREAM_NOT_FOUND, "no such stream"),
    "SNAPSHOT_NOT_FOUND": (
        Reason.SNAPSHOT_NOT_FOUND,
        "no such snapshot, or it was forgotten a day after its last change",
    ),
    "SNAPSHOT_NOT_OPEN": (Reason.SNAPSHOT_NOT_OPEN, "the snapshot has ended already"),
    "SNAPSHOT_INCOMPLETE": (Reason.SNAPSHOT_INCOMPLETE, "not as many rows came as were announced"),
    "TOO_MANY_SNAPSHOTS": (Reason.TOO_MANY_SNAPSHOTS, "as many snapshots as may be open are so; close one"),
    "CHUNK_CONFLICT": (Reason.CHUNK_CONFLICT, "this chunk came before with other rows"),
    "CHUNK_GAP": (Reason.CHUNK_GAP, "chunks before this one are missing; go on after the last one kept"),
    "TOO_MANY_ROWS": (Reason.BATCH_TOO_LARGE, "the snapshot has too many rows"),
    "ORDER_REF_REQUIRED": (Reason.INVALID_REQUEST, "order_ref is required: the reservation carries none"),
    "ORDER_CLOSED": (Reason.INVALID_REQUEST, "this order was closed long ago"),
    "LINE_EXCEEDS_HOLD": (Reason.INVALID_REQUEST, "a line names more than the reservation holds"),
    "TOO_MANY_LINES": (Reason.BATCH_TOO_LARGE, "the kits of this request have too many components together"),
    "KIT_CYCLE": (Reason.KIT_CYCLE, "the kit would contain itself"),
    "KIT_TOO_DEEP": (Reason.KIT_TOO_DEEP, "kits in kits, too many of them within each other"),
    "KIT_TOO_LARGE": (
        Reason.KIT_TOO_LARGE,
        "the flattened kit has too many components, or too many units of one",
    ),
    "KIT_IN_TOO_MANY_KITS": (
        Reason.KIT_IN_TOO_MANY_KITS,
        "too many kits contain this one to change it at once",
    ),
    "KIT_HAS_STOCK": (
        Reason.KIT_HAS_STOCK,
        "this sku has positions: a kit may have none, not even empty ones",
    ),
    "SEQUENCE_SETTLED": (Reason.INVALID_REQUEST, "next_sequence must be above the last one settled"),
    "LOG_FULL": (Reason.OVERLOADED, "a required reader of the log is too far behind; new reservations wait"),
}


def refuse(status: str, **facts: str) -> ServiceError:
    """The error of a refusal that the ledger decided."""
    found = _REFUSALS.get(status)
    if found is None:
        return ServiceError(Reason.INTERNAL, f"the ledger answered {status}")
    reason, message = found
    told = {name: value for name, value in facts.items() if value}
    if "pool" in told:
        message = f"{message}: {told['pool']}"
    return ServiceError(reason, message, **told)
