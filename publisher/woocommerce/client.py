"""Calls of a WooCommerce shop's REST interface: signed, timed, limited in size; JSON or a ShopFailure.

It does not try again: pace and budget are the caller's. The HTTP library stays inside.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from publisher import traces
from publisher.settings import Credentials, SettingsRefused, ShopSettings
from publisher.storefront import FailureKind, ShopFailure
from publisher.woocommerce.answers import Answer, read_answer
from publisher.woocommerce.auth import authorization

if TYPE_CHECKING:
    import httpx2

API = "/wp-json/wc/v3"
"""WooCommerce keys work on these addresses only: a shop needs pretty permalinks."""
PAGE_ITEMS = 100
PAGES_MAX = 100_000
PAGE_PAUSE_S = 0.5
PAGE_PAUSE_MAX_S = 60.0
PASSING = frozenset(
    {FailureKind.OVERLOADED, FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.BROKEN}
)
"""Failures of a reading that may be over at the next."""
USER_AGENT = "availability-publisher"


class WooClient:
    """One shop's connections. ``transport`` takes the network's place in tests."""

    def __init__(
        self,
        settings: ShopSettings,
        credentials: Callable[[], Credentials],
        *,
        now: Callable[[], float] = time.time,
        nonce: Callable[[], str] = lambda: uuid.uuid4().hex,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._now = now
        self._nonce = nonce
        self._transport = transport
        self._http: httpx2.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"WooClient({self.where})"

    @property
    def where(self) -> str:
        """Return scheme, host and port: what may be told of the address."""
        parts = urlsplit(self._settings.url)
        return f"{parts.scheme}://{parts.netloc}"

    async def get(self, path: str, params: Sequence[tuple[str, str]] = ()) -> Answer:
        """Read ``/products`` and the like. Raises ShopFailure."""
        return await self.call("GET", path, params)

    async def call(
        self,
        method: str,
        path: str,
        params: Sequence[tuple[str, str]] = (),
        body: Any = None,  # Any: what JSON can say
    ) -> Answer:
        """Make one call; ``path`` begins behind ``/wp-json/wc/v3``. Raises ShopFailure."""
        import httpx2

        url = self._settings.url + API + path
        try:
            credentials = self._credentials()
        except SettingsRefused as error:
            raise ShopFailure(FailureKind.AUTHENTICATION, str(error)) from error
        headers = {
            **traces.headers(),
            "accept": "application/json",
            "user-agent": USER_AGENT,
            "authorization": authorization(
                method,
                url,
                params,
                credentials,
                home_url=self._settings.home_url,
                base_url=self._settings.url,
                now=self._now(),
                nonce=self._nonce(),
            ),
        }
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        # Encoded here, as it was signed: a library that writes a blank as + would break the signature.
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in params)
        try:
            async with asyncio.timeout(
                self._settings.timeout_ms / 1000
            ):  # of the whole call, however it trickles
                status, answer_headers, answered = await self._send(
                    method, f"{url}?{query}" if query else url, headers, content
                )
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise ShopFailure(
                FailureKind.UNREACHABLE, f"no connection to {self.where}: {type(error).__name__}"
            ) from error
        except (httpx2.TimeoutException, TimeoutError) as error:
            raise ShopFailure(FailureKind.TIMEOUT, f"{self.where} did not answer in time") from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise ShopFailure(
                FailureKind.BROKEN, f"{self.where} broke off: {type(error).__name__}"
            ) from error
        return read_answer(status, answer_headers, answered, self._now())

    async def pages(
        self,
        path: str,
        params: Sequence[tuple[str, str]] = (),
        *,
        page_items: int = PAGE_ITEMS,
        attempts: int = 1,
    ) -> AsyncIterator[Answer]:
        """Yield a list page by page until one is not full. ``params`` must order it. Raises ShopFailure.

        ``attempts``: how often a page is asked for, with growing pauses: a long walk does not begin anew for one.
        """
        for number in range(1, PAGES_MAX + 1):
            page = (("per_page", str(page_items)), ("page", str(number)))
            answer = await self._patiently(path, (*params, *page), attempts)
            if not isinstance(answer.json, list):
                raise ShopFailure(FailureKind.BROKEN, f"{self.where}{path} answered no list")
            if answer.json:
                yield answer
            if len(answer.json) < page_items:
                return
        raise ShopFailure(FailureKind.BROKEN, f"{self.where}{path} has more than {PAGES_MAX} pages")

    async def _patiently(self, path: str, params: Sequence[tuple[str, str]], attempts: int) -> Answer:
        for attempt in range(1, attempts):
            try:
                return await self.get(path, params)
            except ShopFailure as failure:
                pause_s = max(PAGE_PAUSE_S * 2.0 ** (attempt - 1), failure.retry_after_s)
                if failure.kind not in PASSING or pause_s > PAGE_PAUSE_MAX_S:
                    raise
                await asyncio.sleep(pause_s * (0.5 + random.random() / 2))
        return await self.get(path, params)

    async def close(self) -> None:
        """End the connections."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        http, body = self._client(), bytearray()
        async with http.stream(method, url, headers=dict(headers), content=content) as answer:
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > self._settings.answer_bytes_max:
                    raise ShopFailure(
                        FailureKind.BROKEN,
                        f"{self.where} answered more than {self._settings.answer_bytes_max} bytes",
                    )
        return (
            answer.status_code,
            {name.lower(): value for name, value in answer.headers.items()},
            bytes(body),
        )

    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        if self._http is None:
            settings = self._settings
            verify: ssl.SSLContext | bool = True
            if settings.tls_ca_file is not None:
                verify = ssl.create_default_context(cafile=str(settings.tls_ca_file))
            connections = (
                settings.pace.concurrency_max + 2
            )  # writes, and a reader each for catalogue and orders
            self._http = httpx2.AsyncClient(
                verify=verify,
                timeout=httpx2.Timeout(settings.timeout_ms / 1000, connect=settings.connect_ms / 1000),
                limits=httpx2.Limits(
                    max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30
                ),
                follow_redirects=False,
                transport=self._transport,
            )
        return self._http
