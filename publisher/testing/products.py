"""Products by REST: the lists with their filters and paging, single reads and writes, and the batches.

``Request`` is what a handler sees of a call; handlers are generators that yield the work between two effects, so that
a batch is stored item by item while sales and other calls go on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from publisher.testing import php
from publisher.testing.faults import Active, Kind
from publisher.testing.product_writes import Refuse, apply_change, checked
from publisher.testing.shop import Shop
from publisher.testing.stock import VARIABLE, VARIATION, Product, product_view
from publisher.testing.wire import Json, RestError, Step, Work, no_route

BATCH_MAX = 100
Handler = Generator[Step, None, "Reply"]


@dataclass(slots=True, kw_only=True)
class Request:
    """A call after its parsing: ``params`` are body over query, as the shop merges them."""

    method: str
    path: str
    query: dict[str, str]
    params: Json
    shop: Shop
    faults: Active
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Reply:
    """What a handler answers."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def view(shop: Shop, product: Product, *, variation_route: bool = False) -> Json:
    """Return a product as JSON, as the route shows it."""
    shown = product_view(product, shop.parent_of(product), shop.settings, shop.home_url)
    if variation_route:
        for name in shop.version.variation_fields_missing:
            shown.pop(name, None)
    return shown


def read_view(request: Request, product: Product, *, variation_route: bool = False) -> Json:
    """Return a product as a read shows it, which may be what a lagging cache still holds."""
    shop = request.shop
    shown = view(shop, product, variation_route=variation_route)
    if request.faults.has(Kind.STALE_READ) and product.id in shop.before:
        shown["stock_quantity"], shown["stock_status"] = shop.before[product.id]
    return shown


def linked(shop: Shop, shown: Json, collection: str) -> Json:
    """Return a single answer with its links, which ``_fields`` does not remove."""
    url = f"{shop.home_url}/wp-json/wc/v3/{collection}"
    return {
        **shown,
        "_links": {"self": [{"href": f"{url}/{shown.get('id')}"}], "collection": [{"href": url}]},
    }


def find_product(shop: Shop, raw: object, *, status: int = 404) -> Product:
    """Return the product. Raises RestError for an id that is none."""
    product = shop.products.get(php.to_int(raw))
    if product is None:
        raise RestError("woocommerce_rest_product_invalid_id", "Invalid ID.", status)
    return product


def get_product(request: Request, raw_id: str) -> Handler:
    """GET /products/{id}; a variation is shown too, and so is a product in the trash."""
    yield Step(Work.READ_ITEM)
    shop = request.shop
    product = find_product(shop, raw_id)
    return Reply(body=linked(shop, read_view(request, product), "products"))


def put_product(request: Request, raw_id: str) -> Handler:
    """PUT /products/{id}: an ``id`` in the body wins over the one in the path."""
    shop = request.shop
    change = checked(request.params)
    product = find_product(shop, change.pop("id", raw_id))
    if product.type == VARIATION:
        raise _is_variation()
    yield from _stored_alone(request, product, change)
    return Reply(body=linked(shop, view(shop, product), "products"))


def post_product(request: Request) -> Handler:
    """POST /products."""
    yield Step(Work.WRITE_ITEM)
    shop = request.shop
    product = create(shop, checked(request.params))
    return Reply(status=201, body=linked(shop, view(shop, product), "products"))


def delete_product(request: Request, raw_id: str) -> Handler:
    """DELETE /products/{id}: into the trash, or for good with ``force``."""
    yield Step(Work.WRITE_ITEM)
    shop = request.shop
    product = find_product(shop, raw_id)
    shown = view(shop, product)
    if php.schema_bool(request.params.get("force", False)):
        shop.remove(product)
    else:
        product.post_status = "trash"
        shop.pages.clear()
    return Reply(body=linked(shop, shown, "products"))


def create(shop: Shop, change: Json) -> Product:
    """Make a product from a creation's fields. Raises RestError for a sku that is taken."""
    sku = str(change.get("sku", ""))
    check_sku(shop, sku, None)
    product = shop.add(
        sku,
        None,
        kind=str(change.get("type", "simple")),
        name=str(change.get("name", "")),
        manage_stock=False,
    )
    apply_change(shop, product, {name: value for name, value in change.items() if name != "sku"}, batch=True)
    shop.store(product, tell=False)
    shop.notify("product.created", product.id)
    return product


def check_sku(shop: Shop, sku: str, product: Product | None) -> None:
    """Raise RestError where another product has the sku."""
    if not sku:
        return
    for other in shop.find(sku):
        if product is None or other.id != product.id:
            raise RestError(
                "product_invalid_sku",
                "Invalid or duplicated SKU.",
                400,
                resource_id=other.id,
                unique_sku=f"{sku}-1",
            )


