"""A second storefront in one file: any system that takes numbers as JSON over HTTP, and says what it has stored.

``POST url`` with ``{"items": [{"sku": …, "quantity": …}]}``, signed in ``x-signature-sha256`` (HMAC-SHA256 of the raw
body, hex). The answer is 200 with ``{"results": [{"sku": …, "quantity": …} or {"sku": …, "error": …}]}`` in any order;
an item that is not told counts as unknown and is sent again. Nothing can be read back, so every sku has a place.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from publisher import traces
from publisher.settings import Credentials, SettingsRefused, ShopSettings
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
from publisher.woocommerce.answers import plain, read_answer

if TYPE_CHECKING:
    import httpx2

_NO_PAGES: tuple[list[Listing], ...] = ()


class JsonWebhook:
    """See the module. ``transport`` takes the network's place in tests."""

    items_max = 100
    read_max = 1_000

    def __init__(
        self,
        settings: ShopSettings,
        credentials: Callable[[], Credentials],
        *,
        now: Callable[[], float] = time.time,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._now = now
        self._transport = transport
        self._http: httpx2.AsyncClient | None = None

    async def read_skus(self, skus: Sequence[str], known: Mapping[str, str] | None = None) -> list[Listing]:
        """Return a place for every sku, without a number: nothing can be read back."""
        return [
            Listing(
                listing_id=sku,
                sku=sku,
                kind=Kind.SIMPLE,
                managed=Managed.OWN,
                quantity=None,
                status=StockStatus.UNKNOWN,
            )
            for sku in skus
        ]

    def route(self, write: StockWrite) -> str:
        """Everything may travel together."""
        return ""

    async def write_stock(self, writes: Sequence[StockWrite]) -> list[WriteResult]:
        """Send numbers and compare what the other side says it has stored. Raises ShopFailure."""
        body = msgspec.json.encode({"items": [{"sku": one.sku, "quantity": one.quantity} for one in writes]})
        answer = await self._post(body)
        told = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(told, list):
            raise ShopFailure(FailureKind.BROKEN, "answered without results", code="ECHO", status=200)
        by_sku = {item["sku"]: item for item in told if isinstance(item, dict) and "sku" in item}
        return [_judged(write, by_sku.get(write.sku)) for write in writes]

    async def listings(self) -> AsyncIterator[list[Listing]]:
        """There is no catalogue."""
        for page in _NO_PAGES:
            yield page

    async def changed_since(self, since: float) -> AsyncIterator[list[Listing]]:
        """There is no catalogue."""
        for page in _NO_PAGES:
            yield page

    async def close(self) -> None:
        """End the connections."""
        if self._http is not None:
            await self._http.aclose()

    async def _post(self, body: bytes) -> Any:  # Any: JSON
        import httpx2

        try:
            secret = self._credentials().secret.get_secret_value()
        except SettingsRefused as error:
            raise ShopFailure(FailureKind.AUTHENTICATION, str(error)) from error
        headers = {
            **traces.headers(),
            "content-type": "application/json",
            "x-signature-sha256": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        }
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1000):
                answer = await self._client().post(self._settings.url, content=body, headers=headers)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise ShopFailure(FailureKind.UNREACHABLE, f"no connection: {type(error).__name__}") from error
        except (httpx2.TimeoutException, TimeoutError) as error:
            raise ShopFailure(FailureKind.TIMEOUT, "no answer in time") from error
        except httpx2.HTTPError as error:
            raise ShopFailure(FailureKind.BROKEN, f"broke off: {type(error).__name__}") from error
        told = {name.lower(): value for name, value in answer.headers.items()}
        return read_answer(answer.status_code, told, answer.content, self._now()).json

    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        if self._http is None:
            settings = self._settings
            verify: ssl.SSLContext | bool = True
            if settings.tls_ca_file is not None:
                verify = ssl.create_default_context(cafile=str(settings.tls_ca_file))
            timeout = httpx2.Timeout(settings.timeout_ms / 1000, connect=settings.connect_ms / 1000)
            self._http = httpx2.AsyncClient(verify=verify, timeout=timeout, transport=self._transport)
        return self._http


def _judged(write: StockWrite, item: Any) -> WriteResult:  # Any: JSON
    if item is None:
        return WriteResult(write=write, outcome=Outcome.UNKNOWN, reason="ECHO", message="not in the answer")
    if "error" in item:
        return WriteResult(
            write=write,
            outcome=Outcome.REFUSED,
            category=Category.REJECTED,
            reason="REJECTED",
            message=plain(str(item["error"])),
        )
    if item.get("quantity") != write.quantity:
        return WriteResult(
            write=write,
            outcome=Outcome.NOT_STORED,
            category=Category.CONFLICT,
            reason="NOT_STORED",
            message=f"shows {item.get('quantity')} instead of {write.quantity}",
        )
    return WriteResult(write=write, outcome=Outcome.WRITTEN)
