"""Why a position differs: a cause class for each part of a variance, with its evidence from the journal. Pure.

What documents say comes first: a delta that was applied twice, an order that was allocated and never shipped, a
transfer that left and never arrived, goods that were announced and never received. Then quantities that are odd by the
factor of a known unit. What nothing accounts for was missed where the position agreed with an earlier snapshot (the
source moved and told nobody), and is unexplained where it never did. The parts of a variance always add up to it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import combinations
from statistics import median

from availability.v1 import stock_pb2 as pb

CANDIDATES_MAX = 14
PARTS_MAX = 3
USUAL_MIN = 3
"""Other deltas of the kind that are needed before a quantity can be called odd."""


class Cause(StrEnum):
    """Why a position differs."""

    MISSED_DELTA = "MISSED_DELTA"
    DUPLICATE_DELTA = "DUPLICATE_DELTA"
    LATE_DELTA = "LATE_DELTA"
    UNIT_OR_MAPPING = "UNIT_OR_MAPPING"
    ORDER_UNCONFIRMED = "ORDER_UNCONFIRMED"
    LEAKED_RESERVATION = "LEAKED_RESERVATION"
    UNKNOWN_SKU = "UNKNOWN_SKU"
    NEGATIVE = "NEGATIVE"
    UNEXPLAINED = "UNEXPLAINED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One delta of the journal. ``version``: packed; ``clock_ms``: when the ledger applied it."""

    version: int
    number: int
    clock_ms: int
    source: str
    stream: str
    source_sequence: int
    event_id: str
    type: int
    sku: str
    node: str
    to_node: str
    quantity: int
    order_source: str
    order_ref: str
    line: str
    reference: str
    reason: str
    occurred_us: int

    @property
    def effect(self) -> int:
        """What it did to on_hand."""
        return _SIGNS.get(self.type, 0) * self.quantity

    @property
    def order(self) -> tuple[str, str]:
        return (self.order_source or self.source, self.order_ref)

    @property
    def name(self) -> str:
        """What its source called it."""
        return f"{self.stream} {self.source_sequence}" if self.source_sequence else self.event_id

    def said(self) -> dict[str, object]:
        """Return it as evidence."""
        told: dict[str, object] = {
            "type": pb.DeltaType.Name(self.type).removeprefix("DELTA_TYPE_"),  # type: ignore[arg-type]  # a plain int
            "quantity": self.quantity,
            "source": self.source,
            "event": self.name,
            "applied": _time(self.clock_ms),
            "node": self.node,
        }
        named = {"order": self.order_ref, "reference": self.reference, "to_node": self.to_node}
        told |= {key: value for key, value in named.items() if value}
        if self.occurred_us:
            told["occurred"] = _time(self.occurred_us // 1_000)
        return told

    def touches(self, reason: str) -> bool:
        """Whether it moved quarantine of this reason."""
        if self.type == pb.DELTA_TYPE_RETURN_RECEIVED:
            return reason == "return"
        return self.type in _QUARANTINE_SIGNS and self.reason == reason


class QuarantineMove(Move):
    """The same delta, by what it did to quarantine."""

    __slots__ = ()

    @classmethod
    def of(cls, move: Move) -> QuarantineMove:
        """Look at a delta's other side."""
        return cls(**{name: getattr(move, name) for name in Move.__slots__})

    @property
    def effect(self) -> int:
        """What it did to quarantined."""
        return _QUARANTINE_SIGNS.get(self.type, 0) * self.quantity


_QUARANTINE_SIGNS: Mapping[int, int] = {
    pb.DELTA_TYPE_RECEIPT: 1,
    pb.DELTA_TYPE_QUARANTINE: 1,
    pb.DELTA_TYPE_QUARANTINE_RELEASE: -1,
    pb.DELTA_TYPE_WRITE_OFF: -1,
    pb.DELTA_TYPE_RETURN_RECEIVED: 1,
}
_SIGNS: Mapping[int, int] = {
    pb.DELTA_TYPE_RECEIPT: 1,
    pb.DELTA_TYPE_ADJUSTMENT: 1,
    pb.DELTA_TYPE_SHIPMENT: -1,
    pb.DELTA_TYPE_WRITE_OFF: -1,
    pb.DELTA_TYPE_RETURN_RECEIVED: 1,
    pb.DELTA_TYPE_TRANSFER_OUT: -1,
    pb.DELTA_TYPE_TRANSFER_IN: 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a variance. ``hold``: why it must not be corrected; empty: it may be."""

    cause: Cause
    units: int
    sentence: str
    evidence: tuple[dict[str, object], ...] = ()
    hold: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One variance of on_hand. ``agreed``: packed version up to which it is known to have been right, 0: never."""

    sku: str
    node: str
    said: int
    ledger: int
    known: bool = True
    sku_known: bool = True
    agreed: int = 0
    agreed_run: str = ""

    @property
    def variance(self) -> int:
        return self.ledger - self.said


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What else is known. ``point``: packed version as of which the ledger was read (0: unknown), and its moment.

    ``factors``: base units in one of each unit; ``by_sku`` come first. ``gaps``: numbers of this source that were given
    up, as sentences. ``elsewhere``: (sku, variance) → nodes that differ by it.
    """

    point: int = 0
    point_us: int = 0
    factors: Mapping[str, int] = field(default_factory=dict)
    by_sku: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    gaps: Sequence[str] = ()
    elsewhere: Mapping[tuple[str, int], Sequence[str]] = field(default_factory=dict)
    letters: Mapping[tuple[str, str], Sequence[tuple[int, str]]] = field(default_factory=dict)

    def units_of(self, sku: str) -> dict[str, int]:
        """Return the unit → factor of a sku, without base units."""
        own = self.by_sku.get(sku, {})
        return {unit: factor for unit, factor in {**self.factors, **own}.items() if factor > 1}


def explain(case: Case, moves: Sequence[Move], context: Context) -> tuple[Part, ...]:
    """Return the parts of a variance; their units add up to it. ``moves``: the journal's of this position, in order."""
    if not case.sku_known:
        text = f"the ledger has no sku {case.sku!r} anywhere"
        return (Part(cause=Cause.UNKNOWN_SKU, units=case.variance, sentence=text, hold="UNKNOWN_SKU"),)
    if case.said < 0:
        text = f"the source says {case.said}: nobody can have less than nothing"
        return (Part(cause=Cause.NEGATIVE, units=case.variance, sentence=text, hold="NEGATIVE"),)
    before = [move for move in moves if not context.point or move.version <= context.point]
    since = [move for move in before if move.version > case.agreed]
    units = context.units_of(case.sku)
    strong = [*_waiting(case, context), *_late(moves, context), *doubled(before, case.agreed)]
    strong += _documents(case, before, set(units.values()))
    odd = list(_odd(since, before, units))
    single = next((part for part in (*strong, *odd) if part.units == case.variance), None)
    found = (single,) if single is not None else exactly(case.variance, [*strong, *odd])
    if found is not None:
        return found
    whole = _whole(case, context)
    if whole is not None:
        return (whole,)
    certain = [part for part in strong if part.cause is Cause.DUPLICATE_DELTA]
    rest = case.variance - sum(part.units for part in certain)
    if certain and case.agreed:
        return (*certain, _rest(case, rest, since, context))
    return (_rest(case, case.variance, since, context),)


def exactly(units: int, candidates: Sequence[Part]) -> tuple[Part, ...] | None:
    """Return the fewest candidates that add up to the variance."""
    few = candidates[:CANDIDATES_MAX]
    for count in range(1, PARTS_MAX + 1):
        for chosen in combinations(few, count):
            if sum(part.units for part in chosen) == units:
                return chosen
    return None


# --- What documents say -----------------------------------------------------------------------------------


def _waiting(case: Case, context: Context) -> Iterator[Part]:
    """Rows that ingest could not apply and that wait for somebody: to correct them as well would count them twice."""
    for effect, letter in context.letters.get((case.sku, case.node), ()):
        text = f"a row of {effect:+,} waits as dead letter {letter[:12]}: replay or discard it"
        evidence = ({"letter": letter, "quantity": effect},)
        yield Part(
            cause=Cause.MISSED_DELTA, units=-effect, sentence=text, evidence=evidence, hold="LETTER_WAITS"
        )


def _late(moves: Iterable[Move], context: Context) -> Iterator[Part]:
    """Deltas that the snapshot contains and the ledger took only after its point: they have arrived by themselves."""
    if not context.point or not context.point_us:
        return
    for move in moves:
        if move.version > context.point and move.effect and 0 < move.occurred_us <= context.point_us:
            text = f"{words(move)} happened before the snapshot and reached the ledger after it,"
            text += f" at {_time(move.clock_ms)}"
            yield Part(
                cause=Cause.LATE_DELTA,
                units=-move.effect,
                sentence=text,
                evidence=(move.said(),),
                hold="ARRIVED",
            )


def doubled(moves: Sequence[Move], agreed: int = 0) -> Iterator[Part]:
    """Deltas of the same content under two names, the second one after ``agreed``. Without time, document or order two
    equal ones may both be true."""
    seen: dict[tuple[object, ...], Move] = {}
    for move in moves:
        if not move.effect or not (move.occurred_us or move.reference or move.order_ref):
            continue
        content = (
            move.source, move.type, move.quantity, move.order, move.line, move.reference, move.reason, move.to_node,
            move.occurred_us,
        )  # fmt: skip
        first = seen.setdefault(content, move)
        if first is not move and move.version > agreed:
            text = f"{words(move)} was applied twice: as {first.name} at {_time(first.clock_ms)} and as {move.name} at"
            yield Part(
                cause=Cause.DUPLICATE_DELTA,
                units=move.effect,
                sentence=f"{text} {_time(move.clock_ms)}",
                evidence=(first.said(), move.said()),
            )


def _documents(case: Case, before: Sequence[Move], factors: set[int]) -> Iterator[Part]:
    """Documents that began and did not end: allocated and not shipped, sent and not arrived, announced and not come."""
    allocated: dict[tuple[object, ...], Move] = {}
    shipped: dict[tuple[object, ...], int] = defaultdict(int)
    announced: dict[str, Move] = {}
    received: dict[str, int] = defaultdict(int)
    left: dict[str, Move] = {}
    for move in before:
        key: tuple[object, ...] = (move.order, move.line)
        if move.type == pb.DELTA_TYPE_ORDER_ALLOCATED:
            allocated[key] = move
        elif move.type == pb.DELTA_TYPE_SHIPMENT:
            shipped[key] += move.quantity
        elif move.type == pb.DELTA_TYPE_EXPECTED and move.reference:
            announced[move.reference] = move
        elif move.type == pb.DELTA_TYPE_RECEIPT and move.reference:
            received[move.reference] += move.quantity
        elif move.type == pb.DELTA_TYPE_TRANSFER_OUT and move.to_node == case.node and move.node != case.node:
            left[move.reference] = move
        elif move.type == pb.DELTA_TYPE_TRANSFER_IN and move.node == case.node:
            received[move.reference] += move.quantity
    for key, move in allocated.items():
        open_units = move.quantity - shipped[key]
        if open_units == 0 or move.quantity == 0:
            continue
        order = f"order {move.order_ref}"
        if shipped[key] == 0:
            text = f"{order} was allocated {move.quantity:,} here, and no shipment of it came"
            yield Part(cause=Cause.MISSED_DELTA, units=open_units, sentence=text, evidence=(move.said(),))
        elif (cause := _cut(move.quantity, shipped[key], factors)) is not None:
            text = f"{order} was allocated {move.quantity:,} here, and {shipped[key]:,} were shipped"
            yield Part(cause=cause, units=open_units, sentence=text, evidence=(move.said(),))
    for reference, move in (*announced.items(), *left.items()):
        units = received[reference] - move.quantity
        if units == 0 or move.quantity == 0:
            continue
        what = "transfer" if move.type == pb.DELTA_TYPE_TRANSFER_OUT else "supply"
        if received[reference] == 0:
            text = f"{what} {reference} of {move.quantity:,} was announced, and never arrived here"
            yield Part(cause=Cause.MISSED_DELTA, units=units, sentence=text, evidence=(move.said(),))
        elif (cause := _cut(move.quantity, received[reference], factors)) is not None:
            text = (
                f"{what} {reference} of {move.quantity:,} was announced, and {received[reference]:,} arrived"
            )
            yield Part(cause=cause, units=units, sentence=text, evidence=(move.said(),))


def _cut(announced: int, came: int, factors: set[int]) -> Cause | None:
    """Why a part came, or too much: in another unit, or the rest was missed. None: nothing that a document tells."""
    small, large = sorted((abs(announced), abs(came)))
    if small and large % small == 0 and large // small in factors:
        return Cause.UNIT_OR_MAPPING
    return Cause.MISSED_DELTA if came < announced else None


# --- Units ------------------------------------------------------------------------------------------------


def _odd(since: Sequence[Move], usual: Sequence[Move], units: Mapping[str, int]) -> Iterator[Part]:
    """Quantities that are unlike the others of their kind, and like them once a unit's factor is taken into account."""
    by_type: dict[int, list[int]] = defaultdict(list)
    for move in usual:
        if move.effect:
            by_type[move.type].append(abs(move.quantity))
    for move in since:
        if not move.effect or move.type == pb.DELTA_TYPE_ADJUSTMENT:
            continue
        others = list(by_type[move.type])
        others.remove(abs(move.quantity))
        if len(others) < USUAL_MIN:
            continue
        middle = median(others)
        for unit, factor in units.items():
            for right in ([move.quantity // factor] if move.quantity % factor == 0 else []) + [
                move.quantity * factor
            ]:
                if _distance(right, middle) + math.log(factor) / 2 < _distance(move.quantity, middle):
                    effect = move.effect // abs(move.quantity) * abs(right)
                    text = f"{words(move)} is odd beside the usual {middle:,.0f}: {abs(right):,} would fit,"
                    text += f" 1 {unit} is {factor:,}"
                    yield Part(
                        cause=Cause.UNIT_OR_MAPPING,
                        units=move.effect - effect,
                        sentence=text,
                        evidence=(move.said(), {"unit": unit, "factor": factor}),
                    )


def _distance(quantity: int, middle: float) -> float:
    return abs(math.log(max(1, abs(quantity))) - math.log(max(1.0, middle)))


def _whole(case: Case, context: Context) -> Part | None:
    """The position as a whole by a unit's factor, or the same units at another node."""
    if case.said > 0 and case.ledger > 0:
        for unit, factor in context.units_of(case.sku).items():
            if case.ledger == case.said * factor or case.said == case.ledger * factor:
                text = f"the ledger has {case.ledger:,} and the source {case.said:,}: 1 {unit} is {factor:,}"
                evidence = ({"unit": unit, "factor": factor},)
                return Part(
                    cause=Cause.UNIT_OR_MAPPING,
                    units=case.variance,
                    sentence=text,
                    evidence=evidence,
                    hold="UNIT",
                )
    for node in context.elsewhere.get((case.sku, -case.variance), ()):
        if node != case.node:
            text = f"{node} differs by {-case.variance:+,}: a code of one node is taken for the other"
            evidence = ({"node": node, "variance": -case.variance},)
            return Part(cause=Cause.UNIT_OR_MAPPING, units=case.variance, sentence=text, evidence=evidence)
    return None


# --- What is left -----------------------------------------------------------------------------------------


def _rest(case: Case, units: int, since: Sequence[Move], context: Context) -> Part:
    if case.ledger < 0:
        text = f"the ledger has {case.ledger:,}, which nobody can have"
        return Part(cause=Cause.NEGATIVE, units=units, sentence=text)
    if case.agreed:
        none = f"of {len(since):,} deltas since then none accounts for it" if since else "no delta came since"
        text = f"it agreed in run {case.agreed_run[:8]}; {none}:"
        text += f" the source moved by {-units:+,} and did not say so"
        if context.gaps:
            text += f" ({context.gaps[0]})"
        return Part(cause=Cause.MISSED_DELTA, units=units, sentence=text)
    if context.gaps:
        return Part(cause=Cause.MISSED_DELTA, units=units, sentence=context.gaps[0])
    text = "no earlier snapshot agreed with the ledger here, and no delta accounts for it"
    return Part(cause=Cause.UNEXPLAINED, units=units, sentence=text)


def words(move: Move) -> str:
    kind = pb.DeltaType.Name(move.type).removeprefix("DELTA_TYPE_")  # type: ignore[arg-type]  # a plain int
    of = f" ({move.order_ref or move.reference})" if move.order_ref or move.reference else ""
    return f"{kind} of {move.quantity:,}{of}"


def _time(clock_ms: int) -> str:
    return datetime.fromtimestamp(clock_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
