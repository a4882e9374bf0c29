"""Stock of a WooCommerce shop behind the storefront's port: read by sku, written in batches, the echo compared.

A batch answers 200 whatever becomes of it: each item of the answer is held against what was sent (number, and stock
keeping on), because unmanaged products, a lock time-out and a read-only database all answer without an error. Only
integers are sent: a batch turns "abc" into 0, and the shop is sold out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from publisher.storefront import (
    Category,
    FailureKind,
    Kind,
    Listing,
    Managed,
    Outcome,
    ShopFailure,
    StockStatus,
    StockWrite,
    WriteResult,
)
from publisher.woocommerce.answers import error_of, plain
from publisher.woocommerce.client import WooClient

FIELDS = ("id", "sku", "type", "parent_id", "manage_stock", "stock_quantity", "stock_status", "backorders")
_ECHO = ("id", "manage_stock", "stock_quantity", "stock_status", "backorders", "error")
QUANTITY_MAX = 1_000_000_000
ADDRESS_CHARS_MAX = 4_000
"""Of a list of skus in an address; servers take 8,000 of all of it."""
WALK_ATTEMPTS = 5

GONE = frozenset(
    {
        "woocommerce_rest_product_invalid_id",
        "woocommerce_rest_invalid_product_id",
        "woocommerce_rest_product_variation_invalid_id",
        "woocommerce_rest_product_variation_invalid_parent",
        "variation_invalid_id",
    }
)
"""The listing is not there, not under this parent, or not of this kind: the catalogue is old."""
UNMANAGEABLE = frozenset({"product_external_invalid_manage_stock", "product_grouped_invalid_manage_stock"})

_KINDS = {kind.value.lower(): kind for kind in Kind}
_STATUS = {
    "instock": StockStatus.IN_STOCK,
    "outofstock": StockStatus.OUT_OF_STOCK,
    "onbackorder": StockStatus.ON_BACKORDER,
}
_FIELDS_PARAM = ("_fields", ",".join(FIELDS))
_ORDERED = (("orderby", "id"), ("order", "asc"))


class WooStock:
    """A shop's stock. ``cross_parent``: variations of several parents travel together, each with its parent's id."""

    def __init__(
        self,
        client: WooClient,
        *,
        cross_parent: bool = True,
        items_max: int = 100,
        pause: Callable[[], Any] | None = None,  # Any: an awaitable between two pages
    ) -> None:
        self._client = client
        self._cross_parent = cross_parent
        self._pause = pause
        self._trimmed = True
        self.items_max = items_max
        self.read_max = 100

    async def read_skus(self, skus: Sequence[str], known: Mapping[str, str] | None = None) -> list[Listing]:
        """See the port. A sku with a comma, or blanks around it, can only be read by its id in ``known``."""
        named = [sku for sku in skus if _can_be_listed(sku)]
        found: list[Listing] = []
        for at in range(0, len(named), self.read_max):
            wanted = ",".join(
                named[at : at + self.read_max]
            )  # never a blank behind the comma: it loses the next
            async for answer in self._client.pages("/products", (("sku", wanted), *_ORDERED, _FIELDS_PARAM)):
                found += [listing_of(item) for item in answer.json]
        for sku in skus:
            listing_id = (known or {}).get(sku, "")
            if not _can_be_listed(sku) and listing_id:
                one = await self._one(listing_id)
                found += [one] if one is not None else []
        return found

    async def _one(self, listing_id: str) -> Listing | None:
        try:
            answer = await self._client.get(f"/products/{int(listing_id)}", (_FIELDS_PARAM,))
        except ShopFailure as failure:
            if failure.kind is FailureKind.NOT_FOUND:
                return None
            raise
        return listing_of(answer.json)

    def route(self, write: StockWrite) -> str:
        """See the port: products in one call, variations in another, or one a parent."""
        if not write.parent_id:
            return ""
        return "variations" if self._cross_parent else write.parent_id

    async def write_stock(self, writes: Sequence[StockWrite]) -> list[WriteResult]:
        """See the port. All of one route. Raises ShopFailure."""
        assert 0 < len(writes) <= self.items_max
        assert len({write.listing_id for write in writes}) == len(writes)
        assert len({self.route(write) for write in writes}) == 1
        items = [_item(write) for write in writes]
        parent_id = writes[0].parent_id
        path = f"/products/{int(parent_id)}/variations/batch" if parent_id else "/products/batch"
        body: dict[str, Any] = {"update": items}  # Any: JSON
        trimmed = self._trimmed
        if trimmed:  # 2 KB an item are not needed; only as an array in the body do all versions understand it
            body["_fields"] = [f"update.{number}.{name}" for number in range(len(items)) for name in _ECHO]
        answer = await self._client.call("POST", path, body=body)
        echoed = answer.json.get("update") if isinstance(answer.json, dict) else None
        if not isinstance(echoed, list) or len(echoed) != len(writes):
            self._trimmed = (
                self._trimmed and not trimmed
            )  # should a shop answer so because of it: ask in full
            raise ShopFailure(
                FailureKind.BROKEN,
                "a batch was answered without its items",
                code="ECHO",
                status=answer.status,
            )
        return [judged(write, item) for write, item in zip(writes, echoed, strict=True)]

    async def listings(self) -> AsyncIterator[list[Listing]]:
        """See the port: products by id, then variations; of each parent where a version cannot list them all."""
        parents: list[str] = []
        async for page in self._walk("/products"):
            parents += [one.listing_id for one in page if one.kind is Kind.VARIABLE]
            yield page
        if not parents:
            return
        try:
            async for page in self._walk("/variations", kind=Kind.VARIATION):
                yield page
        except ShopFailure as failure:
            if failure.kind is not FailureKind.REJECTED:
                raise
            for parent_id in parents:
                path = f"/products/{parent_id}/variations"
                async for page in self._walk(path, kind=Kind.VARIATION, parent_id=parent_id):
                    yield page

    async def changed_since(self, since: float) -> AsyncIterator[list[Listing]]:
        """See the port. Products only: a variation that changed is found when it is written."""
        after = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        params = (("modified_after", after), ("dates_are_gmt", "true"))
        async for page in self._walk("/products", params=params):
            yield page

    async def close(self) -> None:
        """End the connections."""
        await self._client.close()

    async def _walk(
        self,
        path: str,
        *,
        kind: Kind | None = None,
        parent_id: str = "",
        params: tuple[tuple[str, str], ...] = (),
    ) -> AsyncIterator[list[Listing]]:
        pages = self._client.pages(path, (*params, *_ORDERED, _FIELDS_PARAM), attempts=WALK_ATTEMPTS)
        async for answer in pages:
            yield [listing_of(item, kind=kind, parent_id=parent_id) for item in answer.json]
            if self._pause is not None:
                await self._pause()


def listing_of(item: Any, *, kind: Kind | None = None, parent_id: str = "") -> Listing:  # Any: JSON
    """Read one product or variation. Raises ShopFailure for what is none.

    Versions before 10 give variations in their parent's list without type and parent.
    """
    if not isinstance(item, dict) or not _is_whole(item.get("id")):
        raise ShopFailure(FailureKind.BROKEN, "a product came without an id")
    told_parent = item.get("parent_id")
    manage, backorders = item.get("manage_stock"), item.get("backorders")
    found = kind or _KINDS.get(str(item.get("type", "")), Kind.OTHER)
    if found is not Kind.VARIATION:
        parent_id = ""  # a grouped product's child may name one, and keeps its own stock
    elif _is_whole(told_parent) and told_parent:
        parent_id = str(told_parent)
    if found in (Kind.GROUPED, Kind.EXTERNAL):
        managed = Managed.NONE
    else:
        managed = Managed.OWN if manage is True else Managed.PARENT if manage == "parent" else Managed.NONE
    return Listing(
        listing_id=str(item["id"]),
        sku=item["sku"] if isinstance(item.get("sku"), str) else "",
        kind=found,
        managed=managed,
        quantity=_quantity(item.get("stock_quantity")),
        status=_STATUS.get(str(item.get("stock_status")), StockStatus.UNKNOWN),
        parent_id=parent_id,
        backorders=isinstance(backorders, str) and backorders in ("yes", "notify"),
    )


def judged(write: StockWrite, item: Any) -> WriteResult:  # Any: JSON
    """Hold one item of an answer against what was sent."""
    if not isinstance(item, dict):
        return WriteResult(
            write=write, outcome=Outcome.UNKNOWN, reason="ECHO", message="the item is no object"
        )
    if "error" in item:
        return _refused(write, item["error"])
    if str(item.get("id")) != write.listing_id:
        return WriteResult(
            write=write, outcome=Outcome.UNKNOWN, reason="ECHO", message="the answer is of another product"
        )
    shown = listing_of(
        {**item, "sku": write.sku, "parent_id": int(write.parent_id or 0)},
        kind=Kind.VARIATION if write.parent_id else Kind.SIMPLE,
    )
    if shown.managed is not Managed.OWN:
        whose = "the parent's" if shown.managed is Managed.PARENT else "switched off"
        return WriteResult(
            write=write,
            outcome=Outcome.REFUSED,
            shown=shown,
            category=Category.MAPPING,
            reason="PARENT_MANAGED" if shown.managed is Managed.PARENT else "UNMANAGED",
            message=f"the shop took no number: its stock keeping is {whose}",
        )
    if shown.quantity != write.quantity:
        return WriteResult(
            write=write,
            outcome=Outcome.NOT_STORED,
            shown=shown,
            category=Category.CONFLICT,
            reason="NOT_STORED",
            message=f"answered without an error, and shows {shown.quantity} instead of {write.quantity}",
        )
    return WriteResult(write=write, outcome=Outcome.WRITTEN, shown=shown)


def _refused(write: StockWrite, error: Any) -> WriteResult:  # Any: JSON
    """An item's error. One that is not known to come before storing leaves the outcome open: it is read back."""
    code, message = error_of(error)
    data = error.get("data") if isinstance(error, dict) else None
    status = data.get("status") if isinstance(data, dict) else None
    outcome, category = Outcome.UNKNOWN, Category.REJECTED
    if code in GONE or code in UNMANAGEABLE:
        outcome, category = Outcome.REFUSED, Category.MAPPING
    elif status in (401, 403):
        outcome, category = Outcome.REFUSED, Category.AUTHENTICATION
    return WriteResult(
        write=write,
        outcome=outcome,
        category=category,
        reason=plain(code) or "REJECTED",
        message=message or "the shop gave no reason",
    )


def _item(write: StockWrite) -> dict[str, Any]:  # Any: JSON
    assert type(write.quantity) is int, "only integers: a batch makes 0 of everything else"
    assert -QUANTITY_MAX <= write.quantity <= QUANTITY_MAX
    item: dict[str, Any] = {"id": int(write.listing_id), "stock_quantity": write.quantity}  # Any: JSON
    if write.parent_id:
        item["product_id"] = int(write.parent_id)  # an item's own parent goes before the address's
    if write.manage:
        item["manage_stock"] = True
    return item


def _lists(skus: Sequence[str], items_max: int) -> Iterator[str]:
    """Yield lists of skus that fit into an address. Never a blank behind the comma: it loses the next sku."""
    some: list[str] = []
    chars = 0
    for sku in skus:
        more = len(quote(sku, safe="")) + 3
        if some and (len(some) >= items_max or chars + more > ADDRESS_CHARS_MAX):
            yield ",".join(some)
            some, chars = [], 0
        some.append(sku)
        chars += more
    if some:
        yield ",".join(some)


def _can_be_listed(sku: str) -> bool:
    """Say whether a list of skus can name it: an empty one asks for everything, a comma parts it."""
    return bool(sku) and "," not in sku and sku == sku.strip()


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _quantity(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
