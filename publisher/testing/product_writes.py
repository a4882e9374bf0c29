"""What a write does to a product's stock fields: the schema of a single write, and the looseness of a batch."""

from __future__ import annotations

from publisher.testing import php
from publisher.testing.shop import Shop
from publisher.testing.stock import EXTERNAL, GROUPED, STOCK_STATUSES, TYPES, VARIATION, Product
from publisher.testing.wire import Json, RestError, invalid_param

BACKORDERS = ("no", "notify", "yes")
POST_STATUSES = ("draft", "pending", "private", "publish", "future", "auto-draft", "trash")


class Refuse(Exception):
    """PHP ends in the middle of the request: what was stored stays, and the answer is 500."""


def checked(params: Json) -> Json:
    """Return the fields of a single write after the schema; null becomes what the shop makes of it.

    Raises RestError for a value of the wrong type. Unknown fields are ignored later.
    """
    change = dict(params)
    for name in ("stock_quantity", "low_stock_amount"):
        if name in change:
            value = change[name]
            if value is None:
                change[name] = 0 if name == "stock_quantity" else None
            elif not php.is_numeric(value):
                raise invalid_param(name, f"{name} is not of type integer.")
    if change.get("manage_stock", False) is None:
        change["manage_stock"] = False
    if "manage_stock" in change and change["manage_stock"] != "parent":
        if not php.is_boolean(change["manage_stock"]):
            raise invalid_param("manage_stock", "manage_stock is not of type boolean.")
        change["manage_stock"] = php.schema_bool(change["manage_stock"])
    for name, allowed in (("backorders", BACKORDERS), ("stock_status", STOCK_STATUSES), ("type", TYPES)):
        value = change.get(name)
        if value is not None and value not in allowed:
            raise invalid_param(name, f"{name} is not one of {', '.join(allowed)}.", "rest_not_in_enum")
        if name in change and value is None:
            change.pop(name)
    return change


def check_whole(shop: Shop, change: Json) -> None:
    """Raise RestError for a quantity with a fraction, where the shop's schema wants whole units."""
    quantity = change.get("stock_quantity")
    if quantity is not None and shop.settings.whole_units and not php.is_integer(quantity):
        raise invalid_param("stock_quantity", "stock_quantity is not of type integer.")


def apply_change(shop: Shop, product: Product, change: Json, *, batch: bool) -> None:
    """Set a product's fields from a write. Raises RestError, with nothing changed."""
    if not batch:
        check_whole(shop, change)
    settings = shop.settings
    if product.type == EXTERNAL and settings.manage_stock and _manage(change, batch=batch):
        text = "External products cannot be stock managed."
        raise RestError("product_external_invalid_manage_stock", text, 400)
    if change.get("sku"):
        shop.rename(product, str(change["sku"]))
    if change.get("status") in POST_STATUSES:
        product.post_status = str(change["status"])
        shop.pages.clear()
    if change.get("regular_price") is not None:
        product.price = str(change["regular_price"])
    if change.get("name"):
        product.name = str(change["name"])
    if not settings.manage_stock or product.type in (GROUPED, EXTERNAL):
        return
    managed = _manage(change, batch=batch)
    if managed is not None:
        product.manage_stock = managed
    if product.type == VARIATION and change.get("manage_stock") == "parent":
        product.manage_stock = False
    if change.get("backorders") is not None:
        product.backorders = str(change["backorders"])
    if product.manage_stock:
        _set_quantity(shop, product, change)
    elif change.get("stock_status") is not None:
        status = str(change["stock_status"])
        product.stock_status = status if status in STOCK_STATUSES else "instock"
    if "low_stock_amount" in change:
        low = change["low_stock_amount"]
        product.low_stock_amount = None if low is None or low == "" else php.to_int(low)


def _manage(change: Json, *, batch: bool) -> bool | None:
    """Return what the write says of stock management, None where it says nothing."""
    raw = change.get("manage_stock")
    if raw is None or raw == "parent":
        return None
    return php.string_to_bool(raw) if batch else bool(raw)


def _set_quantity(shop: Shop, product: Product, change: Json) -> None:
    """Set the quantity; a relative change counts only without an absolute one."""
    cast = php.to_int if shop.settings.whole_units else php.to_decimal
    if change.get("stock_quantity") is not None:
        product.quantity = cast(change["stock_quantity"])
    elif change.get("inventory_delta") is not None:
        product.quantity = cast(change["inventory_delta"]) + (product.quantity or 0)