def batch_products(request: Request) -> Handler:
    """POST /products/batch: create, update and delete, item by item, each with a result of its own."""
    shop, params = request.shop, request.params
    creates, updates, deletes = (_items(params.get(name)) for name in ("create", "update", "delete"))
    _check_size(len(creates) + len(updates) + len(deletes))
    results: dict[str, list[Json]] = {}
    ids = [php.to_int(item.get("id")) for item in updates if isinstance(item, dict)]
    shop.begin_writes(ids)
    try:
        for item in creates:
            yield Step(Work.WRITE_ITEM)
            try:
                made = create(shop, dict(item) if isinstance(item, dict) else {})
                results.setdefault("create", []).append(view(shop, made))
            except RestError as error:
                results.setdefault("create", []).append({"id": 0, "error": error.body()})
        for index, item in enumerate(updates):
            results.setdefault("update", []).append((yield from _update_item(request, item, index)))
        for raw in deletes:
            yield Step(Work.WRITE_ITEM)
            results.setdefault("delete", []).append(_delete_item(shop, raw))
    finally:
        shop.end_writes(ids)
    return Reply(body=results or [])


def batch_variations(request: Request, raw_parent: str) -> Handler:
    """POST /products/{parent}/variations/batch; ``product_id`` inside an item overrides the parent of the path."""
    shop = request.shop
    creates, updates, deletes = (_items(request.params.get(name)) for name in ("create", "update", "delete"))
    _check_size(len(creates) + len(updates) + len(deletes))
    made: list[Json] = []
    for item in creates:
        yield Step(Work.WRITE_ITEM)
        fields_of = dict(item) if isinstance(item, dict) else {}
        variation = create_variation(shop, find_product(shop, raw_parent), fields_of)
        made.append(view(shop, variation, variation_route=True))
    results: list[Json] = []
    ids = [php.to_int(item.get("id")) for item in updates if isinstance(item, dict)]
    shop.begin_writes(ids)
    try:
        for index, item in enumerate(updates):
            fields_of = item if isinstance(item, dict) else {}
            parent = php.to_int(fields_of.get("product_id", raw_parent))
            try:
                found = variation_for_batch(shop, fields_of.get("id"), parent)
                change = {k: v for k, v in fields_of.items() if k not in ("id", "product_id")}
                yield from _stored(request, found, change, index=index, batch=True)
                results.append(view(shop, found, variation_route=True))
            except RestError as error:
                results.append({"id": _shown_id(fields_of), "error": error.body()})
    finally:
        shop.end_writes(ids)
    gone = [_delete_item(shop, raw) for raw in deletes]
    return Reply(body={k: v for k, v in (("create", made), ("update", results), ("delete", gone)) if v} or [])


def variation_for_batch(shop: Shop, raw_id: object, parent: int) -> Product:
    """Return the variation to write. Old versions move whatever has the id under the parent first."""
    product = shop.products.get(php.to_int(raw_id))
    right = product is not None and product.type == VARIATION and product.parent_id == parent
    if shop.version.checks_parents:
        if product is None or not right:
            raise RestError("woocommerce_rest_product_variation_invalid_id", "Invalid ID.", 404)
        return product
    if product is None:
        raise RestError("woocommerce_rest_product_variation_invalid_id", "Invalid ID.", 400)
    if not right:
        shop.move(product, parent)
    return product


def find_variation(shop: Shop, raw_parent: object, raw_id: object) -> Product:
    """Return the variation of a parent. Raises RestError."""
    product = shop.products.get(php.to_int(raw_id))
    if product is None or product.type != VARIATION or product.parent_id != php.to_int(raw_parent):
        raise RestError("woocommerce_rest_product_variation_invalid_id", "Invalid ID.", 404)
    return product


def get_variation(request: Request, raw_parent: str, raw_id: str) -> Handler:
    """GET /products/{parent}/variations/{id}."""
    yield Step(Work.READ_ITEM)
    shop = request.shop
    shown = read_view(request, find_variation(shop, raw_parent, raw_id), variation_route=True)
    return Reply(body=linked(shop, shown, f"products/{raw_parent}/variations"))


def put_variation(request: Request, raw_parent: str, raw_id: str) -> Handler:
    """PUT /products/{parent}/variations/{id}."""
    shop = request.shop
    product = find_variation(shop, raw_parent, raw_id)
    change = checked(request.params)
    change.pop("id", None)
    yield from _stored_alone(request, product, change)
    shown = view(shop, product, variation_route=True)
    return Reply(body=linked(shop, shown, f"products/{raw_parent}/variations"))


def post_variation(request: Request, raw_parent: str) -> Handler:
    """POST /products/{parent}/variations."""
    yield Step(Work.WRITE_ITEM)
    shop = request.shop
    parent = find_product(shop, raw_parent)
    shown = view(shop, create_variation(shop, parent, checked(request.params)), variation_route=True)
    return Reply(status=201, body=linked(shop, shown, f"products/{parent.id}/variations"))


