"""Orders by REST and as shoppers make them, and what each transition does to stock.

Taken once on the way into processing, on-hold or completed; given back on the way to cancelled or pending; a refund
with lines gives back unless told not to; failed, refunded, trash and deletion give nothing back. Inside the shop each
of these is atomic, as it is in the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from publisher.testing import php
from publisher.testing.clock import stamp
from publisher.testing.order_state import GIVING_BACK, ORDER_STATUSES, TAKING, Line, Order, Refund
from publisher.testing.product_writes import Refuse
from publisher.testing.products import Handler, Reply, Request, linked
from publisher.testing.shop import Shop
from publisher.testing.stock import VARIATION, Product
from publisher.testing.wire import Json, RestError, Step, Work, invalid_param

ORDER_WORK = 8.0
"""How many stored products an order costs the machine, about (24 orders of one line took 2 s in 4 connections)."""


def order_view(shop: Shop, order: Order) -> Json:
    """Return an order as JSON: what concerns stock, and the shape of the rest without any person's data."""
    return {
        "id": order.id,
        "parent_id": 0,
        "number": str(order.id),
        "status": order.status,
        "currency": "EUR",
        "version": shop.version.text,
        "date_created": stamp(order.created_s),
        "date_created_gmt": stamp(order.created_s),
        "date_modified": stamp(order.modified_s),
        "date_modified_gmt": stamp(order.modified_s),
        "date_paid": None if order.paid_s is None else stamp(order.paid_s),
        "date_paid_gmt": None if order.paid_s is None else stamp(order.paid_s),
        "total": f"{order.total:.2f}",
        "customer_id": 0,
        "billing": {
            "first_name": "",
            "last_name": "",
            "address_1": "",
            "city": "",
            "postcode": "",
            "email": "",
        },
        "shipping": {"first_name": "", "last_name": "", "address_1": "", "city": "", "postcode": ""},
        "payment_method": "",
        "transaction_id": order.transaction_id,
        "created_via": order.created_via,
        "customer_note": order.customer_note,
        "meta_data": [{"id": i, "key": k, "value": v} for i, (k, v) in enumerate(order.meta.items(), 1)],
        "line_items": [_line_view(line) for line in order.lines],
        "tax_lines": [],
        "shipping_lines": [],
        "fee_lines": [],
        "coupon_lines": [],
        "refunds": [
            {"id": refund.id, "reason": "", "total": f"-{refund.amount}"} for refund in order.refunds
        ],
    }


def refund_view(order: Order, refund: Refund) -> Json:
    """Return a refund as JSON; its lines have negative quantities and name the order's line."""
    by_id = {line.id: line for line in order.lines}
    lines = []
    for line_id, quantity in refund.lines:
        line = by_id.get(line_id)
        if line is not None:
            meta = [{"id": 0, "key": "_refunded_item_id", "value": str(line_id)}]
            lines.append({**_line_view(line), "id": line_id + 1, "quantity": -quantity, "meta_data": meta})
    return {
        "id": refund.id,
        "date_created_gmt": stamp(refund.created_s),
        "amount": refund.amount,
        "line_items": lines,
    }


def _line_view(line: Line) -> Json:
    return {
        "id": line.id,
        "name": line.name,
        "product_id": line.product_id,
        "variation_id": line.variation_id,
        "quantity": line.quantity,
        "sku": line.sku,
        "price": line.price,
        "total": f"{line.quantity * line.price:.2f}",
        "meta_data": [{"id": line.id, "key": "_reduced_stock", "value": str(line.taken)}]
        if line.taken
        else [],
    }


# --- state


def new_line(shop: Shop, raw: Mapping[str, object]) -> Line:
    """Return a line for what was ordered; an unknown product becomes a line of product 0."""
    product = _ordered(shop, raw)
    line_id, shop.next_line_id = shop.next_line_id, shop.next_line_id + 1
    variation = product is not None and product.type == VARIATION
    return Line(
        id=line_id,
        product_id=0 if product is None else (product.parent_id if variation else product.id),
        variation_id=product.id if product is not None and variation else 0,
        sku=None if product is None else product.sku,
        name="" if product is None else product.name,
        quantity=php.to_int(raw.get("quantity", 1)),
        price=0.0 if product is None else float(product.price or 0),
    )


def _ordered(shop: Shop, raw: Mapping[str, object]) -> Product | None:
    for name in ("variation_id", "product_id"):
        if raw.get(name):
            return shop.products.get(php.to_int(raw[name]))
    found = shop.find(str(raw["sku"])) if raw.get("sku") else []
    return found[0] if found else None


