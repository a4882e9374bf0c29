"""From variances to what is kept of them: causes with their evidence, the correction, and whether it may be sent."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Protocol

from availability.v1 import stock_pb2 as pb
from ingest.reconcile.causes import (
    Case,
    Cause,
    Context,
    Move,
    Part,
    QuarantineMove,
    explain,
)
from ingest.reconcile.corrections import of_order, of_position
from ingest.reconcile.order_causes import OrderCase, explain_order
from ingest.reconcile.orders import OrderVariance
from ingest.reconcile.settings import SnapshotSettings
from ingest.reconcile.store import HELD, PENDING, REPORTED, KeptVariance

if TYPE_CHECKING:
    import polars as pl

EXPLAINED_MAX = 100_000
Place = tuple[str, str]
HOLDS = {
    "UNSETTLED": "it changed around the snapshot's point: what the ledger had then is not known",
    "LARGE": "it moves by more than position_units_max: somebody looks first",
    "ROWS_REFUSED": "rows of the file could not be read: what is not in it may be one of them",
    "NO_POINT": "the snapshot names no point: nothing is corrected",
    "REFUSED": "the file is refused: nothing is corrected",
    "OTHER_SPEAKS": "a snapshot of a lower rank speaks for it",
    "TWO_SPEAK": "two snapshots of one rank speak for it: name an arbiter by rank",
    "UNKNOWN_SKU": "the ledger does not know the sku",
    "NEGATIVE": "nobody has less than nothing",
    "LETTER_WAITS": "its row waits as a dead letter: replay or discard that",
    "ARRIVED": "what was missing has arrived meanwhile",
    "UNIT": "the whole position is off by a unit: mend the mapping first",
    "ORDER_UNCONFIRMED": "the order's source does not know it: send it again",
    "TOO_LARGE": "it is too much for one delta",
}
"""Why a variance is not corrected, in words."""


class Evidence(Protocol):
    """What the journal is asked."""

    def moves(self, places: Sequence[Place], after: int) -> Mapping[Place, Sequence[Move]]: ...
    def order_moves(
        self, lines: Sequence[tuple[str, str, str]]
    ) -> Mapping[tuple[str, str, str], Sequence[Move]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What stands around a run's variances. ``agreed``: position → (packed version, run) up to which it was right."""

    run_id: str
    settings: SnapshotSettings
    point_given: bool
    refused: bool
    held: bool
    context: Context
    agreed: Mapping[Place, tuple[int, str]] = field(default_factory=dict)
    spoken_for: Mapping[Place, str] = field(default_factory=dict)
    known_skus: frozenset[str] = frozenset()
    rows_refused: bool = False
    """Some rows could not be read: what has no row may still be there."""
    oldest: int = 0
    """Packed version from which on the journal is read."""


