"""Which number goes into a shop: Owner and Mirror. Pure.

**Owner.** The shop's checkout reserves with the ledger and the shop's own reduction is off. The ledger's number is the
truth and is written as it is; nothing can be lost between reading and writing, for nobody else writes.

**Mirror.** The shop reduces its stock itself and has no compare-and-set, so every write is a race with its sales. Read
just before writing. A value other than the one that we know means a sale (or somebody's edit) since: the shop's orders
are fetched and folded into the ledger first, and the ledger's number of that version is the one to write. Orders that
wait for payment are not in the ledger, because the shop itself keeps their units off sale: the number never subtracts
them, so nothing is subtracted twice. What stays is the time between the last reading and the moment at which the shop
has written: units sold in it are shown once more until their order is folded, at the latest one polling later.

The comparison is always with the shop's value of now, never with what was sent last: a shop that fell by a sale while
the ledger came back to its old number by a receipt would stay wrong for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from publisher.settings import Mode


class Step(StrEnum):
    """What to do with one product."""

    SKIP = "skip"
    WRITE = "write"
    FOLD = "fold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One product before it is written.

    ``desired`` is the ledger's number, ``shown`` what the shop said just now (None: not read), ``explained`` the last
    value of the shop that the ledger's orders account for: what we wrote last, or what was shown before the orders
    were folded (None: there is none yet). ``torn``: the shop's status contradicts its quantity.
    """

    desired: int
    shown: int | None
    explained: int | None = None
    torn: bool = False


def step(mode: Mode, look: Look) -> Step:
    """Return what to do next with a product. FOLD: fold the shop's orders, then look again."""
    if look.shown == look.desired and not look.torn:
        return Step.SKIP
    if mode is Mode.MIRROR and (look.shown is None or look.shown != look.explained):
        return Step.FOLD
    return Step.WRITE


FOLDS_MAX = 2
"""Rounds of folding and reading again before a product that sells all the time is written all the same."""
