"""The port of a storefront: read what it shows, write what it shall show. Small, so that a shop is one file.

A shop that refuses one item says so in that item's ``WriteResult``; one that fails as a whole raises ``ShopFailure``.
Ids are the shop's own, as text. Quantities are base units, as everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Kind(Enum):
    """What a listing is. Only SIMPLE, VARIATION and a VARIABLE that manages its own stock hold a number."""

    SIMPLE = "SIMPLE"
    VARIABLE = "VARIABLE"
    VARIATION = "VARIATION"
    GROUPED = "GROUPED"
    EXTERNAL = "EXTERNAL"
    OTHER = "OTHER"


class Managed(Enum):
    """Whose number a listing shows: its OWN, its PARENT's, or NONE."""

    OWN = "OWN"
    PARENT = "PARENT"
    NONE = "NONE"


class StockStatus(Enum):
    """What a shopper reads beside the number."""

    IN_STOCK = "IN_STOCK"
    OUT_OF_STOCK = "OUT_OF_STOCK"
    ON_BACKORDER = "ON_BACKORDER"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One sellable thing as the shop shows it at the moment of reading."""

    listing_id: str
    sku: str
    kind: Kind
    managed: Managed
    quantity: int | None
    """None where the shop keeps no number, or one that is no whole number."""
    status: StockStatus = StockStatus.UNKNOWN
    parent_id: str = ""
    backorders: bool = False
    """The shop sells it below 0 as well."""

    @property
    def stock_id(self) -> str:
        """Return the listing whose number this one shows."""
        return self.parent_id if self.managed is Managed.PARENT else self.listing_id

    @property
    def torn(self) -> bool:
        """Say whether number and status contradict each other: seen after two writes at once.

        A shop's own threshold (out of stock at 5 and below) looks the same: it stays so after a repair.
        """
        if self.managed is Managed.NONE or self.quantity is None or self.status is StockStatus.UNKNOWN:
            return False
        sells = self.status is not StockStatus.OUT_OF_STOCK
        return sells != (self.quantity > 0 or self.backorders)


@dataclass(frozen=True, slots=True, kw_only=True)
class StockWrite:
    """Show this number. ``listing_id`` is where the number is kept; ``parent_id`` only of a variation's own one."""

    sku: str
    listing_id: str
    quantity: int
    parent_id: str = ""
    manage: bool = False
    """Switch the shop's stock keeping on for it: only by an explicit setting."""


class Category(Enum):
    """Why something could not be published: who has to act."""

    MAPPING = "MAPPING"
    AUTHENTICATION = "AUTHENTICATION"
    CONFLICT = "CONFLICT"
    DOWNSTREAM_TIMEOUT = "DOWNSTREAM_TIMEOUT"
    REJECTED = "REJECTED"


class Outcome(Enum):
    """What became of one write.

    WRITTEN: the shop's own answer shows the number sent. REFUSED: it never will, as things are. NOT_STORED: it answered
    without an error and with another number; worth another try. UNKNOWN: nobody can tell; read, or write the current
    number again.
    """

    WRITTEN = "WRITTEN"
    REFUSED = "REFUSED"
    NOT_STORED = "NOT_STORED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """The answer to one write. ``shown`` is what the shop's answer shows, where it shows something."""

    write: StockWrite
    outcome: Outcome
    shown: Listing | None = None
    category: Category = Category.REJECTED
    reason: str = ""
    message: str = ""


class FailureKind(Enum):
    """Why a whole call failed."""

    AUTHENTICATION = "AUTHENTICATION"
    """Key, permission, or keys over plain http: not tried again until the keys change."""
    OVERLOADED = "OVERLOADED"
    """429, 503: later, when it says."""
    TOO_LARGE = "TOO_LARGE"
    """Too many items, or a proxy that takes no such body: smaller."""
    UNREACHABLE = "UNREACHABLE"
    """No connection: nothing was done."""
    TIMEOUT = "TIMEOUT"
    """No answer in time: the shop may still be at it."""
    BROKEN = "BROKEN"
    """500, a torn connection, an answer that is none: wholly, partly or not done."""
    REJECTED = "REJECTED"
    """The shop does not understand the call: wrong address, wrong version."""
    NOT_FOUND = "NOT_FOUND"
    """The shop knows the route, not the thing."""


MAYBE_APPLIED = frozenset({FailureKind.TIMEOUT, FailureKind.BROKEN})


class ShopFailure(Exception):
    """A call that failed as a whole. ``maybe_applied``: some or all of it may have been done all the same."""

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        code: str = "",
        status: int = 0,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{kind.value}: {message}")
        self.kind = kind
        self.reason = code or kind.value
        self.message = message
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def maybe_applied(self) -> bool:
        """Say whether the shop may have done some of it."""
        return self.kind in MAYBE_APPLIED


class Storefront(Protocol):
    """One shop. Every method ends within the shop's time-out and raises nothing but ShopFailure."""

    items_max: int
    """Most items of one ``write_stock``."""
    read_max: int
    """Most skus of one ``read_skus``."""

    async def read_skus(self, skus: Sequence[str], known: Mapping[str, str] | None = None) -> list[Listing]:
        """Return the listings of these skus (the shop's own spelling), in any order; what is missing is absent.

        More than one listing may come for a sku, and one that differs by case: the caller judges. ``known``: ids by
        sku, for skus that a shop cannot be asked for by name.
        """
        ...

    def route(self, write: StockWrite) -> str:
        """Return what writes must have in common to travel in one call."""
        ...

    async def write_stock(self, writes: Sequence[StockWrite]) -> list[WriteResult]:
        """Write numbers of one route; the results stand in the order of the writes. No listing twice in a call.

        Some may be refused and others not. A variation's parent is the caller's word, freshly read.
        """
        ...

    def listings(self) -> AsyncIterator[list[Listing]]:
        """Page the whole catalogue. Listings without a sku come too; drafts as well, the bin does not."""
        ...

    def changed_since(self, since: float) -> AsyncIterator[list[Listing]]:
        """Page what was changed at or after a time (seconds since 1970), as far as the shop can tell."""
        ...

    async def close(self) -> None:
        """End the connections."""
        ...