def explain_positions(
    variances: pl.DataFrame,
    evidence: Evidence,
    situation: Situation,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[KeptVariance]:
    """Explain each variance and make its correction; the largest first, so that numbers go by size."""
    import polars as pl

    ordered = variances.sort(
        pl.col("variance").abs(), "kind", "sku", "node", "reason", descending=[True] + [False] * 4
    )
    rows = list(ordered.iter_rows(named=True))
    looked_at = rows[:EXPLAINED_MAX]
    elsewhere: dict[tuple[str, int], list[str]] = defaultdict(list)
    for row in looked_at:
        if row["kind"] == "ON_HAND":
            elsewhere[row["sku"], row["variance"]].append(row["node"])
    context = _with(situation.context, elsewhere)
    moves = evidence.moves([(row["sku"], row["node"]) for row in looked_at], situation.oldest)
    kept = []
    for number, row in enumerate(rows):
        place = (row["sku"], row["node"])
        agreed, agreed_run = situation.agreed.get(place, (0, ""))
        case = Case(
            sku=row["sku"],
            node=row["node"],
            said=row["said"],
            ledger=row["ledger"],
            known=row["known"],
            sku_known=row["known"]
            or row["sku"] in situation.known_skus
            or situation.settings.unknown_skus == "TAKE",
            agreed=agreed,
            agreed_run=agreed_run,
        )
        of_place: Sequence[Move] = moves.get(place, ())
        if row["kind"] == "QUARANTINED":
            of_place = [QuarantineMove.of(move) for move in of_place if move.touches(row["reason"])]
        if number < EXPLAINED_MAX:
            parts = explain(case, of_place, context)
        else:
            text = f"more than {EXPLAINED_MAX:,} positions differ: not each was looked at"
            parts = (Part(cause=Cause.UNEXPLAINED, units=case.variance, sentence=text),)
        kept.append(_kept_position(number, row, parts, situation))
        if number % 1_000 == 0:
            progress(number, len(rows))
    return kept


def _with(context: Context, elsewhere: Mapping[tuple[str, int], Sequence[str]]) -> Context:
    return Context(
        point=context.point,
        point_us=context.point_us,
        factors=context.factors,
        by_sku=context.by_sku,
        gaps=context.gaps,
        letters=context.letters,
        elsewhere=elsewhere,
    )


def _kept_position(
    number: int, row: Mapping[str, object], parts: Sequence[Part], situation: Situation
) -> KeptVariance:
    sku, node, reason, kind = str(row["sku"]), str(row["node"]), str(row["reason"]), str(row["kind"])
    variance = int(str(row["variance"]))
    main = max(parts, key=lambda part: abs(part.units))
    request = of_position(situation.run_id, kind, sku, node, reason, variance, main.cause.value)
    hold = ""
    if situation.refused or not situation.point_given:
        hold = "REFUSED" if situation.refused else "NO_POINT"
    elif not row["settled"]:
        hold = "UNSETTLED"
    elif situation.rows_refused and (row["absent"] or situation.settings.quarantine == "BESIDE"):
        hold = "ROWS_REFUSED"
    elif (sku, node) in situation.spoken_for:
        hold = situation.spoken_for[sku, node]
    else:
        hold = next((part.hold for part in parts if part.hold), "")
    if not hold and request is None:
        hold = "TOO_LARGE"
    state = REPORTED if hold else PENDING
    if state == PENDING and situation.held:
        state = HELD
    elif state == PENDING and abs(variance) > situation.settings.guard.position_units_max:
        state, hold = HELD, "LARGE"
    return KeptVariance(
        number=number,
        kind=kind,
        sku=sku,
        node=node,
        reason=reason,
        said=int(str(row["said"])),
        ledger=int(str(row["ledger"])),
        variance=variance,
        cause=main.cause.value,
        state=state,
        hold=hold,
        delta=b"" if request is None or state == REPORTED else request.SerializeToString(),
        parts=_told(parts),
    )


def _told(parts: Sequence[Part]) -> tuple[tuple[str, int, str, str], ...]:
    return tuple(
        (part.cause.value, part.units, part.sentence, json.dumps(part.evidence, ensure_ascii=False))
        for part in parts
    )


def explain_orders(
    variances: Sequence[OrderVariance],
    evidence: Evidence,
    situation: Situation,
    order_of: Callable[[str, str], pb.GetOrderResponse | None],
    occurred_us: int,
) -> list[KeptVariance]:
    """Explain each order line that differs and make its correction. Raises ClientError where an order is asked for."""
    ordered = sorted(
        variances, key=lambda one: (-abs(one.variance), one.order_source, one.order_ref, one.line, one.sku)
    )
    lines = [(one.order_source, one.order_ref, one.sku) for one in ordered[:EXPLAINED_MAX]]
    moves = evidence.order_moves(lines)
    kept = []
    for number, one in enumerate(ordered):
        of_line = moves.get((one.order_source, one.order_ref, one.sku), ())
        case = OrderCase(
            order_ref=one.order_ref,
            sku=one.sku,
            said=one.said,
            ledger=one.ledger,
            shipped=one.shipped,
            confirmed=one.confirmed,
            known=one.known,
        )
        if one.placed:
            where = ", ".join(f"{units:,} at {node}" for node, units in sorted(one.said_at.items()) if units)
            text = f"the source ships order {one.order_ref} from elsewhere: {where}"
            parts: tuple[Part, ...] = (Part(cause=Cause.MISSED_DELTA, units=one.variance, sentence=text),)
        else:
            parts = explain_order(case, of_line, situation.context)
        kept.append(_kept_order(number, one, parts, situation, order_of, occurred_us))
    return kept


def _kept_order(
    number: int,
    one: OrderVariance,
    parts: Sequence[Part],
    situation: Situation,
    order_of: Callable[[str, str], pb.GetOrderResponse | None],
    occurred_us: int,
) -> KeptVariance:
    main = max(parts, key=lambda part: abs(part.units))
    hold = "REFUSED" if situation.refused else "" if situation.point_given else "NO_POINT"
    if not hold and not one.settled:
        hold = "UNSETTLED"
    if not hold and situation.rows_refused and one.said < one.ledger:
        hold = "ROWS_REFUSED"
    hold = hold or next((part.hold for part in parts if part.hold), "")
    state = REPORTED if hold else HELD if situation.held else PENDING
    if state == PENDING and abs(one.variance) > situation.settings.guard.position_units_max:
        state, hold = HELD, "LARGE"
    delta = b""
    if state != REPORTED:
        shipped = _shipped_at(order_of(one.order_source, one.order_ref), one) if one.known else {}
        delta = of_order(situation.run_id, one, shipped, main.cause.value, occurred_us).SerializeToString()
    nodes = sorted({*one.said_at, *one.ledger_at})
    return KeptVariance(
        number=number,
        kind="OPEN_AT" if one.placed else "OPEN",
        sku=one.sku,
        node=nodes[0] if len(nodes) == 1 else "",
        order_source=one.order_source,
        order_ref=one.order_ref,
        line=one.line,
        said=one.said,
        ledger=one.ledger,
        variance=one.variance,
        cause=main.cause.value,
        state=state,
        hold=hold,
        delta=delta,
        parts=_told(parts),
    )


def _shipped_at(order: pb.GetOrderResponse | None, one: OrderVariance) -> dict[str, int]:
    if order is None:
        return {}
    found: dict[str, int] = defaultdict(int)
    for line in order.lines:
        if line.sku == one.sku and line.line == one.line:
            for node in line.nodes:
                found[node.node] += node.shipped
    return found


def whole_factors(settings: SnapshotSettings) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Return the known units of measure that are more than one base unit: for all skus, and by sku."""

    def whole(factors: Mapping[str, Decimal]) -> dict[str, int]:
        return {unit: int(one) for unit, one in factors.items() if one == int(one) and one > 1}

    units = settings.mapping.units
    return whole(units.factors), {sku: found for sku, one in units.by_sku.items() if (found := whole(one))}
