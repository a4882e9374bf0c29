"""Every difference between shop and ledger has its cause; what is right or on its way is none."""

from __future__ import annotations

from typing import Any

import pytest

from publisher.catalogue import Catalogue
from publisher.state import Kept
from publisher.storefront import Kind, Listing, Managed, StockStatus
from publisher.verify import Cause, Difference, Known, compare, lasting


def listing(sku: str, quantity: int | None, **more: Any) -> Listing:  # Any: fields
    return Listing(
        **{
            "listing_id": f"id {sku}",
            "sku": sku,
            "kind": Kind.SIMPLE,
            "managed": Managed.OWN,
            "quantity": quantity,
            **more,
        }
    )


def kept(wanted: int, acked: int | None, **more: Any) -> Kept:  # Any: fields
    return Kept(
        **{
            "sku": "A",
            "sellable": wanted,
            "wanted": wanted,
            "wanted_version": "1-1",
            "wanted_since": 0.0,
            "blocked": False,
            "pending": False,
            "asked": False,
            "acked": acked,
            "acked_version": "1-1",
            "acked_at": 0.0,
            "shown": acked,
            "sending": None,
            "sending_at": None,
            "sending_owner": "",
            **more,
        }
    )


def cause_of(
    wanted: int,
    found: Listing | None,
    row: Kept | None,
    *,
    letters: dict[str, str] | None = None,
    held: bool = False,
) -> Cause | None:
    """Compare one sku."""
    catalogue = Catalogue({})
    if found is not None:
        catalogue.put([found])
    known = Known(kept={"A": row} if row else {}, letters=letters or {}, held=held)
    differences = compare({"A": wanted}, {"A": found} if found else {}, catalogue, known)
    return differences[0].cause if differences else None


@pytest.mark.parametrize(
    ("wanted", "found", "row", "cause"),
    [
        (5, listing("A", 5), kept(5, 5), None),
        (5, listing("A", 5), None, None),
        (5, listing("A", 3), kept(5, 5), Cause.CHANGED_IN_SHOP),
        (5, listing("A", 3), kept(5, 3, pending=True), Cause.ON_ITS_WAY),
        (5, listing("A", 3), kept(5, 3, sending=5), Cause.ON_ITS_WAY),
        (5, listing("A", 5), kept(5, 3, pending=True), None),
        (5, listing("A", 3), kept(3, 3), Cause.NOT_HEARD),
        (5, listing("A", 3), None, Cause.NEVER_PUBLISHED),
        (5, listing("A", 3), kept(5, None), Cause.NEVER_PUBLISHED),
        (5, listing("A", 5, status=StockStatus.OUT_OF_STOCK), kept(5, 5), Cause.TORN),
        (5, listing("A", None, managed=Managed.NONE), kept(5, None), Cause.UNMANAGED),
        (5, listing("A", None, kind=Kind.EXTERNAL, managed=Managed.NONE), kept(5, None), Cause.NO_STOCK),
        (5, listing("a", 5), kept(5, None), Cause.CASE_DIFFERS),
        (5, None, kept(5, None), Cause.MISSING),
        (0, None, None, None),
    ],
)
def test_causes(wanted: int, found: Listing | None, row: Kept | None, cause: Cause | None) -> None:
    """Each by what is known of the sku."""
    assert cause_of(wanted, found, row) is cause


def test_letters_and_held_zeros_come_first() -> None:
    """Who has to act is said, whatever else is known."""
    assert cause_of(5, listing("A", 3), kept(5, 3), letters={"A": "REJECTED: no"}) is Cause.LETTER
    assert cause_of(0, listing("A", 3), kept(0, 3, pending=True), held=True) is Cause.HELD
    assert cause_of(4, listing("A", 3), kept(4, 3, pending=True), held=True) is Cause.ON_ITS_WAY


def test_two_listings_of_one_sku_are_told() -> None:
    """Nobody guesses which one is meant."""
    catalogue = Catalogue({})
    one, two = listing("A", 5), listing("A", 5, listing_id="other")
    catalogue.put([one, two])
    found = compare({"A": 5}, {"A": one}, catalogue, Known(kept={}, letters={}))
    assert [difference.cause for difference in found] == [Cause.DUPLICATE]


def test_only_what_differs_twice_is_told() -> None:
    """A number that was on its way at the first look is no difference; nor is one that is new at the second."""

    def at(sku: str, shown: int) -> Difference:
        return Difference(sku=sku, cause=Cause.ON_ITS_WAY, wanted=9, shown=shown)

    assert lasting([at("A", 1), at("B", 1)], [at("B", 2), at("C", 2)]) == [at("B", 2)]
