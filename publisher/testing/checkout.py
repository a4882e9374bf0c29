"""The block checkout (Store API): carts, drafts, and pending orders that reserve units for a while.

Also ``buy``: a shopper in one call, for simulations. The shop offers what it has minus what pending orders reserve,
and never sells more than it offers; what it shows by REST does not contain the reservations.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from publisher.testing import php
from publisher.testing.order_state import Order, Reservation
from publisher.testing.orders import new_line, place_order, set_status
from publisher.testing.products import Handler, Reply, Request, find_product
from publisher.testing.shop import Shop
from publisher.testing.stock import OUT_OF_STOCK, Product
from publisher.testing.wire import RestError, Step, Work

TOKEN_HEADER = "cart-token"
UNLIMITED = 9999
GATEWAYS = {"cod": "processing", "bacs": "on-hold", "pendinggw": "pending", "failgw": "pending"}
"""Ways to pay, and the status in which they leave an order; ``failgw`` declines."""


def offered(shop: Shop, product: Product, *, without_order: int = 0) -> int:
    """Return how many units a shopper can put into an order now."""
    keeper = shop.keeper(product)
    if product.post_status != "publish" or keeper.stock_status == OUT_OF_STOCK:
        return 0
    if not (keeper.manage_stock and shop.settings.manage_stock) or keeper.backorders != "no":
        return UNLIMITED
    now_s = shop.clock()
    held = sum(
        reservation.quantity
        for order_id, reservations in shop.reservations.items()
        if order_id != without_order
        for reservation in reservations
        if reservation.product_id == keeper.id and reservation.expires_s > now_s
    )
    return max(0, int(keeper.quantity or 0) - held)


def buy(
    shop: Shop,
    basket: Mapping[str, int],
    *,
    status: str = "processing",
    created_via: str = "checkout",
    meta: Mapping[str, str] | None = None,
) -> Order | None:
    """Place an order for skus, or return None where the shop does not offer that many."""
    with shop.lock:
        lines = []
        for sku, quantity in basket.items():
            found = shop.find(sku)
            if not found or offered(shop, found[0]) < quantity:
                return None
            lines.append({"product_id": found[0].id, "quantity": quantity})
        order = place_order(shop, lines, status=status, created_via=created_via, meta=meta)
        if status == "pending":
            reserve(shop, order)
        return order


def reserve(shop: Shop, order: Order) -> None:
    """Keep a pending order's units from other shoppers for the shop's hold time."""
    until_s = shop.clock() + shop.settings.hold_stock_minutes * 60
    kept = []
    for line in order.lines:
        product = shop.products.get(line.stock_id)
        if product is not None and shop.keeper(product).manage_stock:
            keeper = shop.keeper(product)
            kept.append(Reservation(product_id=keeper.id, quantity=line.quantity, expires_s=until_s))
    shop.reservations[order.id] = kept


# --- Store API


def store_product(request: Request, raw_id: str) -> Handler:
    """GET /wc/store/v1/products/{id}: what a shopper may buy."""
    yield Step(Work.READ_ITEM)
    product = find_product(request.shop, raw_id)
    return Reply(body=_store_view(request.shop, product))


def store_products(request: Request) -> Handler:
    """GET /wc/store/v1/products."""
    shop = request.shop
    per_page, page = int(request.query.get("per_page", 10)), int(request.query.get("page", 1))
    rows = [shop.products[i] for i in reversed(shop.listed)]
    yield Step(Work.READ_ITEM, per_page)
    total = {"X-WP-Total": str(len(rows)), "X-WP-TotalPages": str(-(-len(rows) // per_page))}
    cut = rows[(page - 1) * per_page : page * per_page]
    return Reply(body=[_store_view(shop, product) for product in cut], headers=total)


def _store_view(shop: Shop, product: Product) -> dict[str, object]:
    most = offered(shop, product)
    return {
        "id": product.id,
        "name": product.name,
        "sku": product.sku,
        "is_in_stock": most > 0,
        "is_on_backorder": product.stock_status == "onbackorder",
        "low_stock_remaining": None,
        "add_to_cart": {"minimum": 1, "maximum": most, "multiple_of": 1},
    }


def get_cart(request: Request) -> Handler:
    """GET /cart: opens one and names it in Cart-Token."""
    yield Step(Work.READ_ITEM)
    token = request.headers.get(TOKEN_HEADER) or secrets.token_hex(16)
    cart = request.shop.carts.setdefault(token, {})
    headers = {"Cart-Token": token, "Nonce": "02e9f2634e"}
    return Reply(body={"items_count": sum(cart.values()), "errors": []}, headers=headers)


def add_item(request: Request) -> Handler:
    """POST /cart/add-item."""
    yield Step(Work.READ_ITEM)
    shop, params = request.shop, request.params
    product = find_product(shop, params.get("id"))
    cart = shop.carts.setdefault(request.headers.get(TOKEN_HEADER, ""), {})
    wanted = cart.get(product.id, 0) + php.to_int(params.get("quantity", 1))
    most = offered(shop, product)
    if wanted > most:
        text = (
            f"You cannot add that amount of &quot;{product.name}&quot; to the cart because there is not enough "
            f"stock ({most} remaining)."
        )
        code = "partially_out_of_stock" if most else "out_of_stock"
        raise RestError(f"woocommerce_rest_product_{code}", text, 400)
    cart[product.id] = wanted
    return Reply(status=201, body={"items_count": sum(cart.values()), "errors": []})


def get_checkout(request: Request) -> Handler:
    """GET /checkout: makes the draft order, which reserves nothing."""
    yield Step(Work.WRITE_ITEM)
    shop = request.shop
    order = _draft(shop, request.headers.get(TOKEN_HEADER, ""))
    shop.notify("order.updated", order.id)
    return Reply(body=_checkout_view(order))


def post_checkout(request: Request) -> Handler:
    """POST /checkout: turns the cart into an order in the status that the way to pay leaves it in."""
    yield Step(Work.WRITE_ITEM, 4)
    shop, gateway = request.shop, str(request.params.get("payment_method", "cod"))
    token = request.headers.get(TOKEN_HEADER, "")
    cart = shop.carts.get(token, {})
    if not cart:
        text = "Cannot place an order, your cart is empty."
        raise RestError("woocommerce_rest_cart_empty", text, 409)
    order = _draft(shop, token)
    for product_id, quantity in cart.items():
        if quantity > offered(shop, shop.products[product_id], without_order=order.id):
            raise RestError("woocommerce_rest_cart_product_no_stock", "There is not enough stock.", 409)
    order.lines = [
        new_line(shop, {"product_id": product, "quantity": units}) for product, units in cart.items()
    ]
    shop.notify("order.updated", order.id)
    shop.notify("order.created", order.id)
    set_status(shop, order, GATEWAYS.get(gateway, "pending"))
    if gateway == "failgw":
        raise RestError("woocommerce_rest_checkout_process_payment_error", "card declined", 400)
    if order.status == "pending":
        reserve(shop, order)
    shop.carts.pop(token, None)
    shop.drafts.pop(token, None)
    return Reply(body=_checkout_view(order))


def _draft(shop: Shop, token: str) -> Order:
    """Return the cart's draft order, made if need be."""
    known = shop.orders.get(shop.drafts.get(token, 0))
    if known is not None:
        return known
    now_s = shop.clock()
    order = Order(
        id=shop.take_post_id(),
        status="checkout-draft",
        created_via="store-api",
        created_s=now_s,
        modified_s=now_s,
    )
    shop.orders[order.id] = order
    shop.drafts[token] = order.id
    return order


def _checkout_view(order: Order) -> dict[str, object]:
    return {"order_id": order.id, "status": order.status, "payment_result": {"payment_status": "success"}}
