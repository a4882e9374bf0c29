"""The deltas that remove a variance: named by run and position, so that sending them again changes nothing. Pure.

The ledger is never overwritten: what came after the snapshot's point stays on top. Reservations are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping

from availability.domain.limits import QUANTITY_MAX
from availability.domain.snapshots import CORRECTION_SOURCE, correction_id
from availability.v1 import stock_pb2 as pb
from ingest.reconcile.orders import OrderVariance


def of_position(
    run_id: str, kind: str, sku: str, node: str, reason: str, variance: int, cause: str
) -> pb.ApplyDeltasRequest | None:
    """Return what brings a position to what its source has; None: too much for one delta."""
    if abs(variance) > QUANTITY_MAX:
        return None
    delta = pb.Delta(
        source=CORRECTION_SOURCE,
        event_id=correction_id(run_id, kind, sku, node, reason),
        sku=sku,
        node=node,
        reference=f"{run_id} {cause}",
        correlation_id=run_id,
    )
    if kind == "ON_HAND":
        delta.type, delta.quantity, delta.reason = pb.DELTA_TYPE_ADJUSTMENT, -variance, cause
    elif variance > 0:
        delta.type, delta.quantity, delta.reason = pb.DELTA_TYPE_QUARANTINE_RELEASE, variance, reason
    else:
        delta.type, delta.quantity, delta.reason = pb.DELTA_TYPE_QUARANTINE, -variance, reason
    return pb.ApplyDeltasRequest(source=CORRECTION_SOURCE, deltas=[delta])


def of_order(
    run_id: str, one: OrderVariance, shipped_at: Mapping[str, int], cause: str, occurred_us: int
) -> pb.ApplyDeltasRequest:
    """Return what brings an order line to the open units that its source has, at the nodes that it names.

    ``shipped_at``: units of the line shipped by node. ``occurred_us``: the snapshot's moment: what the source said
    later of the order stays the latest word.
    """
    deltas = []
    names = (one.order_source, one.order_ref, one.line, one.sku)
    common = pb.Delta(
        source=CORRECTION_SOURCE,
        sku=one.sku,
        order_source=one.order_source,
        order_ref=one.order_ref,
        line=one.line,
        reference=f"{run_id} {cause}",
        reason=cause,
        correlation_id=run_id,
    )
    for node in sorted({*one.said_at, *one.ledger_at}):
        units = one.said_at.get(node, 0)
        if units == one.ledger_at.get(node, 0) and one.ordered:
            continue
        allocated = pb.Delta(
            type=pb.DELTA_TYPE_ORDER_ALLOCATED,
            event_id=correction_id(run_id, "ALLOCATED", *names, node),
            node=node,
            quantity=units + shipped_at.get(node, 0),
            allocation_basis=pb.ALLOCATION_BASIS_CUMULATIVE,
        )
        deltas.append(allocated)
    if one.ordered and not one.placed:
        ordered = pb.Delta(
            type=pb.DELTA_TYPE_ORDER_CHANGED,
            event_id=correction_id(run_id, "ORDERED", *names),
            quantity=one.shipped + one.elsewhere + one.said,
        )
        deltas.insert(0, ordered)
    for delta in deltas:
        delta.MergeFrom(common)
        delta.occurred_time.FromMicroseconds(occurred_us)
    return pb.ApplyDeltasRequest(source=CORRECTION_SOURCE, deltas=deltas)
