"""Orders and webhooks of a WooCommerce shop: read by REST, as far as availability needs them.

Lists ask for five fields only, so names and addresses are not even sent. An order's refunds are read once and
remembered: they never change. A trashed order is read by its id alone; a deleted one answers 404.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from availability.domain.limits import ID_BYTES_MAX
from publisher.orders.facts import ShopLine, ShopOrder
from publisher.orders.poller import OrderUnreadable
from publisher.orders.webhooks import ShopWebhook
from publisher.storefront import FailureKind, ShopFailure
from publisher.woocommerce.client import PAGE_ITEMS, WooClient

FIELDS = ("_fields", "id,status,date_created_gmt,date_modified_gmt,line_items,refunds")
STABLE = (("orderby", "id"), ("order", "asc"))
REFUNDS_CACHED = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AN_ORDER = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class WooOrders:
    """One shop's orders. Its methods raise ShopFailure.

    ``aliases``: the shop's sku → the ledger's, where they differ. ``unreadable`` is told the id of an order in a list
    that cannot be read, and why: it is left out, the others are not.
    """

    def __init__(
        self,
        client: WooClient,
        aliases: Mapping[str, str] | None = None,
        *,
        unreadable: Callable[[str, str], None] = lambda _id, _reason: None,
    ) -> None:
        self._client = client
        self._aliases = aliases or {}
        self._unreadable = unreadable
        self._refunds: OrderedDict[tuple[int, int], Mapping[str, int]] = OrderedDict()

    async def changed_since(self, modified_us: int) -> AsyncIterator[list[ShopOrder]]:
        """Page the orders that were modified after a time (the shop's, microseconds). The bin is not among them."""
        moment = _EPOCH + timedelta(microseconds=modified_us)
        after = moment.strftime("%Y-%m-%dT%H:%M:%S")
        params = (("modified_after", after), ("dates_are_gmt", "true"), *STABLE, FIELDS)
        async for page in self._client.pages("/orders", params):
            yield await self._orders(page.json)

    async def in_status(self, statuses: Iterable[str]) -> AsyncIterator[list[ShopOrder]]:
        """Page the orders that are in one of these statuses."""
        params = (("status", ",".join(sorted(statuses))), *STABLE, FIELDS)
        async for page in self._client.pages("/orders", params):
            yield await self._orders(page.json)

    async def read(self, order_id: int) -> ShopOrder | None:
        """Return one order, from the bin as well; None where it is deleted."""
        try:
            answer = await self._client.get(f"/orders/{order_id}", (FIELDS,))
        except ShopFailure as failure:
            if failure.kind is FailureKind.NOT_FOUND:
                return None
            raise
        try:
            return await self._order(answer.json)
        except _NOT_AN_ORDER as error:
            raise OrderUnreadable(f"{error!r}"[:200]) from error

    async def present(self, order_ids: Sequence[int]) -> list[ShopOrder]:
        """Return those of up to 100 orders that the shop lists; what is in the bin or deleted is absent."""
        params = (
            ("include", ",".join(str(order_id) for order_id in order_ids)),
            ("per_page", str(PAGE_ITEMS)),
            *STABLE,
            FIELDS,
        )
        answer = await self._client.get("/orders", params)
        if not isinstance(answer.json, list):
            raise ShopFailure(FailureKind.BROKEN, "a list of orders is none")
        return await self._orders(answer.json)

    async def webhooks(self) -> list[ShopWebhook]:
        """Return all webhooks of the shop, whoever made them."""
        found = []
        async for page in self._client.pages("/webhooks", STABLE):
            found += [
                ShopWebhook(
                    webhook_id=int(one["id"]),
                    topic=str(one.get("topic", "")),
                    status=str(one.get("status", "")),
                    delivery_url=str(one.get("delivery_url", "")),
                )
                for one in page.json
            ]
        return found

    async def create_webhook(self, topic: str, delivery_url: str, secret: str) -> None:
        """Make a webhook; the shop pings the address at once."""
        body = {
            "name": f"availability {topic}",
            "topic": topic,
            "delivery_url": delivery_url,
            "secret": secret,
        }
        await self._client.call("POST", "/webhooks", body=body)

    async def delete_webhook(self, webhook_id: int) -> None:
        """Delete a webhook for good; one that is gone already is fine."""
        try:
            await self._client.call("DELETE", f"/webhooks/{webhook_id}", (("force", "true"),))
        except ShopFailure as failure:
            if failure.kind is not FailureKind.NOT_FOUND and "invalid_id" not in failure.code:
                raise

    async def _orders(self, found: Sequence[Any]) -> list[ShopOrder]:  # Any: JSON
        orders = []
        for one in found:
            try:
                orders.append(await self._order(one))
            except _NOT_AN_ORDER as error:
                self._unreadable(str(one.get("id", "")) if isinstance(one, dict) else "", repr(error)[:200])
        return orders

    async def _order(self, found: Any) -> ShopOrder:  # Any: JSON
        order_id = int(found["id"])
        refunds = [int(refund["id"]) for refund in found.get("refunds") or ()]
        refunded = await self._refunded(order_id, refunds) if refunds else {}
        return ShopOrder(
            order_id=order_id,
            status=str(found["status"]),
            modified_us=_microseconds(found.get("date_modified_gmt") or found.get("date_created_gmt")),
            created_us=_microseconds(found.get("date_created_gmt") or found.get("date_modified_gmt")),
            lines=tuple(self._line(line, refunded) for line in found.get("line_items") or ()),
        )

    def _line(self, line: Any, refunded: Mapping[str, int]) -> ShopLine:  # Any: JSON
        name = str(line["id"])
        return ShopLine(
            line=name,
            sku=self._sku(line.get("sku")),
            quantity=_whole(line.get("quantity")),
            refunded=refunded.get(name, 0),
            reduced=_reduced(line.get("meta_data")),
        )

    def _sku(self, told: Any) -> str:  # Any: JSON
        if not isinstance(told, str):
            return ""
        sku = self._aliases.get(told, told)
        return sku if sku.isprintable() and len(sku.encode()) <= ID_BYTES_MAX else ""

    async def _refunded(self, order_id: int, refund_ids: Sequence[int]) -> dict[str, int]:
        """Return the units of an order's refunds by line."""
        if any((order_id, refund_id) not in self._refunds for refund_id in refund_ids):
            params = (("_fields", "id,line_items"), *STABLE)
            async for page in self._client.pages(f"/orders/{order_id}/refunds", params):
                for refund in page.json:
                    self._refunds[order_id, int(refund["id"])] = _refund_lines(refund)
            while len(self._refunds) > REFUNDS_CACHED:
                self._refunds.popitem(last=False)
        units: dict[str, int] = {}
        for refund_id in refund_ids:
            for line, count in self._refunds.get((order_id, refund_id), {}).items():
                units[line] = units.get(line, 0) + count
        return units


def _refund_lines(refund: Any) -> dict[str, int]:  # Any: JSON
    """A refund's lines are lines of their own, of negative quantities; their meta data names the order's line."""
    units: dict[str, int] = {}
    for line in refund.get("line_items") or ():
        for meta in line.get("meta_data") or ():
            if meta.get("key") == "_refunded_item_id":
                name = str(meta.get("value"))
                units[name] = units.get(name, 0) + abs(_whole(line.get("quantity")))
    return units


def _reduced(meta_data: Any) -> int | None:  # Any: JSON
    for meta in meta_data or ():
        if isinstance(meta, dict) and meta.get("key") == "_reduced_stock":
            try:
                return _whole(float(meta.get("value") or 0))
            except (TypeError, ValueError):
                return None
    return None


def _whole(told: Any) -> int:  # Any: JSON
    """Read a quantity. Shops of half units exist: the ledger's are whole, and none is left over."""
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise ValueError(f"{told!r} is no quantity")
    if not math.isfinite(told):
        raise ValueError(f"{told!r} is no quantity")
    return math.ceil(told)


def _microseconds(told: Any) -> int:  # Any: JSON
    moment = datetime.fromisoformat(told)
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)