def place_order(
    shop: Shop,
    lines: Iterable[Mapping[str, object]],
    *,
    status: str = "processing",
    created_via: str = "checkout",
    meta: Mapping[str, str] | None = None,
) -> Order:
    """Make an order as it stands after a checkout. Stock is taken where the status takes it."""
    with shop.lock:
        now_s = shop.clock()
        order = Order(
            id=shop.take_post_id(),
            status="pending",
            created_via=created_via,
            created_s=now_s,
            modified_s=now_s,
            lines=[new_line(shop, raw) for raw in lines],
            meta=dict(meta or {}),
        )
        shop.orders[order.id] = order
        if created_via == "store-api":
            shop.notify("order.updated", order.id)
            shop.notify("order.created", order.id)
        else:
            shop.notify("order.created", order.id)
        set_status(shop, order, status)
        return order


def set_status(shop: Shop, order: Order, status: str) -> None:
    """Move an order to a status, with everything that follows from it."""
    with shop.lock:
        order.modified_s = shop.clock()
        entered, order.status = status != order.status, status
        if status != "pending":
            shop.reservations.pop(order.id, None)
        if status in TAKING and not order.stock_reduced:
            _take(shop, order)
        elif status in GIVING_BACK and order.stock_reduced:
            _give_back(shop, order)
        if status in ("processing", "completed") and order.paid_s is None and order.total > 0:
            order.paid_s = shop.clock()
        if entered and status == "refunded" and not order.refunds:
            amount = f"{order.total:.2f}"
            order.refunds.append(Refund(id=shop.take_post_id(), amount=amount, created_s=shop.clock()))
        shop.notify("order.updated", order.id)


def _take(shop: Shop, order: Order) -> None:
    order.stock_reduced = True
    for line in order.lines:
        _move(shop, line, line.quantity)


def _give_back(shop: Shop, order: Order) -> None:
    order.stock_reduced = False
    for line in order.lines:
        _move(shop, line, -line.taken)


def _move(shop: Shop, line: Line, quantity: int) -> None:
    """Take units of a line from stock (below 0: give back), where the shop keeps stock of it."""
    product = shop.products.get(line.stock_id)
    if product is None or not quantity or not (shop.settings.manage_stock and shop.settings.reduces_stock):
        return
    keeper = shop.keeper(product)
    if not keeper.manage_stock:
        return
    keeper.quantity = (keeper.quantity or 0) - quantity
    line.taken += quantity
    shop.store(keeper)


def edit_lines(shop: Shop, order: Order, changes: Iterable[Mapping[str, object]]) -> None:
    """Change, add or (quantity 0) remove lines; newer versions move stock by the difference."""
    moves = order.stock_reduced and shop.version.edits_move_stock
    by_id = {line.id: line for line in order.lines}
    for raw in changes:
        line = by_id.get(php.to_int(raw.get("id"))) if raw.get("id") else None
        if line is None:
            line = new_line(shop, raw)
            order.lines.append(line)
        elif "quantity" in raw:
            line.quantity = php.to_int(raw["quantity"])
        if moves:
            _move(shop, line, line.quantity - line.taken)
        if line.quantity == 0:
            order.lines.remove(line)


def refund_order(
    shop: Shop,
    order: Order,
    lines: Iterable[tuple[int, int]],
    *,
    amount: float | None = None,
    restock: bool = True,
) -> Refund:
    """Refund lines (order line id, quantity) or an amount; a refund of everything closes the order."""
    with shop.lock:
        by_id = {line.id: line for line in order.lines}
        wanted = [(line_id, quantity) for line_id, quantity in lines if line_id in by_id and quantity]
        if amount is None:
            amount = sum(by_id[line_id].price * quantity for line_id, quantity in wanted)
        refund = Refund(id=shop.take_post_id(), amount=f"{amount:.2f}", created_s=shop.clock(), lines=wanted)
        shop.next_line_id += len(wanted)
        order.refunds.append(refund)
        order.modified_s = shop.clock()
        if restock and order.stock_reduced:
            for line_id, quantity in wanted:
                line = by_id[line_id]
                _move(shop, line, -min(quantity, line.taken))
        if sum(float(one.amount) for one in order.refunds) >= order.total > 0 and order.status != "refunded":
            set_status(shop, order, "refunded")
        else:
            shop.notify("order.updated", order.id)
        return refund


def trash_order(shop: Shop, order: Order) -> None:
    """Put an order into the trash; stock stays taken, and the webhook knows only the id."""
    with shop.lock:
        order.status = "trash"
        order.modified_s = shop.clock()
        shop.reservations.pop(order.id, None)
        shop.notify("order.deleted", order.id)


def delete_order(shop: Shop, order: Order) -> None:
    """Delete an order for good: no stock back, and nobody is told."""
    with shop.lock:
        shop.orders.pop(order.id, None)
        shop.reservations.pop(order.id, None)


def cancel_unpaid(shop: Shop) -> list[int]:
    """Run the shop's job that cancels unpaid orders; those of the block checkout stay pending for ever."""
    with shop.lock:
        before = shop.clock() - shop.settings.hold_stock_minutes * 60
        due = [
            order
            for order in shop.orders.values()
            if order.status == "pending" and order.created_via == "checkout" and order.modified_s < before
        ]
        for order in due:
            set_status(shop, order, "cancelled")
        return [order.id for order in due]


