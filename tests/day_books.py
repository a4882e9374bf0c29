"""What is true while a shop's day is simulated, and why a shop ever offered more than that. Pure.

``Books`` is a plain count of a shop's stock as if everybody had told everything at once: units on hand minus units
that orders still want. A shop that shows more than that has not heard of something yet: the excess is kept with its
causes, and a sale out of the excess is oversold and names them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

REMEMBERED_MAX = 200
"""So many lowerings of a sku are remembered to explain an excess by."""


class Cause(Enum):
    """Why a shop shows units that are not there."""

    LAG = "a delta that was not published yet"
    RACE = "written over a sale that the ledger had not heard of"
    STALE = "written before the ledger heard of a delta"
    UNEXPLAINED = "nothing explains it"


@dataclass(frozen=True, slots=True)
class Lowering:
    """Units that went, and when: by a sale or by a delta."""

    at_s: float
    units: int
    sale: bool


@dataclass(frozen=True, slots=True)
class Oversold:
    """Units of one sale that were not there."""

    at_s: float
    sku: str
    units: int
    cause: Cause
    age_s: float
    """How long ago that happened which the shop had not heard of."""


@dataclass(slots=True)
class _Count:
    on_hand: int = 0
    wanted: dict[str, list[int]] = field(default_factory=dict)
    """Order line → [ordered, shipped]."""
    shown: int = 0
    lowered: list[Lowering] = field(default_factory=list)
    cause: Cause = Cause.LAG

    @property
    def true(self) -> int:
        return self.on_hand - sum(max(0, ordered - shipped) for ordered, shipped in self.wanted.values())


class Books:
    """One shop's books. Belongs to whoever holds the shop's lock."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}
        self.oversold: list[Oversold] = []
        self.writes_above = 0
        self.units_sold = 0

    def __getitem__(self, sku: str) -> _Count:
        return self._counts.setdefault(sku, _Count())

    def true(self, sku: str) -> int:
        """Return what is left; below 0 where more is promised than there is."""
        return self[sku].true

    def expected(self, sku: str) -> int:
        """Return the number that the shop has to show once everything is quiet."""
        return max(0, self[sku].true)

    def opened(self, sku: str, units: int) -> None:
        """Begin with units that the shop shows."""
        count = self[sku]
        count.on_hand = count.shown = units

    # --- what happens

    def received(self, at_s: float, sku: str, units: int) -> None:
        """Units came, or (below 0) went, by a delta that the shop has to hear of."""
        count = self[sku]
        count.on_hand += units
        if units < 0:
            self._lower(count, Lowering(at_s, -units, sale=False))
            count.cause = Cause.LAG

    def shipped(self, sku: str, line: str, units: int) -> None:
        """Units of an order line left."""
        count = self[sku]
        count.on_hand -= units
        count.wanted.setdefault(line, [0, 0])[1] += units

    def sold(self, at_s: float, sku: str, line: str, units: int) -> int:
        """Enter an order's line that the shop has taken; return how many of its units were not there."""
        count = self[sku]
        self.units_sold += units
        missing = min(units, max(0, units - max(0, count.true)))
        if missing:
            cause, since_s = self._explained(count, missing)
            self.oversold.append(Oversold(at_s, sku, missing, cause, at_s - since_s))
        count.wanted[line] = [units, count.wanted.get(line, [0, 0])[1]]
        self._lower(count, Lowering(at_s, units, sale=True))
        return missing

    def ordered(self, at_s: float, sku: str, line: str, units: int) -> None:
        """An order line is changed by the merchant: no shopper was promised anything new."""
        count = self[sku]
        before = count.true
        count.wanted.setdefault(line, [0, 0])[0] = units
        if count.true < before:
            self._lower(count, Lowering(at_s, before - count.true, sale=True))

    def shows(self, sku: str, quantity: int, *, written: bool) -> None:
        """Note what the shop shows now; ``written``: by the publisher, not by the shop itself."""
        count = self[sku]
        count.shown = quantity
        if written and quantity <= max(0, count.true):
            count.lowered.clear()  # it has heard of everything
        elif written:
            self.writes_above += 1
            newest = count.lowered[-1] if count.lowered else None
            count.cause = Cause.UNEXPLAINED if newest is None else Cause.RACE if newest.sale else Cause.STALE

    def _explained(self, count: _Count, missing: int) -> tuple[Cause, float]:
        """Return why units were on offer that were not there, and since when that was so."""
        units, since_s = 0, 0.0
        for lowering in reversed(count.lowered):
            units, since_s = units + lowering.units, lowering.at_s
            if units >= missing:
                return count.cause, since_s
        return Cause.UNEXPLAINED, since_s

    def _lower(self, count: _Count, lowering: Lowering) -> None:
        count.lowered.append(lowering)
        del count.lowered[:-REMEMBERED_MAX]

    # --- the report

    def told(self) -> str:
        """Return the oversold units by cause, in words."""
        units: Counter[Cause] = Counter()
        for one in self.oversold:
            units[one.cause] += one.units
        parts = [f"{count} {cause.value}" for cause, count in units.items()]
        oldest = max((one.age_s for one in self.oversold), default=0.0)
        causes = "; ".join(parts) or "none"
        return f"oversold {units.total()} of {self.units_sold} units ({causes}), oldest cause {oldest:.2f} s before"
