"""Which of the shop's listings keeps a sku's number. Found by exact name, never guessed; what is unclear is a problem.

Built by paging the catalogue, kept in the database, refreshed nightly and whenever a sku is not where it was. A name
that two listings bear, one that differs by case only, or a listing without stock keeping is reported, not written.
Aliases (the shop's name = the ledger's) are applied here and nowhere else. Pure but for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from publisher.storefront import Kind, Listing, Managed


class Trouble(Enum):
    """Why a sku has no place to be written."""

    MISSING = "MISSING"
    DUPLICATE = "DUPLICATE"
    CASE_DIFFERS = "CASE_DIFFERS"
    UNMANAGED = "UNMANAGED"
    NO_STOCK = "NO_STOCK"
    SHARED_STOCK = "SHARED_STOCK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a sku's number is kept. ``parent_id`` only where the number is a variation's own.

    ``shop_sku``: the shop's name of it. ``manage``: stock keeping has to be switched on first.
    """

    sku: str
    shop_sku: str
    listing_id: str
    stock_id: str
    parent_id: str = ""
    manage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A sku that cannot be written, and why."""

    sku: str
    trouble: Trouble
    message: str


@dataclass(frozen=True, slots=True)
class _Place:
    """What is remembered of a listing: its number is read when it is needed."""

    listing_id: str
    sku: str
    kind: Kind
    managed: Managed
    parent_id: str


class Catalogue:
    """One shop's listings.

    ``aliases``: the shop's sku → the ledger's. ``known``: whether the ledger sells a sku here.
    """

    def __init__(
        self,
        aliases: Mapping[str, str],
        *,
        switch_on: bool = False,
        known: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._shop_sku = {ledger: shop for shop, ledger in aliases.items()}
        self._aliases = dict(aliases)
        self._switch_on = switch_on
        self._known = known
        self._places: dict[str, _Place] = {}
        self._by_sku: dict[str, tuple[str, ...]] = {}
        self._folded: dict[str, tuple[str, ...]] = {}
        self._sharing: dict[str, set[str]] = {}
        self._absent: set[str] = set()

    def __len__(self) -> int:
        return len(self._places)

    def shop_sku(self, sku: str) -> str:
        """Return the shop's name of a ledger's sku."""
        return self._shop_sku.get(sku, sku)

    def ledger_sku(self, shop_sku: str) -> str | None:
        """Return the ledger's name of a shop's sku; None for a name that an alias has taken for another one."""
        if shop_sku in self._aliases:
            return self._aliases[shop_sku]
        return None if shop_sku in self._shop_sku else shop_sku

    def put(self, listings: Iterable[Listing]) -> list[Listing]:
        """Remember listings as they are now; return those that are new or have changed their place."""
        changed: list[Listing] = []
        for one in listings:
            place = _Place(one.listing_id, one.sku, one.kind, one.managed, one.parent_id)
            before = self._places.get(one.listing_id)
            if before == place:
                continue
            if before is not None:
                self._forget(before)
            self._remember(place)
            changed.append(one)
        return changed

    def seen(self, skus: Sequence[str], listings: Iterable[Listing]) -> tuple[list[Listing], list[str]]:
        """Take the shop's word about these of its skus: what is twice in a row not among the listings is gone.

        Once may be a shop that answers an empty list instead of an error. Returns the listings that are new or changed
        their place, and the ids that are gone.
        """
        found = list(listings)
        changed = self.put(found)
        there = {one.listing_id for one in found}
        self._absent -= there
        gone = [
            listing_id
            for sku in skus
            for listing_id in self._folded.get(sku.casefold(), ())
            if listing_id not in there
        ]
        gone, again = [one for one in gone if one in self._absent], gone
        self._absent.update(again)
        self._absent.difference_update(gone)
        self.remove(gone)
        return changed, gone

    def remove(self, listing_ids: Iterable[str]) -> None:
        """Forget listings."""
        for listing_id in listing_ids:
            place = self._places.get(listing_id)
            if place is not None:
                self._forget(place)

    def keep_only(self, listing_ids: set[str]) -> int:
        """Forget what a whole walk did not see; return how many."""
        gone = [listing_id for listing_id in self._places if listing_id not in listing_ids]
        self.remove(gone)
        return len(gone)

    def ids(self, shop_skus: Iterable[str]) -> dict[str, str]:
        """Return the ids of the shop's skus that are known and single."""
        found: dict[str, str] = {}
        for sku in shop_skus:
            ids = self._by_sku.get(sku, ())
            if len(ids) == 1:
                found[sku] = ids[0]
        return found

    def resolve(self, sku: str) -> Target | Problem:
        """Return where a ledger's sku is written, or why nowhere."""
        shop_sku = self.shop_sku(sku)
        if self.ledger_sku(shop_sku) != sku:
            return Problem(
                sku=sku,
                trouble=Trouble.MISSING,
                message=f"the shop's {shop_sku!r} means another sku by an alias",
            )
        ids = self._by_sku.get(shop_sku, ())
        if not ids:
            near = [self._places[one].sku for one in self._folded.get(shop_sku.casefold(), ())]
            if near:
                return Problem(
                    sku=sku,
                    trouble=Trouble.CASE_DIFFERS,
                    message=f"the shop has {', '.join(map(repr, sorted(near)))}: correct one, or name an alias",
                )
            return Problem(sku=sku, trouble=Trouble.MISSING, message=f"the shop has no {shop_sku!r}")
        if len(self._folded.get(shop_sku.casefold(), ())) > 1:
            told = ", ".join(
                f"{self._places[one].sku!r} ({one})" for one in sorted(self._folded[shop_sku.casefold()])
            )
            return Problem(
                sku=sku, trouble=Trouble.DUPLICATE, message=f"the shop has it more than once: {told}"
            )
        return self._target(sku, self._places[ids[0]])

    def _target(self, sku: str, place: _Place) -> Target | Problem:
        if place.kind in (Kind.GROUPED, Kind.EXTERNAL):
            return Problem(
                sku=sku,
                trouble=Trouble.NO_STOCK,
                message=f"a {place.kind.value.lower()} product keeps no stock",
            )
        if place.managed is Managed.PARENT:
            problem = self._shared(sku, place)
            if problem is not None:
                return problem
            return Target(sku=sku, shop_sku=place.sku, listing_id=place.parent_id, stock_id=place.parent_id)
        if place.managed is Managed.NONE and (not self._switch_on or place.kind is Kind.VARIABLE):
            told = f"{place.sku!r} ({place.listing_id})"
            return Problem(
                sku=sku,
                trouble=Trouble.UNMANAGED,
                message=f"stock keeping is off for {told}: switch it on in the shop",
            )
        return Target(
            sku=sku,
            shop_sku=place.sku,
            listing_id=place.listing_id,
            stock_id=place.listing_id,
            parent_id=place.parent_id if place.kind is Kind.VARIATION else "",
            manage=place.managed is Managed.NONE,
        )

    def _shared(self, sku: str, place: _Place) -> Problem | None:
        """A parent's number may be written for one sku of the ledger only: its own, or the one that shares it."""
        others = []
        for listing_id in {place.parent_id, *self._sharing.get(place.parent_id, ())} - {place.listing_id}:
            other = self._places.get(listing_id)
            name = self.ledger_sku(other.sku) if other is not None and other.sku else None
            if name is not None and name != sku and self._known(name):
                others.append(name)
        if not others:
            return None
        return Problem(
            sku=sku,
            trouble=Trouble.SHARED_STOCK,
            message=f"{', '.join(map(repr, sorted(others)))} share one number in the shop with it",
        )

    def problems(self, skus: Iterable[str]) -> Iterator[Problem]:
        """Yield what cannot be written of these skus."""
        for sku in skus:
            found = self.resolve(sku)
            if isinstance(found, Problem):
                yield found

    def not_in(self, skus: set[str]) -> list[str]:
        """Return skus of the shop that are none of these of the ledger."""
        return sorted(
            place.sku
            for place in self._places.values()
            if place.sku and (self.ledger_sku(place.sku) or "") not in skus
        )

    def _remember(self, place: _Place) -> None:
        self._places[place.listing_id] = place
        if place.managed is Managed.PARENT:
            self._sharing.setdefault(place.parent_id, set()).add(place.listing_id)
        if place.sku:
            self._by_sku[place.sku] = (*self._by_sku.get(place.sku, ()), place.listing_id)
            folded = place.sku.casefold()
            self._folded[folded] = (*self._folded.get(folded, ()), place.listing_id)

    def _forget(self, place: _Place) -> None:
        del self._places[place.listing_id]
        if place.managed is Managed.PARENT:
            sharing = self._sharing.get(place.parent_id, set())
            sharing.discard(place.listing_id)
            if not sharing:
                self._sharing.pop(place.parent_id, None)
        if place.sku:
            for index, key in ((self._by_sku, place.sku), (self._folded, place.sku.casefold())):
                left = tuple(one for one in index.get(key, ()) if one != place.listing_id)
                if left:
                    index[key] = left
                else:
                    index.pop(key, None)
