"""Products and their stock as the shop derives it: the status from the quantity, the parent's from its children.

Pure state, no HTTP. All rules are as recorded (tests/exchanges).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from publisher.testing.clock import stamp
from publisher.testing.wire import Json

SIMPLE, VARIABLE, GROUPED, EXTERNAL, VARIATION = "simple", "variable", "grouped", "external", "variation"
TYPES = (SIMPLE, GROUPED, EXTERNAL, VARIABLE)
IN_STOCK, OUT_OF_STOCK, ON_BACKORDER = "instock", "outofstock", "onbackorder"
STOCK_STATUSES = (IN_STOCK, OUT_OF_STOCK, ON_BACKORDER)

_REST_OF_A_PRODUCT: Json = {
    "featured": False,
    "catalog_visibility": "visible",
    "description": "",
    "short_description": "",
    "sale_price": "",
    "date_on_sale_from": None,
    "date_on_sale_from_gmt": None,
    "date_on_sale_to": None,
    "date_on_sale_to_gmt": None,
    "on_sale": False,
    "total_sales": 0,
    "virtual": True,
    "downloadable": False,
    "downloads": [],
    "download_limit": -1,
    "download_expiry": -1,
    "external_url": "",
    "button_text": "",
    "tax_status": "taxable",
    "tax_class": "",
    "sold_individually": False,
    "weight": "",
    "dimensions": {"length": "", "width": "", "height": ""},
    "shipping_required": False,
    "shipping_taxable": False,
    "shipping_class": "",
    "shipping_class_id": 0,
    "reviews_allowed": True,
    "average_rating": "0.00",
    "rating_count": 0,
    "upsell_ids": [],
    "cross_sell_ids": [],
    "purchase_note": "",
    "categories": [{"id": 15, "name": "Uncategorized", "slug": "uncategorized"}],
    "brands": [],
    "tags": [],
    "images": [],
    "attributes": [],
    "default_attributes": [],
    "grouped_products": [],
    "menu_order": 0,
    "price_html": '<span class="woocommerce-Price-amount amount"><bdi>10.00</bdi></span>',
    "related_ids": [],
    "meta_data": [],
    "has_options": False,
    "post_password": "",
    "global_unique_id": "",
}


@dataclass(slots=True, kw_only=True)
class Product:
    """A product or a variation. ``quantity`` is None where none is kept."""

    id: int
    sku: str
    name: str = ""
    type: str = SIMPLE
    parent_id: int = 0
    post_status: str = "publish"
    manage_stock: bool = False
    quantity: int | float | None = None
    stock_status: str = IN_STOCK
    backorders: str = "no"
    low_stock_amount: int | None = None
    price: str = "10.00"
    created_s: float = 0.0
    modified_s: float = 0.0
    variations: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ShopSettings:
    """What a merchant can set that matters for stock.

    ``reduces_stock`` off is a shop whose own reduction is switched off by a filter, because another system counts.
    ``whole_units`` off is a shop with decimal quantities. ``store_limit`` is (requests, seconds) of the Store API.
    """

    manage_stock: bool = True
    no_stock_amount: int = 0
    hold_stock_minutes: int = 60
    reduces_stock: bool = True
    whole_units: bool = True
    store_limit: tuple[int, float] | None = None


def shown_quantity(product: Product, settings: ShopSettings) -> int | float | None:
    """Return the quantity as the shop's setting for decimals shows it."""
    quantity = product.quantity
    if quantity is None or not settings.whole_units:
        return quantity
    return int(quantity)


def derive_status(product: Product, settings: ShopSettings) -> None:
    """Set what follows from the product's own stock fields, as the shop does at every save."""
    if not product.manage_stock:
        product.quantity, product.low_stock_amount, product.backorders = None, None, "no"
        return
    if product.quantity is None:
        return
    product.stock_status = status_of(product, settings)


def status_of(product: Product, settings: ShopSettings) -> str:
    """Return the status that the quantity asks for. Parts of a unit do not count (0.3 is out of stock)."""
    if int(product.quantity or 0) > settings.no_stock_amount:
        return IN_STOCK
    return OUT_OF_STOCK if product.backorders == "no" else ON_BACKORDER


def sync_family(parent: Product, children: list[Product]) -> None:
    """Bring a variable product and its variations into line after either was saved.

    A parent that manages stock gives its status to the children without stock of their own; one that does not
    is in stock as soon as one child is.
    """
    if parent.manage_stock:
        for child in children:
            if not child.manage_stock:
                child.stock_status = parent.stock_status
        return
    statuses = {child.stock_status for child in children}
    parent.stock_status = next(
        (status for status in (IN_STOCK, ON_BACKORDER) if status in statuses), OUT_OF_STOCK
    )


def effective(product: Product, parent: Product | None) -> Product:
    """Return whose stock a sale of the product takes: its own, or the parent's where that manages it."""
    if product.type == VARIATION and not product.manage_stock and parent is not None and parent.manage_stock:
        return parent
    return product


def product_view(product: Product, parent: Product | None, settings: ShopSettings, base_url: str) -> Json:
    """Return the product as GET /products/{id} shows it, complete, about 2 kB as JSON."""
    keeper = effective(product, parent)
    managed: bool | str = product.manage_stock and settings.manage_stock
    if keeper is not product and settings.manage_stock:
        managed = "parent"
    quantity = shown_quantity(keeper, settings)
    slug = product.name.lower().replace(" ", "-")
    view: dict[str, Any] = {
        "id": product.id,
        "name": product.name,
        "slug": slug,
        "permalink": f"{base_url}/product/{slug}/",
        "date_created": stamp(product.created_s),
        "date_created_gmt": stamp(product.created_s),
        "date_modified": stamp(product.modified_s),
        "date_modified_gmt": stamp(product.modified_s),
        "type": product.type,
        "status": product.post_status,
        "sku": product.sku,
        "price": product.price,
        "regular_price": product.price,
        "purchasable": True,
        "manage_stock": managed,
        "stock_quantity": quantity,
        "backorders": keeper.backorders,
        "backorders_allowed": keeper.backorders != "no",
        "backordered": keeper.stock_status == ON_BACKORDER,
        "low_stock_amount": keeper.low_stock_amount,
        "parent_id": product.parent_id,
        "variations": list(product.variations),
        "stock_status": keeper.stock_status,
        **_REST_OF_A_PRODUCT,
    }
    return view
