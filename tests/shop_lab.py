"""A shop double, its orders' poller and a ledger in a few lines, all in one process with a clock that tests move."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr
from sqlalchemy.engine import Engine

from availability.client import ClientError
from availability.history.database import SQLITE_FILE, open_database
from availability.v1 import stock_pb2 as pb
from publisher.orders.book import OrderBook
from publisher.orders.facts import Recipe, Rules
from publisher.orders.ledger import Heard, KnownOrder, Refused
from publisher.orders.poller import OrderPoller, PollRules
from publisher.settings import Credentials, ShopSettings
from publisher.testing.checkout import buy
from publisher.testing.clock import MovableClock
from publisher.testing.keys import ApiKey
from publisher.testing.order_state import Order
from publisher.testing.server import Storefront
from publisher.testing.shop import Shop
from publisher.testing.wire import Call
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.orders import WooOrders

KEY, SECRET = "ck_test", "cs_test"
URL = "https://shop.example.test"


class DoubleTransport(httpx2.AsyncBaseTransport):
    """Calls of a client go straight into a double, without a socket."""

    def __init__(self, storefront: Storefront) -> None:
        self._storefront = storefront

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one call."""
        parts = urlsplit(str(request.url))
        answer = self._storefront.call(
            request.method,
            parts.path + (f"?{parts.query}" if parts.query else ""),
            headers=dict(request.headers),
            body=await request.aread(),
        )
        if answer.cut:
            raise httpx2.ReadError("cut")
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)


class PatientTransport(httpx2.AsyncBaseTransport):
    """The same with the double's own latencies, in real time."""

    def __init__(self, storefront: Storefront) -> None:
        self._storefront = storefront

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one call when its work is done."""
        parts = urlsplit(str(request.url))
        call = Call(
            method=request.method,
            url=parts.path + (f"?{parts.query}" if parts.query else ""),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.aread(),
            tls=True,
        )
        answer = await self._storefront.respond(call)
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)


def shop_settings(mode: str = "MIRROR", **more: object) -> ShopSettings:
    """Return the settings of a shop at URL."""
    return ShopSettings.model_validate(
        {"mode": mode, "url": URL, "key": {"env": "KEY"}, "secret": {"env": "SECRET"}, **more}
    )


def new_storefront(clock: MovableClock | None = None) -> Storefront:
    """Return a double with one key and no products."""
    shop = Shop(clock=clock or MovableClock(), home_url=URL, keys={KEY: ApiKey(secret=SECRET)})
    return Storefront(shop=shop, url=URL, tls=True, send=lambda _url, _headers, _body: 200)


def new_client(storefront: Storefront, settings: ShopSettings | None = None) -> WooClient:
    """Return a client of a double."""
    credentials = Credentials(SecretStr(KEY), SecretStr(SECRET))
    return WooClient(
        settings or shop_settings(),
        lambda: credentials,
        now=storefront.shop.clock,
        transport=DoubleTransport(storefront),
    )


@dataclass(slots=True)
class PlainLedger:
    """Order facts as CONTRACT says them: per line the latest word by its key; a cancel is a word to every line."""

    source: str = "shop"
    recipes: dict[str, Recipe] = field(default_factory=dict)
    orders: dict[int, KnownOrder] = field(default_factory=dict)
    stock: dict[str, int] = field(default_factory=dict)
    words: dict[tuple[str, str, str], tuple[tuple[int, str], int]] = field(default_factory=dict)
    cancels: dict[str, tuple[int, str]] = field(default_factory=dict)
    expected: dict[tuple[str, str, str], tuple[tuple[int, str], int]] = field(default_factory=dict)
    events: dict[str, bytes] = field(default_factory=dict)
    taken: list[pb.Delta] = field(default_factory=list)
    away: bool = False
    lose_acks: int = 0
    refuse: dict[str, str] = field(default_factory=dict)

    def tell(self, words: Sequence[pb.Delta]) -> Heard:
        """Take words. Raises ClientError while it is away, and after it took them while acks are lost."""
        if self.away:
            raise ClientError("UNAVAILABLE", "LEDGER_UNREACHABLE", "away")
        refused = [one for one in (self._take(word) for word in words) if one is not None]
        if self.lose_acks:
            self.lose_acks -= 1
            raise ClientError("UNAVAILABLE", "LEDGER_UNREACHABLE", "the ack was lost")
        return Heard(version=f"1-{len(self.taken)}", refused=tuple(refused))

    def known(self, order_id: int) -> KnownOrder:
        """Return what a test put in."""
        return self.orders.get(order_id, KnownOrder(shipped={}, kits={}))

    def kits(self) -> Mapping[str, Recipe]:
        """Return today's recipes."""
        return self.recipes

    def _take(self, word: pb.Delta) -> Refused | None:
        assert word.source == word.order_source == self.source
        reason = self.refuse.get(word.sku, "KIT_SKU" if word.sku in self.recipes else "")
        if reason:
            return Refused(order_ref=word.order_ref, sku=word.sku, reason=reason)
        content = word.SerializeToString(deterministic=True)
        if word.event_id in self.events:
            assert self.events[word.event_id] == content, "CONFLICT"
            return None
        self.events[word.event_id] = content
        self.taken.append(word)
        key = (word.occurred_time.ToMicroseconds(), word.event_id)
        name = (word.order_ref, word.line, word.sku)
        if word.type == pb.DELTA_TYPE_ORDER_CANCELLED:
            self.cancels[word.order_ref] = max(self.cancels.get(word.order_ref, key), key)
        elif word.type == pb.DELTA_TYPE_EXPECTED:
            place = (word.reference, word.sku, word.node)
            self.expected[place] = max(self.expected.get(place, (key, 0)), (key, word.quantity))
        elif word.type == pb.DELTA_TYPE_SHIPMENT:
            self.stock[word.sku] = self.stock.get(word.sku, 0) - word.quantity
        else:
            self.words[name] = max(self.words.get(name, (key, 0)), (key, word.quantity))
        return None

    def ordered(self, sku: str) -> int:
        """Return the units of a sku that all orders want."""
        return sum(
            quantity
            for (ref, _, named), (key, quantity) in self.words.items()
            if named == sku and key > self.cancels.get(ref, (0, ""))
        )

    def sellable(self, sku: str) -> int:
        """Return what is left to sell of a sku that a test gave stock."""
        return max(0, self.stock.get(sku, 0) - self.ordered(sku))


