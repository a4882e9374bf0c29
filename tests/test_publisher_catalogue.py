"""Where a sku's number is kept: by exact name, or a problem that says why not."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from publisher.catalogue import Catalogue, Problem, Target, Trouble
from publisher.storefront import Kind, Listing, Managed

SKUS = ("a", "A", "b", "c", "")


def listing(
    number: int,
    sku: str,
    kind: Kind = Kind.SIMPLE,
    managed: Managed = Managed.OWN,
    parent: int = 0,
) -> Listing:
    return Listing(
        listing_id=str(number),
        sku=sku,
        kind=kind,
        managed=managed,
        quantity=1,
        parent_id=str(parent) if parent else "",
    )


def trouble(found: Target | Problem) -> str:
    return found.trouble.value if isinstance(found, Problem) else "none"


def test_aliases_rename_and_take_names() -> None:
    """The shop's SHOP-1 is the ledger's A-1; a sku of that very name in the shop is another product."""
    catalogue = Catalogue({"SHOP-1": "A-1"})
    catalogue.put([listing(1, "SHOP-1"), listing(2, "A-1"), listing(3, "B")])
    found = catalogue.resolve("A-1")
    assert isinstance(found, Target)
    assert (found.listing_id, found.shop_sku) == ("1", "SHOP-1")
    assert trouble(catalogue.resolve("SHOP-1")) == "MISSING"
    assert catalogue.ledger_sku("SHOP-1") == "A-1"
    assert catalogue.ledger_sku("A-1") is None
    assert catalogue.not_in({"A-1"}) == ["A-1", "B"]


def test_a_parents_number_is_written_for_one_sku_only() -> None:
    """Two variations that share a number, both sold by the ledger: nobody's to guess. One alone: the parent's place."""
    sold: set[str] = {"v1"}
    catalogue = Catalogue({}, known=sold.__contains__)
    catalogue.put(
        [
            listing(1, "p", Kind.VARIABLE),
            listing(2, "v1", Kind.VARIATION, Managed.PARENT, 1),
            listing(3, "v2", Kind.VARIATION, Managed.PARENT, 1),
        ]
    )
    found = catalogue.resolve("v1")
    assert isinstance(found, Target)
    assert (found.listing_id, found.stock_id, found.parent_id) == ("1", "1", "")
    sold.add("v2")
    assert trouble(catalogue.resolve("v1")) == trouble(catalogue.resolve("v2")) == "SHARED_STOCK"


def test_stock_keeping_is_never_switched_on_unasked() -> None:
    """Unmanaged is a problem; with switch_on it is a write that says so, but never for a variable parent."""
    rows = [listing(1, "s", managed=Managed.NONE), listing(2, "p", Kind.VARIABLE, Managed.NONE)]
    asked, unasked = Catalogue({}, switch_on=True), Catalogue({})
    asked.put(rows)
    unasked.put(rows)
    assert [trouble(unasked.resolve(sku)) for sku in ("s", "p")] == ["UNMANAGED", "UNMANAGED"]
    found = asked.resolve("s")
    assert isinstance(found, Target)
    assert found.manage
    assert trouble(asked.resolve("p")) == "UNMANAGED"


LISTINGS = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from(SKUS),
        st.sampled_from(list(Kind)),
        st.sampled_from(list(Managed)),
        st.integers(1, 6),
    ),
    max_size=30,
)


@given(LISTINGS, st.sets(st.integers(1, 6)))
@settings(max_examples=100)
def test_what_is_known_is_what_was_seen_last(
    seen: list[tuple[int, str, Kind, Managed, int]], removed: set[int]
) -> None:
    """After any listings in any order the map is the one of a catalogue that only ever saw the last of each."""
    one, latest = Catalogue({}), dict[str, Listing]()
    for number, sku, kind, managed, parent in seen:
        found = listing(number, sku, kind, managed, parent)
        one.put([found])
        latest[found.listing_id] = found
    one.remove(str(number) for number in removed)
    kept = [item for key, item in latest.items() if int(key) not in removed]
    fresh = Catalogue({})
    fresh.put(kept)
    assert len(one) == len(fresh) == len(kept)
    for sku in SKUS[:-1]:
        place, expected = one.resolve(sku), fresh.resolve(sku)
        assert trouble(place) == trouble(expected)
        if isinstance(place, Target):
            assert place == expected
            assert sum(item.sku.casefold() == sku.casefold() for item in kept) == 1
        elif place.trouble is Trouble.MISSING:
            assert all(item.sku.casefold() != sku.casefold() for item in kept)


def test_what_the_shop_no_longer_lists_is_gone() -> None:
    """Asked for by name and not answered, twice in a row: forgotten. A listing that changed its place is told."""
    catalogue = Catalogue({})
    catalogue.put([listing(1, "a"), listing(2, "b", Kind.VARIATION, parent=9)])
    changed, gone = catalogue.seen(["a", "b"], [listing(2, "b", Kind.VARIATION, parent=8)])
    assert [one.parent_id for one in changed] == ["8"]
    assert gone == [], "once may be a shop that answers an empty list"
    assert catalogue.seen(["a"], [listing(1, "a")]) == ([], [])
    assert catalogue.seen(["a"], [])[1] == []
    assert catalogue.seen(["a"], [])[1] == ["1"]
    assert trouble(catalogue.resolve("a")) == "MISSING"
