"""The shop's state and the few ways to change it. Belongs to whoever holds ``lock``.

Look next: ``products`` (reads and writes by REST), ``orders`` (transitions and their stock), ``webhooks`` (what is told
to others), ``faults`` (what goes wrong on demand).
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from publisher.testing.clock import Clock
from publisher.testing.faults import Faults
from publisher.testing.keys import ApiKey, Nonces
from publisher.testing.order_state import Order, Reservation
from publisher.testing.stock import (
    VARIABLE,
    VARIATION,
    Product,
    ShopSettings,
    derive_status,
    effective,
    sync_family,
)
from publisher.testing.webhook_state import Webhook

LOG_MAX = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One answered call, for the tests' questions. ``items`` are the ids that a batch or a single write named."""

    at_s: float
    method: str
    path: str
    items: tuple[int, ...]
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two writes of one product that were under way at the same time: nobody may do that (torn status)."""

    at_s: float
    product_id: int


@dataclass(frozen=True, slots=True)
class Version:
    """The shop's WooCommerce version and what depends on it."""

    text: str

    @property
    def number(self) -> tuple[int, ...]:
        """Return the version as numbers."""
        return tuple(int(part) for part in self.text.split("."))

    @property
    def checks_parents(self) -> bool:
        """Whether variations/batch refuses a wrong parent (9.2); older ones move the variation to it."""
        return self.number >= (9, 2)

    @property
    def lists_variations(self) -> bool:
        """Whether /variations lists those of all parents."""
        return self.number >= (9, 2)

    @property
    def edits_move_stock(self) -> bool:
        """Whether a changed line quantity of a placed order moves stock."""
        return self.number >= (9, 2)

    @property
    def variation_fields_missing(self) -> tuple[str, ...]:
        """Return the fields that the variations' own routes do not show."""
        if self.number >= (9, 2):
            return ()
        return ("type",) if self.number >= (8, 0) else ("type", "parent_id")