@functools.cache
def _template() -> bytes:
    """Make the tables once for all tests: to migrate an empty database takes half a second."""
    with tempfile.TemporaryDirectory() as folder:
        open_database("", Path(folder)).dispose()
        return (Path(folder) / SQLITE_FILE).read_bytes()


def open_copy(folder: Path) -> Engine:
    """Open a history database in a folder, with its tables."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SQLITE_FILE
    if not file.exists():
        file.write_bytes(_template())
    return open_database("", folder, upgrade=False)


class OrderLab:
    """A shop with one product, and its orders on their way."""

    def __init__(
        self, folder: Path, *, rules: Rules | None = None, poll_rules: PollRules | None = None
    ) -> None:
        self.clock = MovableClock()
        self.storefront = new_storefront(self.clock)
        self.shop = self.storefront.shop
        self.folder = folder
        self.ledger = PlainLedger()
        self.counted: list[str] = []
        self._rules, self._poll_rules = rules, poll_rules
        self.start()

    def start(self) -> None:
        """Start the poller, again after a kill."""
        self.engine = open_copy(self.folder)
        self.book = OrderBook(self.engine, "shop")
        self.orders = WooOrders(
            new_client(self.storefront), unreadable=lambda _id, _reason: self.counted.append("unreadable")
        )
        self.poller = OrderPoller(
            shop="shop",
            source="shop",
            orders=self.orders,
            book=self.book,
            ledger=self.ledger,
            now=self.clock,
            rules=self._rules,
            poll_rules=self._poll_rules,
            count=self.counted.append,
        )

    def stop(self) -> None:
        """End it."""
        self.engine.dispose()

    def add(self, sku: str, quantity: int) -> None:
        """Put a product into shop and ledger."""
        self.shop.add(sku, quantity)
        self.ledger.stock[sku] = quantity

    def buy(self, sku: str = "A", quantity: int = 3, *, status: str = "processing") -> Order:
        """Let a shopper buy. Fails where the shop has not enough."""
        order = buy(self.shop, {sku: quantity}, status=status)
        assert order is not None
        return order
