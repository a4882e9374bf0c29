"""Lists: filters, order, paging and their headers, for products, variations and orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from publisher.testing import php
from publisher.testing.clock import parse_stamp
from publisher.testing.order_state import ORDER_STATUSES, Order
from publisher.testing.products import Handler, Reply, Request, find_product, read_view
from publisher.testing.stock import STOCK_STATUSES, TYPES, VARIATION, Product
from publisher.testing.wire import Step, Work, invalid_param, no_route

PER_PAGE_DEFAULT = 10
PER_PAGE_MAX = 100
PRODUCT_ORDERS = (
    "date",
    "id",
    "include",
    "title",
    "slug",
    "modified",
    "price",
    "popularity",
    "rating",
    "menu_order",
)
ORDER_ORDERS = ("date", "id", "include", "title", "slug", "modified")
FILTERS = frozenset(("sku", "search_sku", "include", "type", "stock_status", "modified_after"))
VISIBLE = ("publish", "draft", "pending", "private", "future")

Row = TypeVar("Row", Product, Order)


def list_products(request: Request) -> Handler:
    """GET /products. A sku finds variations too; an empty sku is no filter at all."""
    _check_lists(request, PRODUCT_ORDERS)
    _enum(request, "type", TYPES)
    _enum(request, "stock_status", STOCK_STATUSES)
    shop, query = request.shop, request.query
    if query.get("sku"):
        wanted = {part.lower() for part in query["sku"].split(",")}
        rows = [shop.products[i] for part in wanted for i in shop.by_sku.get(part, ())]
    else:
        rows = [shop.products[i] for i in shop.listed]
        if not FILTERS & set(query) and query.get("status", "any") == "any":
            return (yield from _plain_page(request, rows))
    return (
        yield from _page(
            request, rows, lambda product: read_view(request, product), _product_filters(request)
        )
    )


def list_all_variations(request: Request) -> Handler:
    """GET /variations: those of all parents, where the version has it."""
    shop, query = request.shop, request.query
    if not shop.version.lists_variations:
        raise no_route()
    _check_lists(request, PRODUCT_ORDERS)
    rows = [product for product in shop.products.values() if product.type == VARIATION]
    if query.get("sku"):
        wanted = {part.lower() for part in query["sku"].split(",")}
        rows = [product for product in rows if product.sku.lower() in wanted]
    return (
        yield from _page(
            request, rows, lambda product: read_view(request, product), _product_filters(request)
        )
    )


def list_variations(request: Request, raw_parent: str) -> Handler:
    """GET /products/{parent}/variations."""
    _check_lists(request, PRODUCT_ORDERS)
    shop = request.shop
    rows = shop.family(find_product(shop, raw_parent))
    shown: Callable[[Product], object] = lambda product: read_view(request, product, variation_route=True)  # noqa: E731
    return (yield from _page(request, rows, shown, _product_filters(request)))


def order_filters(request: Request) -> Callable[[Order], bool]:
    """Return which orders a list shows: any status means all but the trash."""
    query = request.query
    statuses = {part for part in query.get("status", "any").split(",") if part}
    for status in statuses - {"any", "trash"}:
        if status not in ORDER_STATUSES:
            raise invalid_param(
                "status", f"status is not one of {', '.join(ORDER_STATUSES)}.", "rest_not_in_enum"
            )
    after, include = _after(request), _ids(query.get("include"))

    def wanted(order: Order) -> bool:
        shown = order.status != "trash" if "any" in statuses else order.status in statuses
        return (
            shown and (after is None or order.modified_s > after) and (include is None or order.id in include)
        )

    return wanted


def list_orders(request: Request, shown: Callable[[Order], object]) -> Handler:
    """GET /orders."""
    _check_lists(request, ORDER_ORDERS)
    wanted = order_filters(request)
    return (yield from _page(request, list(request.shop.orders.values()), shown, wanted))


def _product_filters(request: Request) -> Callable[[Product], bool]:
    query = request.query
    status = query.get("status", "any")
    kind, stock_status = query.get("type"), query.get("stock_status")
    after, include, partial = _after(request), _ids(query.get("include")), query.get("search_sku", "").lower()

    def wanted(product: Product) -> bool:
        shown = product.post_status in VISIBLE if status == "any" else product.post_status == status
        return (
            shown
            and (kind is None or product.type == kind)
            and (stock_status is None or product.stock_status == stock_status)
            and (after is None or product.modified_s >= after + 1)
            and (include is None or product.id in include)
            and (not partial or partial in product.sku.lower())
        )

    return wanted


def _plain_page(request: Request, rows: Sequence[Product]) -> Handler:
    """Answer a page of the whole catalogue, which is sorted once for all pages."""
    shop, query = request.shop, request.query
    order = (query.get("orderby", "date"), query.get("order", "desc"))
    if order[0] not in ("date", "id"):
        return (
            yield from _page(request, rows, lambda row: read_view(request, row), _product_filters(request))
        )
    if order not in shop.pages:
        wanted = _product_filters(request)
        shop.pages[order] = _sorted(query, [row for row in rows if wanted(row)])
    return (yield from _cut(request, shop.pages[order], lambda row: read_view(request, row)))


def _page(
    request: Request, rows: Sequence[Row], shown: Callable[[Row], object], wanted: Callable[[Row], bool]
) -> Handler:
    """Filter, sort and cut a list into the request's page."""
    found = _sorted(request.query, [row for row in rows if wanted(row)])
    return (yield from _cut(request, found, shown))


