"""What does not add up in the ledger or was forgotten there, and how it is freed: for commands and nightly runs.

It talks to a server through the client, and frees by ordinary calls only: a hold is released, an order is cancelled by
the source of corrections; both with author and reason in the log. Sums that do not add up are a bug of ours: they are
told, and never repaired by guessing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from availability.client import Client
from availability.domain.limits import ID_BYTES_MAX
from availability.domain.snapshots import CORRECTION_SOURCE
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk

BROKEN_KINDS = frozenset(
    {
        stk.AUDIT_KIND_RESERVED_MISMATCH,
        stk.AUDIT_KIND_COMMITTED_MISMATCH,
        stk.AUDIT_KIND_QUARANTINED_MISMATCH,
    }
)
"""Sums of the ledger itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLimits:
    """From when on something counts as forgotten; milliseconds, 0: the server's own."""

    unconfirmed_ms: int = 0
    stuck_ms: int = 0
    silent_ms: int = 0
    overdue_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found: ``broken`` sums, and what was ``forgotten``, each once."""

    broken: list[stk.AuditFinding] = field(default_factory=list)
    forgotten: list[stk.AuditFinding] = field(default_factory=list)


def audit(client: Client, limits: AuditLimits = AuditLimits()) -> Audit:
    """Look at the whole ledger. Raises ClientError.

    A sum that does not add up is looked at twice, so that what a failover repaired meanwhile is not told.
    """
    found = _look(client, limits)
    if not found.broken:
        return found
    still = {_place(one) for one in _look(client, limits).broken}
    return Audit(broken=[one for one in found.broken if _place(one) in still], forgotten=found.forgotten)


def _look(client: Client, limits: AuditLimits) -> Audit:
    found = Audit()
    seen: set[tuple[object, ...]] = set()
    request = stk.AuditLedgerRequest(
        unconfirmed_ms=limits.unconfirmed_ms,
        stuck_ms=limits.stuck_ms,
        silent_ms=limits.silent_ms,
        overdue_ms=limits.overdue_ms,
    )
    for one in client.audit_ledger(request):
        order = (one.order_source, one.order_ref) if one.order_ref else None
        key = order or (_place(one), one.reservation_id, one.source)
        if key not in seen:  # an order that nobody has confirmed is not told again as stuck
            seen.add(key)
            (found.broken if one.kind in BROKEN_KINDS else found.forgotten).append(one)
    return found


def _place(one: stk.AuditFinding) -> tuple[int, str, str]:
    return one.kind, one.sku, one.node


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What became of one release: ``units`` that were held or committed, 0 where there was nothing to free any more."""

    what: str
    units: int
    version: str = ""


def release_hold(client: Client, reservation_id: str, reason: str, *, request_id: str = "") -> Freed:
    """Release a hold. Raises ClientError; RESERVATION_NOT_ACTIVE where it has ended already."""
    before = client.get_reservation(reservation_id)
    units = sum(line.quantity for line in before.lines)
    answer = client.release(reservation_id, reason=reason, request_id=request_id)
    return Freed(what=f"reservation {reservation_id}", units=units, version=answer.version)


def release_order(
    client: Client, order_source: str, order_ref: str, reason: str, *, author: str, event_id: str
) -> Freed:
    """Cancel what an order wants still, as a fact of the source of corrections.

    What the order's own source says later counts again. ``event_id`` makes it happen once: make it of the run and the
    order. Raises ClientError, ORDER_NOT_FOUND among them; ReleaseRefused where the ledger rejects it.
    """
    if len(reason.encode()) > ID_BYTES_MAX:
        raise ReleaseRefused(f"the reason of an order's release has at most {ID_BYTES_MAX} bytes")
    known = client.get_order(order_source, order_ref)
    units = sum(node.committed for line in known.lines for node in line.nodes) + _held(client, known)
    name = f"order {order_ref} of {order_source}"
    if not units:
        return Freed(what=name, units=0)
    delta = stk.Delta(
        source=CORRECTION_SOURCE,
        event_id=event_id,
        type=stk.DELTA_TYPE_ORDER_CANCELLED,
        order_source=order_source,
        order_ref=order_ref,
        reason=reason,
        author=author,
    )
    answer = client.apply_deltas(CORRECTION_SOURCE, [delta])
    if answer.results[0] not in (stk.DELTA_RESULT_APPLIED, stk.DELTA_RESULT_DUPLICATE):
        raise ReleaseRefused(f"{name}: {_why(answer.details)}")
    return Freed(what=name, units=units, version=answer.version)


def _held(client: Client, known: stk.GetOrderResponse) -> int:
    """Return the units of an order's holds, which its cancel releases. What is allocated counts as committed."""
    allocated = {line.sku for line in known.lines if any(node.HasField("allocated") for node in line.nodes)}
    holds = [client.get_reservation(reservation_id) for reservation_id in known.holds]
    return sum(
        line.quantity
        for hold in holds
        if hold.state == res.RESERVATION_STATE_ACTIVE
        for line in hold.lines
        if line.sku not in allocated
    )


class ReleaseRefused(Exception):
    """The ledger does not take it; the text says why."""


def _why(details: Iterable[stk.DeltaDetail]) -> str:
    return "; ".join(one.message or one.reason or "a later word of the order is known" for one in details)
