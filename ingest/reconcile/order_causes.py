"""Why an open order line differs: the same causes, from what the journal says of the order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from availability.v1 import stock_pb2 as pb
from ingest.reconcile.causes import Cause, Context, Move, Part, doubled, exactly, words

_OF_ORDERS = (pb.DELTA_TYPE_ORDER_PLACED, pb.DELTA_TYPE_ORDER_CHANGED, pb.DELTA_TYPE_ORDER_ALLOCATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCase:
    """One variance of an open order line. ``confirmed``: the ledger has a word of the order's system about it."""

    order_ref: str
    sku: str
    said: int
    ledger: int
    shipped: int = 0
    confirmed: bool = False
    known: bool = True

    @property
    def variance(self) -> int:
        return self.ledger - self.said


def explain_order(case: OrderCase, moves: Sequence[Move], context: Context) -> tuple[Part, ...]:
    """Return why an open order line differs. ``moves``: the journal's of this order and sku, in order."""
    units = case.variance
    if not case.known:
        text = f"the source has {case.said:,} open of order {case.order_ref}, of which the ledger never heard"
        return (Part(cause=Cause.MISSED_DELTA, units=units, sentence=text),)
    told = [move for move in moves if move.type in _OF_ORDERS or move.type == pb.DELTA_TYPE_SHIPMENT]
    if units > 0 and case.said == 0 and not case.confirmed and not told:
        text = (
            f"order {case.order_ref} was sold here, and its source has never said a word of it: send it again"
        )
        return (Part(cause=Cause.ORDER_UNCONFIRMED, units=units, sentence=text, hold="ORDER_UNCONFIRMED"),)
    shipments = [move for move in moves if move.type == pb.DELTA_TYPE_SHIPMENT]
    twice = [
        Part(cause=part.cause, units=-abs(part.units), sentence=part.sentence, evidence=part.evidence)
        for part in doubled(shipments)
    ]
    found = exactly(units, twice)
    if found is not None:
        return found
    for move in shipments:
        for unit, factor in context.units_of(case.sku).items():
            rights = [
                move.quantity * factor,
                *([move.quantity // factor] if move.quantity % factor == 0 else []),
            ]
            if units in [right - move.quantity for right in rights]:
                text = f"{words(move)} would fit in another unit: 1 {unit} is {factor:,}"
                return (
                    Part(cause=Cause.UNIT_OR_MAPPING, units=units, sentence=text, evidence=(move.said(),)),
                )
    if units > 0:
        text = f"the source has {case.said:,} open of order {case.order_ref}, the ledger {case.ledger:,}:"
        text += " a cancellation or a shipment did not come"
    else:
        text = f"the source has {case.said:,} open of order {case.order_ref}, the ledger {case.ledger:,}:"
        text += " a larger or reopened order was not told"
    return (
        Part(
            cause=Cause.MISSED_DELTA,
            units=units,
            sentence=text,
            evidence=tuple(move.said() for move in told[-3:]),
        ),
    )