@dataclass(slots=True, kw_only=True)
class Shop:
    """Everything that one shop knows."""

    clock: Clock
    version: Version = field(default_factory=lambda: Version("10.5.0"))
    home_url: str = "http://127.0.0.1"
    settings: ShopSettings = field(default_factory=ShopSettings)
    keys: dict[str, ApiKey] = field(default_factory=dict)
    nonces: Nonces = field(default_factory=Nonces)
    faults: Faults = field(default_factory=Faults)
    lock: threading.RLock = field(default_factory=threading.RLock)
    products: dict[int, Product] = field(default_factory=dict)
    listed: list[int] = field(default_factory=list)
    by_sku: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    orders: dict[int, Order] = field(default_factory=dict)
    reservations: dict[int, list[Reservation]] = field(default_factory=dict)
    carts: dict[str, dict[int, int]] = field(default_factory=dict)
    drafts: dict[str, int] = field(default_factory=dict)
    webhooks: dict[int, Webhook] = field(default_factory=dict)
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    pings: deque[int] = field(default_factory=deque)
    pages: dict[tuple[str, str], list[Product]] = field(default_factory=dict)
    """Sorted catalogues for lists without a filter; emptied whenever a product comes, goes or changes its status."""
    next_post_id: int = 11
    next_line_id: int = 1
    next_webhook_id: int = 1
    store_calls: deque[float] = field(default_factory=deque)
    log: deque[Logged] = field(default_factory=lambda: deque(maxlen=LOG_MAX))
    writing: dict[int, int] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)
    stored: dict[int, tuple[int | float | None, str]] = field(default_factory=dict)
    before: dict[int, tuple[int | float | None, str]] = field(default_factory=dict)
    """Quantity and status of each written product, and those before its last write (what a lagging cache shows)."""
    listeners: list[Callable[[Product], None]] = field(default_factory=list)
    """Called after a product was stored, with the lock held: a test watches what the shop shows over time."""

    # --- products

    def take_post_id(self) -> int:
        """Return the next id; products, orders and refunds share one row of numbers."""
        taken = self.next_post_id
        self.next_post_id += 1
        return taken

    def add(
        self,
        sku: str,
        quantity: int | None = None,
        *,
        kind: str = "simple",
        parent: int = 0,
        product_id: int | None = None,
        name: str = "",
        manage_stock: bool | None = None,
        price: str = "10.00",
    ) -> Product:
        """Put a product into the shop; with a quantity its stock is managed. For setting the scene."""
        with self.lock:
            identity = self.take_post_id() if product_id is None else product_id
            self.next_post_id = max(self.next_post_id, identity + 1)
            now_s = self.clock()
            product = Product(
                id=identity,
                sku=sku,
                name=name or sku,
                type=kind,
                parent_id=parent,
                manage_stock=quantity is not None if manage_stock is None else manage_stock,
                quantity=quantity,
                price=price,
                created_s=now_s,
                modified_s=now_s,
            )
            self.products[identity] = product
            self.pages.clear()
            self.by_sku[sku.lower()].append(identity)
            if kind == VARIATION:
                self.products[parent].variations.append(identity)
            else:
                self.listed.append(identity)
            self.store(product, tell=False)
            return product

    def remove(self, product: Product) -> None:
        """Delete a product for good."""
        self.products.pop(product.id, None)
        self.pages.clear()
        self.by_sku[product.sku.lower()].remove(product.id)
        if product.id in self.listed:
            self.listed.remove(product.id)
        parent = self.products.get(product.parent_id)
        if parent is not None and product.id in parent.variations:
            parent.variations.remove(product.id)

    def rename(self, product: Product, sku: str) -> None:
        """Give a product another sku."""
        self.by_sku[product.sku.lower()].remove(product.id)
        product.sku = sku
        self.by_sku[sku.lower()].append(product.id)

    def move(self, variation: Product, parent: int) -> None:
        """Hang a product under another parent, as old versions do unasked."""
        before = self.products.get(variation.parent_id)
        if before is not None and variation.id in before.variations:
            before.variations.remove(variation.id)
        variation.parent_id = parent
        after = self.products.get(parent)
        if after is not None and variation.type == VARIATION:
            after.variations.append(variation.id)

    def find(self, sku: str) -> list[Product]:
        """Return the products and variations with this sku; case does not count, as in the shop's database."""
        return [self.products[identity] for identity in self.by_sku.get(sku.lower(), ())]

    def parent_of(self, product: Product) -> Product | None:
        """Return a variation's parent."""
        return self.products.get(product.parent_id) if product.parent_id else None

    def keeper(self, product: Product) -> Product:
        """Return the product whose stock a sale takes."""
        return effective(product, self.parent_of(product))

    def family(self, parent: Product) -> list[Product]:
        """Return a variable product's variations."""
        return [self.products[identity] for identity in parent.variations]

    def store(self, product: Product, *, tell: bool = True, torn: bool = False) -> None:
        """Save a product: derive its status (unless the save is torn), sync its family, stamp it, tell the webhooks."""
        if not torn:
            derive_status(product, self.settings)
        product.modified_s = self.clock()
        if product.type == VARIABLE:
            sync_family(product, self.family(product))
        parent = self.parent_of(product)
        if parent is not None and product.type == VARIATION:
            sync_family(parent, self.family(parent))
        if product.id in self.stored:
            self.before[product.id] = self.stored[product.id]
        self.stored[product.id] = (product.quantity, product.stock_status)
        if tell:
            self.notify("product.updated", product.id)
        for listener in self.listeners:
            listener(product)

    # --- telling others

    def notify(self, topic: str, resource_id: int) -> None:
        """Queue a delivery for each active webhook of the topic; the same one waits only once."""
        for hook in self.webhooks.values():
            if hook.topic == topic and hook.status == "active":
                entry = (hook.id, resource_id)
                if entry not in hook.waiting:
                    hook.waiting.add(entry)
                    self.queue.append(entry)

    # --- writes under way

    def begin_writes(self, ids: Iterable[int]) -> None:
        """Note that products are being written; a second writer of one is an overlap."""
        for identity in ids:
            self.writing[identity] = self.writing.get(identity, 0) + 1
            if self.writing[identity] == 2:
                self.overlaps.append(Overlap(at_s=self.clock(), product_id=identity))

    def end_writes(self, ids: Iterable[int]) -> None:
        """Note that the request is over."""
        for identity in ids:
            left = self.writing.get(identity, 0) - 1
            if left > 0:
                self.writing[identity] = left
            else:
                self.writing.pop(identity, None)

    # --- questions of tests

    def stock(self, sku: str) -> int | float | None:
        """Return the quantity that the shop keeps for a sku. Raises KeyError where it is unknown or twice there."""
        with self.lock:
            found = self.find(sku)
            if len(found) != 1:
                raise KeyError(sku)
            return self.keeper(found[0]).quantity
