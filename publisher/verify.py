"""Does the shop show what it should? What the ledger says, what was acknowledged and what is shown, sku by sku. Pure.

A difference has a cause, so that somebody knows what to do: wait, approve, mend the catalogue, have it written again.
Whoever asks reads the shop first and the ledger's numbers right after, then looks once more at what differed: a number
that is on its way is no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from publisher.catalogue import Catalogue, Problem, Trouble
from publisher.state import Kept
from publisher.storefront import Listing


class Cause(Enum):
    """Why a shop shows another number than it should, and what helps."""

    HELD = "HELD"
    """It waits for an operator: publish approve."""
    LETTER = "LETTER"
    """The shop refused it: publish letters."""
    ON_ITS_WAY = "ON_ITS_WAY"
    """The publisher knows it and has yet to write it."""
    NOT_HEARD = "NOT_HEARD"
    """The publisher has not heard the ledger's number: is it running?"""
    NEVER_PUBLISHED = "NEVER_PUBLISHED"
    """Nobody has written it yet."""
    CHANGED_IN_SHOP = "CHANGED_IN_SHOP"
    """The shop acknowledged the right number and shows another: a sale, somebody's edit, a lost write."""
    TORN = "TORN"
    """The number is right, the status beside it is not."""
    MISSING = "MISSING"
    DUPLICATE = "DUPLICATE"
    CASE_DIFFERS = "CASE_DIFFERS"
    UNMANAGED = "UNMANAGED"
    NO_STOCK = "NO_STOCK"
    SHARED_STOCK = "SHARED_STOCK"


WRITABLE = frozenset({Cause.LETTER, Cause.NEVER_PUBLISHED, Cause.CHANGED_IN_SHOP, Cause.TORN})
"""Causes that writing once more may help."""
PLACELESS = frozenset(Cause(trouble.value) for trouble in Trouble)
"""Causes that only the catalogue's keeper can mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One sku that shows what it should not. ``wanted``: by the ledger now; ``shown``: None: no number."""

    sku: str
    cause: Cause
    wanted: int
    shown: int | None
    acked: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known besides the numbers. ``letters``: sku → reason; ``held``: zeros wait for an operator."""

    kept: Mapping[str, Kept]
    letters: Mapping[str, str]
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a comparison came to.

    ``on_sale``: compared skus that the shop shows as available. ``unknown``: skus of the shop that the ledger does not
    sell there.
    """

    compared: int
    differences: tuple[Difference, ...]
    on_sale: int = 0
    unknown: int = 0

    def by_cause(self) -> dict[Cause, int]:
        """Count the differences, the most frequent first."""
        return dict(Counter(one.cause for one in self.differences).most_common())

    def writes(self) -> Writes:
        """Count what publishing would write, were it to begin now."""
        found = [one for one in self.differences if one.cause not in PLACELESS]
        shown = [(one.shown or 0, one.wanted) for one in found]
        return Writes(
            all=len(found),
            to_zero=sum(1 for was, becomes in shown if was > 0 >= becomes),
            from_zero=sum(1 for was, becomes in shown if was <= 0 < becomes),
            up=sum(1 for was, becomes in shown if becomes > was > 0),
            down=sum(1 for was, becomes in shown if was > becomes > 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """Numbers that publishing would write: to 0, away from 0, and among those that stay above it."""

    all: int
    to_zero: int
    from_zero: int
    up: int
    down: int


def compare(
    wanted: Mapping[str, int], shown: Mapping[str, Listing], catalogue: Catalogue, known: Known
) -> list[Difference]:
    """Return the differences of these skus, by sku. ``shown``: the listing that keeps each sku's number."""
    found = (
        _difference(sku, number, shown.get(sku), catalogue, known) for sku, number in sorted(wanted.items())
    )
    return [one for one in found if one is not None]


def _difference(
    sku: str, wanted: int, listing: Listing | None, catalogue: Catalogue, known: Known
) -> Difference | None:
    place = catalogue.resolve(sku)
    kept = known.kept.get(sku)
    acked = kept.acked if kept is not None else None
    shown = listing.quantity if listing is not None else None
    if isinstance(place, Problem):
        if place.trouble is Trouble.MISSING and wanted <= 0:
            return None  # nothing to sell, and nothing on offer
        return Difference(
            sku=sku,
            cause=Cause(place.trouble.value),
            wanted=wanted,
            shown=shown,
            acked=acked,
            detail=place.message,
        )
    if shown == wanted:
        if listing is not None and listing.torn:
            return Difference(sku=sku, cause=Cause.TORN, wanted=wanted, shown=shown, acked=acked)
        return None
    cause, detail = _why(sku, wanted, kept, known)
    return Difference(sku=sku, cause=cause, wanted=wanted, shown=shown, acked=acked, detail=detail)


def _why(sku: str, wanted: int, kept: Kept | None, known: Known) -> tuple[Cause, str]:
    letter = known.letters.get(sku)
    if letter is not None:
        return Cause.LETTER, letter
    if kept is None:
        return Cause.NEVER_PUBLISHED, ""
    if known.held and wanted <= 0 and kept.pending:
        return Cause.HELD, ""
    if kept.wanted != wanted:
        return Cause.NOT_HEARD, f"heard {kept.wanted}"
    if kept.pending or kept.asked or kept.sending is not None:
        return Cause.ON_ITS_WAY, ""
    if kept.acked is None:
        return Cause.NEVER_PUBLISHED, ""
    return Cause.CHANGED_IN_SHOP, f"acknowledged {kept.acked}"


def lasting(first: Iterable[Difference], second: Iterable[Difference]) -> list[Difference]:
    """Return what differs at the second look as well, by the second look's word."""
    before = {one.sku for one in first}
    return [one for one in second if one.sku in before]