def create_variation(shop: Shop, parent: Product, change: Json) -> Product:
    """Make a variation of a variable product. Raises RestError."""
    if parent.type != VARIABLE:
        raise no_route()
    sku = str(change.get("sku", ""))
    check_sku(shop, sku, None)
    made = shop.add(sku, None, kind=VARIATION, parent=parent.id)
    apply_change(shop, made, {name: value for name, value in change.items() if name != "sku"}, batch=True)
    shop.store(made)
    return made


def delete_variation(request: Request, raw_parent: str, raw_id: str) -> Handler:
    """DELETE /products/{parent}/variations/{id}: into the trash, or for good with ``force``."""
    find_variation(request.shop, raw_parent, raw_id)
    return (yield from delete_product(request, raw_id))


def _update_item(request: Request, item: object, index: int) -> Generator[Step, None, Json]:
    """Store one item of products/batch and return its result."""
    fields_of: Json = item if isinstance(item, dict) else {}
    shop = request.shop
    try:
        product = find_product(shop, fields_of.get("id"), status=400)
        if fields_of.get("type") == VARIATION and product.type != VARIATION:
            text = "Invalid product type: passed ID does not correspond to a product variation."
            raise RestError("variation_invalid_id", text, 400)
        if product.type == VARIATION:
            raise _is_variation()
        change = {name: value for name, value in fields_of.items() if name != "id"}
        if "sku" in change:
            check_sku(shop, str(change["sku"]), product)
        yield from _stored(request, product, change, index=index, batch=True)
        return view(shop, product)
    except RestError as error:
        return {"id": _shown_id(fields_of), "error": error.body()}


def _stored(
    request: Request, product: Product, change: Json, *, index: int, batch: bool
) -> Generator[Step, None, None]:
    """Do one write with what the call's faults make of it. Raises RestError, Refuse."""
    shop, faults = request.shop, request.faults
    yield Step(Work.WRITE_ITEM)
    fatal = faults.fault(Kind.FATAL_AT_ITEM)
    if fatal is not None and index >= fatal.items:
        raise Refuse
    before = faults.fault(Kind.BEFORE_ITEM)
    if before is not None and before.action is not None and index == before.items:
        before.action()
    if not batch and "sku" in change:
        check_sku(shop, str(change["sku"]), product)
    locked = faults.fault(Kind.LOCK_TIMEOUT)
    if locked is not None and (product.id in locked.ids or not locked.ids):
        yield Step(Work.WAIT, locked.seconds)
        return
    if faults.has(Kind.READ_ONLY):
        return
    torn = faults.fault(Kind.TORN_STATUS)
    apply_change(shop, product, change, batch=batch)
    shop.store(product, torn=torn is not None and (product.id in torn.ids or not torn.ids))
    thrown = faults.fault(Kind.HOOK_EXCEPTION)
    if thrown is not None and index == thrown.items:
        raise RestError("woocommerce_rest_product_not_created", "third product", 400)


def _stored_alone(request: Request, product: Product, change: Json) -> Generator[Step, None, None]:
    """Do a write that is a call of its own. Raises RestError, Refuse."""
    request.shop.begin_writes((product.id,))
    try:
        yield from _stored(request, product, change, index=0, batch=False)
    finally:
        request.shop.end_writes((product.id,))


def _delete_item(shop: Shop, raw: object) -> Json:
    try:
        product = find_product(shop, raw)
    except RestError as error:
        return {"id": php.to_int(raw), "error": error.body()}
    shown = view(shop, product)
    shop.remove(product)
    return shown


def _items(raw: object) -> list[Any]:
    """Return a batch's list; an object counts by its values, anything else is no list."""
    if isinstance(raw, list):
        return raw
    return list(raw.values()) if isinstance(raw, dict) else []


def _check_size(count: int) -> None:
    if count > BATCH_MAX:
        text = f"Unable to accept more than {BATCH_MAX} items for this request."
        raise RestError("woocommerce_rest_request_entity_too_large", text, 413)


def _shown_id(fields_of: Json) -> Any:
    """Return the id as an item's error names it: as it was sent, null where it was not."""
    return fields_of.get("id")


def _is_variation() -> RestError:
    text = (
        "To manipulate product variations you should use the "
        "/products/&lt;product_id&gt;/variations/&lt;id&gt; endpoint."
    )
    return RestError("woocommerce_rest_invalid_product_id", text, 404)


def named_ids(params: Json, path: str) -> Iterable[int]:
    """Return the ids that a call writes, for the log."""
    for item in _items(params.get("update")):
        if isinstance(item, dict) and "id" in item:
            yield php.to_int(item["id"])
    last = path.rstrip("/").rpartition("/")[2]
    if last.isdigit():
        yield int(last)
