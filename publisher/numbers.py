"""Which number goes out for what the ledger says, and what is written after a look at the shop.

``wanted`` is what every number goes through when it is heard: publish_limit, the ranked rule. A ``Rule`` decides, right
before writing, with the shop's own number where it was read: Owner's is the ledger's; Mirror's folds the shop's orders
into the ledger first (`modes`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from publisher.modes import FOLDS_MAX, Look, Step, step
from publisher.settings import Mode, RankedRule
from publisher.storefront import Listing

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """publish_limit of a channel and of its skus; None: no limit."""

    channel: int | None = None
    skus: Mapping[str, int] = field(default_factory=dict)

    def of(self, sku: str) -> int | None:
        """Return the limit of a sku."""
        return self.skus.get(sku, self.channel)


def wanted(
    sellable: int,
    *,
    channel: str,
    limit: int | None = None,
    shop_limit: int | None = None,
    ranked: RankedRule | None = None,
) -> int:
    """Return the number to show for a sellable quantity.

    The lower of the policy's publish_limit and the shop's own; 0 where units are scarce and other channels go first.
    """
    if ranked is not None and sellable < ranked.below and channel not in ranked.channels:
        return 0
    for one in (limit, shop_limit):
        if one is not None:
            sellable = min(sellable, one)
    return max(0, sellable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One number about to be written. ``listing``: what the shop shows now, None: not read.

    ``explained``: the shop's last number that is accounted for. ``torn``: its status contradicts its number.
    """

    sku: str
    desired: int
    listing: Listing | None
    explained: int | None
    torn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do with one number: write it, or nothing because the shop shows it already. ``shown``: as last read."""

    quantity: int
    write: bool
    shown: Listing | None = None


class Rule(Protocol):
    """Decides about numbers right before they are written."""

    reads: bool
    """Every number is read back before it is written."""

    async def decide(self, seen: Sequence[Seen]) -> dict[str, Decision]:
        """Return a decision for each sku. Raises ShopFailure: then nothing is written."""
        ...


class OwnerRule:
    """The ledger's number as it is; a shop that shows it already is left alone."""

    reads = False

    async def decide(self, seen: Sequence[Seen]) -> dict[str, Decision]:
        """See ``Rule``."""
        return {
            one.sku: Decision(
                quantity=one.desired,
                write=step(Mode.OWNER, _look(one, one.desired, one.listing, one.explained)) is not Step.SKIP,
                shown=one.listing,
            )
            for one in seen
        }


Fold = Callable[[Sequence[str]], Awaitable[str]]
"""Bring the shop's orders into the ledger; returns the ledger's version that holds them."""
Read = Callable[[Sequence[str]], Awaitable[Mapping[str, Listing]]]
"""Read skus (the ledger's names) at the shop."""
Numbers = Callable[[Sequence[str], str], Awaitable[Mapping[str, int]]]
"""The numbers to show at a version of the ledger or later; '': one that holds every order told so far."""


class MirrorRule:
    """Reads before every write; a number that moved since means a sale: orders first, then the ledger's new number."""

    reads = True

    def __init__(self, fold: Fold, read: Read, numbers: Numbers) -> None:
        self._fold, self._read, self._numbers = fold, read, numbers

    async def decide(self, seen: Sequence[Seen]) -> dict[str, Decision]:
        """See ``Rule``."""
        decided: dict[str, Decision] = {}
        moved: list[Seen] = []
        # The feed may not have brought yet what the orders told so far have moved: the ledger's number of now counts.
        fresh = await self._numbers([one.sku for one in seen], "")
        for one in seen:
            number = fresh.get(one.sku, one.desired)
            what = step(Mode.MIRROR, _look(one, number, one.listing, one.explained))
            if what is Step.FOLD:
                moved.append(one)
            else:
                decided[one.sku] = Decision(quantity=number, write=what is Step.WRITE, shown=one.listing)
        shown = {one.sku: one.listing for one in moved}
        for round_number in range(1, FOLDS_MAX + 1):
            if not moved:
                break
            skus = [one.sku for one in moved]
            desired = await self._numbers(skus, await self._fold(skus))
            now = await self._read(skus)
            still: list[Seen] = []
            for one in moved:
                listing, before = now.get(one.sku), shown[one.sku]
                number = desired.get(one.sku, one.desired)
                what = step(
                    Mode.MIRROR, _look(one, number, listing, before.quantity if before is not None else None)
                )
                if what is Step.FOLD and round_number < FOLDS_MAX:
                    shown[one.sku] = listing
                    still.append(one)
                    continue
                if what is Step.FOLD:
                    _LOG.info("sells all the time: written after the last fold", sku=one.sku)
                decided[one.sku] = Decision(quantity=number, write=what is not Step.SKIP, shown=listing)
            moved = still
        return decided


def _look(one: Seen, desired: int, listing: Listing | None, explained: int | None) -> Look:
    return Look(
        desired=desired,
        shown=listing.quantity if listing is not None else None,
        explained=explained,
        torn=one.torn,
    )
