"""Snapshots' rules that several parts share: whose deltas corrections are, and what a delta does to a position."""

from __future__ import annotations

from hashlib import blake2b

CORRECTION_SOURCE = "reconcile"
"""Source of corrections. They say what the ledger should have had, so they count as known at every point."""

RECEIPT, ADJUSTMENT, SET_ON_HAND, SHIPMENT, QUARANTINE, QUARANTINE_RELEASE, WRITE_OFF = 1, 2, 3, 4, 5, 6, 7
RETURN_RECEIVED, TRANSFER_OUT, TRANSFER_IN = 8, 10, 11
ORDER_PLACED, ORDER_CHANGED, ORDER_ALLOCATED, ORDER_CANCELLED, LINK_ORDER = 12, 13, 14, 15, 16
"""Types of deltas, as in availability.v1."""

STATE_QUARANTINED = 2
RETURN_REASON = "return"

_ADDS = frozenset({RECEIPT, ADJUSTMENT, RETURN_RECEIVED, TRANSFER_IN})
_TAKES = frozenset({SHIPMENT, WRITE_OFF, TRANSFER_OUT})


def stock_change(kind: int, quantity: int, state: int, reason: str) -> tuple[int, str, int]:
    """Return what a delta does to its position: units of on_hand, then reason and units of quarantine.

    The table of CONTRACT section 3. A SET_ON_HAND is 0 here: what it changes is known to the ledger only.
    """
    on_hand = quantity if kind in _ADDS else -quantity if kind in _TAKES else 0
    if kind == RECEIPT:
        return on_hand, reason, quantity if reason else 0
    if kind == ADJUSTMENT:
        return on_hand, reason, quantity if state == STATE_QUARANTINED else 0
    if kind == RETURN_RECEIVED:
        return on_hand, RETURN_REASON, quantity
    if kind == QUARANTINE:
        return on_hand, reason, quantity
    if kind in (QUARANTINE_RELEASE, WRITE_OFF):
        return on_hand, reason, -quantity
    return on_hand, "", 0


def correction_id(run_id: str, *place: str) -> str:
    """Return the event_id of a run's correction of one place (sku, node, reason, or order, line, sku …).

    Correcting the same place again in the same run is a DUPLICATE, whoever does it and however often. Ids stay within
    128 bytes for run ids of up to 90.
    """
    digest = blake2b(digest_size=16)
    for part in place:
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return f"{run_id}:{digest.hexdigest()}"
