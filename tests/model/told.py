"""What is told to the model and what it answers, in the words of the wire contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OrderName = tuple[str, str]
"""(order_source, order_ref)"""
Units = dict[str, int]
"""Units by node."""
Part = tuple[str, str]
"""(sku, kit) of a hold's line: the kit that it is a part of, or "" for a sku that was asked for by itself."""
Lines = Sequence[tuple[str, int]]
"""(sku, quantity) as a request names them; equal skus are added up."""
Key = tuple[int, bytes, bytes, tuple[int, int, bytes]]


class Refusal(Exception):
    """An answer that is an error on the wire; `reason` is the ErrorInfo's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Units, or percent of the give of N. One of the two; the other is 0."""

    units: int = 0
    percent: int = 0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A channel's policy. `nodes` None is all_nodes. The default is that of an auto-created channel."""

    nodes: tuple[str, ...] | None = None
    buffer: Buffer = Buffer()
    oversell_limit: int = 0
    low_stock_threshold: int = 0
    exclude_stale: bool = False
    """Staleness EXCLUDE: a node is left out while any watched feed of it is stale."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """What differs for one sku of a channel. None is absent, and absent is not 0."""

    buffer: Buffer | None = None
    oversell_limit: int | None = None
    excluded_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Something that happened at a source. `type` is the enum's name without its prefix."""

    source: str
    type: str
    stream: str = ""
    source_sequence: int = 0
    event_id: str = ""
    sku: str = ""
    node: str = ""
    quantity: int = 0
    quarantined: bool = False
    """State QUARANTINED of an ADJUSTMENT."""
    order_source: str = ""
    order_ref: str = ""
    line: str = ""
    reason: str = ""
    occurred_us: int = 0
    to_node: str = ""
    reference: str = ""
    due_us: int = 0
    expected_kind: str = ""
    """PURCHASE (also where empty), TRANSFER or RETURN."""
    open_basis: bool = False
    """Basis OPEN of an ORDER_ALLOCATED: still to ship, as of the shipped quantity."""
    shipped_quantity: int | None = None
    linked_source: str = ""
    linked_ref: str = ""
    """The other name of a LINK_ORDER."""

    def key(self) -> Key:
        """Give the place of this word among others: a number before a text, text by its bytes."""
        identity = (0, self.source_sequence, b"") if self.source_sequence else (1, 0, self.event_id.encode())
        return (self.occurred_us, self.source.encode(), self.stream.encode(), identity)


STOCK_TYPES = frozenset(
    [
        "RECEIPT",
        "ADJUSTMENT",
        "SHIPMENT",
        "QUARANTINE",
        "QUARANTINE_RELEASE",
        "WRITE_OFF",
        "RETURN_RECEIVED",
        "TRANSFER_OUT",
        "TRANSFER_IN",
    ]
)
SUPPLY_TYPES = frozenset(("EXPECTED", "SET_ON_HAND"))
WORD_TYPES = frozenset(("ORDER_PLACED", "ORDER_CHANGED"))
ORDER_TYPES = WORD_TYPES | {"ORDER_ALLOCATED", "ORDER_CANCELLED"}


@dataclass(frozen=True)
class Shortage:
    sku: str
    requested: int
    sellable: int


@dataclass(frozen=True)
class Granted:
    """The answer to a reserve. `outcome` is the enum's name without its prefix."""

    outcome: str
    reservation_id: str = ""
    shortages: tuple[Shortage, ...] = ()
    replayed: bool = False


@dataclass(frozen=True)
class Changed:
    """The answer to extend, commit and release."""

    state: str
    replayed: bool = False
    order_cancelled: bool = False


@dataclass(frozen=True)
class Terms:
    """The formula's terms for one (channel, sku)."""

    sellable: int
    state: str
    pool: int
    buffer: int
    fenced: int
    oversell_limit: int
    blocked: bool


def names_linked(delta: Delta) -> tuple[OrderName, OrderName]:
    """Read the two names of a LINK_ORDER."""
    return (delta.order_source or delta.source, delta.order_ref), (
        delta.linked_source or delta.source,
        delta.linked_ref,
    )