def _sorted(query: Mapping[str, str], rows: list[Row]) -> list[Row]:
    keys: dict[str, Callable[[Row], tuple[float, int]]] = {
        "id": lambda row: (0, row.id),
        "modified": lambda row: (int(row.modified_s), row.id),
    }
    rows.sort(
        key=keys.get(query.get("orderby", "date"), lambda row: (int(row.created_s), row.id)),
        reverse=query.get("order", "desc") == "desc",
    )
    return rows


def _cut(request: Request, found: Sequence[Row], shown: Callable[[Row], object]) -> Handler:
    """Answer a page of what was found, with the paging headers."""
    query = request.query
    per_page = int(query.get("per_page", PER_PAGE_DEFAULT))
    start = int(query["offset"]) if "offset" in query else (int(query.get("page", 1)) - 1) * per_page
    cut = found[start : start + per_page]
    yield Step(Work.READ_ITEM, max(1, len(cut)))
    pages = ceil(len(found) / per_page)
    headers = {"X-WP-Total": str(len(found)), "X-WP-TotalPages": str(pages)}
    link = _links(request, int(query.get("page", 1)), pages)
    if link:
        headers["Link"] = link
    return Reply(body=[shown(row) for row in cut], headers=headers)


def _links(request: Request, page: int, pages: int) -> str:
    """Return the Link header to the pages beside this one."""
    split = urlsplit(request.path)
    pairs = [(k, v) for k, v in parse_qsl(urlencode(request.query), keep_blank_values=True) if k != "page"]
    links = []
    for other, rel in ((page - 1, "prev"), (page + 1, "next")):
        if 1 <= other <= pages:
            query = urlencode([*pairs, ("page", str(other))])
            links.append(f'<{request.shop.home_url}/wp-json/wc/v3{split.path}?{query}>; rel="{rel}"')
    return ", ".join(links)


def _check_lists(request: Request, orders: tuple[str, ...]) -> None:
    """Raise RestError for a paging parameter out of its bounds."""
    query = request.query
    for name, least, most in (("per_page", 1, PER_PAGE_MAX), ("page", 1, None), ("offset", 0, None)):
        if name not in query:
            continue
        if not php.is_integer(query[name]):
            raise invalid_param(name, f"{name} is not of type integer.")
        number = php.to_int(query[name])
        if number < least or (most is not None and number > most):
            raise invalid_param(name, f"{name} is out of bounds", "rest_out_of_bounds")
        query[name] = str(number)
    _enum(request, "orderby", orders)
    _enum(request, "order", ("asc", "desc"))


def _enum(request: Request, name: str, allowed: tuple[str, ...]) -> None:
    if name in request.query and request.query[name] not in allowed:
        raise invalid_param(name, f"{name} is not one of {', '.join(allowed)}.", "rest_not_in_enum")


def _after(request: Request) -> float | None:
    raw = request.query.get("modified_after")
    if raw is None:
        return None
    try:
        return parse_stamp(raw)
    except ValueError:
        raise invalid_param("modified_after", "Invalid date.", "rest_invalid_date") from None


def _ids(raw: str | None) -> set[int] | None:
    return None if not raw else {php.to_int(part) for part in raw.split(",")}