# --- REST


def find_order(shop: Shop, raw_id: object) -> Order:
    """Return an order. Raises RestError."""
    order = shop.orders.get(php.to_int(raw_id))
    if order is None:
        raise RestError("woocommerce_rest_shop_order_invalid_id", "Invalid ID.", 404)
    return order


def get_order(request: Request, raw_id: str) -> Handler:
    """GET /orders/{id}."""
    yield Step(Work.READ_ITEM)
    order = find_order(request.shop, raw_id)
    return Reply(body=linked(request.shop, order_view(request.shop, order), "orders"))


def post_order(request: Request) -> Handler:
    """POST /orders."""
    yield Step(Work.WRITE_ITEM, ORDER_WORK)
    order = _created(request.shop, request.params)
    body = linked(request.shop, order_view(request.shop, order), "orders")
    return Reply(status=201, body=body)


def batch_orders(request: Request) -> Handler:
    """POST /orders/batch: creations and updates."""
    shop = request.shop
    results: dict[str, list[Json]] = {}
    for raw in request.params.get("create") or []:
        yield Step(Work.WRITE_ITEM, ORDER_WORK)
        results.setdefault("create", []).append(order_view(shop, _created(shop, raw)))
    for raw in request.params.get("update") or []:
        yield Step(Work.WRITE_ITEM, ORDER_WORK)
        order = find_order(shop, raw.get("id"))
        _update(shop, order, raw)
        results.setdefault("update", []).append(order_view(shop, order))
    return Reply(body=results or [])


def put_order(request: Request, raw_id: str) -> Handler:
    """PUT /orders/{id}."""
    yield Step(Work.WRITE_ITEM, ORDER_WORK)
    shop = request.shop
    order = find_order(shop, raw_id)
    _update(shop, order, request.params)
    return Reply(body=linked(shop, order_view(shop, order), "orders"))


def delete_order_call(request: Request, raw_id: str) -> Handler:
    """DELETE /orders/{id}: shows the order as it was before."""
    yield Step(Work.WRITE_ITEM, ORDER_WORK)
    shop = request.shop
    order = find_order(shop, raw_id)
    shown = linked(shop, order_view(shop, order), "orders")
    if php.schema_bool(request.params.get("force", False)):
        delete_order(shop, order)
    else:
        trash_order(shop, order)
    return Reply(body=shown)


def post_refund(request: Request, raw_id: str) -> Handler:
    """POST /orders/{id}/refunds."""
    yield Step(Work.WRITE_ITEM, ORDER_WORK)
    shop, params = request.shop, request.params
    order = find_order(shop, raw_id)
    lines = [
        (php.to_int(raw.get("id")), php.to_int(raw.get("quantity", 0)))
        for raw in params.get("line_items") or []
    ]
    amount = float(php.to_number(params["amount"])) if "amount" in params else None
    refund = refund_order(
        shop, order, lines, amount=amount, restock=params.get("api_restock", True) is not False
    )
    return Reply(status=201, body=refund_view(order, refund))


def get_refunds(request: Request, raw_id: str) -> Handler:
    """GET /orders/{id}/refunds."""
    order = find_order(request.shop, raw_id)
    yield Step(Work.READ_ITEM, max(1, len(order.refunds)))
    return Reply(body=[refund_view(order, refund) for refund in order.refunds])


def _created(shop: Shop, params: Json) -> Order:
    _check(params)
    lines = params.get("line_items") or []
    if any(php.to_int(raw.get("quantity", 1)) == 0 for raw in lines):
        raise Refuse
    status = params.get("status") or "pending"
    if params.get("set_paid") is True:
        status = "processing"
    order = place_order(shop, lines, status=status, created_via="rest-api")
    order.customer_note = str(params.get("customer_note", ""))
    return order


def _update(shop: Shop, order: Order, params: Json) -> None:
    _check(params)
    with shop.lock:
        order.customer_note = str(params.get("customer_note", order.customer_note))
        edit_lines(shop, order, params.get("line_items") or [])
        status = params.get("status") or order.status
        if params.get("set_paid") is True and order.paid_s is None:
            status = "processing"
        set_status(shop, order, status)


def _check(params: Json) -> None:
    status = params.get("status")
    if status is not None and status not in ORDER_STATUSES:
        raise invalid_param(
            "status", f"status is not one of {', '.join(ORDER_STATUSES)}.", "rest_not_in_enum"
        )
    for index, raw in enumerate(params.get("line_items") or []):
        if "quantity" in raw and not php.is_integer(raw["quantity"]):
            reason = f"line_items[{index}][quantity] is not of type integer."
            raise invalid_param("line_items", reason)
