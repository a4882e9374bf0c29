"""Orders, refunds and reservations as the shop keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

ORDER_STATUSES = (
    "auto-draft",
    "pending",
    "processing",
    "on-hold",
    "completed",
    "cancelled",
    "refunded",
    "failed",
    "checkout-draft",
)
TAKING = ("processing", "on-hold", "completed")
"""Entering one of these takes the stock, once."""
GIVING_BACK = ("cancelled", "pending")
"""Entering one of these gives it back, if it was taken. failed, refunded, trash and deletion do not."""


@dataclass(slots=True, kw_only=True)
class Line:
    """A line of an order. ``taken`` is what it has taken from stock and not yet given back."""

    id: int
    product_id: int
    variation_id: int
    sku: str | None
    name: str
    quantity: int
    price: float
    taken: int = 0

    @property
    def stock_id(self) -> int:
        """Return the id of the product or variation that is sold."""
        return self.variation_id or self.product_id


@dataclass(slots=True, kw_only=True)
class Refund:
    """A refund. ``lines`` are (order line id, quantity); a refund of an amount has none."""

    id: int
    amount: str
    created_s: float
    lines: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Order:
    """An order. ``stock_reduced`` is the shop's own flag that the stock is taken."""

    id: int
    status: str
    created_via: str
    created_s: float
    modified_s: float
    lines: list[Line] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)
    stock_reduced: bool = False
    paid_s: float | None = None
    customer_note: str = ""
    transaction_id: str = ""
    meta: dict[str, str] = field(default_factory=dict)
    """The order's own meta_data by key: where a shop's plugin notes our reservation."""

    @property
    def total(self) -> float:
        """Return the price of all lines."""
        return sum(line.quantity * line.price for line in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Units that a pending order of the block checkout keeps from other shoppers until a time."""

    product_id: int
    quantity: int
    expires_s: float
