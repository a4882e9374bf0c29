"""Calls of a WooCommerce shop: how they look on the wire, and how each way to fail is told."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from publisher.settings import Credentials, SettingsRefused, ShopSettings
from publisher.storefront import FailureKind, Outcome, ShopFailure, StockWrite
from publisher.woocommerce.client import WooClient
from publisher.woocommerce.stock import WooStock
from tests.publishing import KEYS

JSON = {"content-type": "application/json"}


def client(answer: Callable[[httpx2.Request], Any], **changed: Any) -> WooClient:  # Any: an answer, settings
    settings = ShopSettings.model_validate(
        {"url": "https://shop.example/sub", "key": {"env": "K"}, "secret": {"env": "S"}, **changed}
    )
    return WooClient(settings, lambda: KEYS, transport=httpx2.MockTransport(answer))


def failure(woo: WooClient) -> ShopFailure:
    with pytest.raises(ShopFailure) as caught:
        asyncio.run(woo.get("/products"))
    assert "cs_test" not in f"{caught.value!r} {caught.value} {woo!r}"
    return caught.value


def test_a_write_on_the_wire() -> None:
    """Basic over https, JSON with integers, no `id` but the items' own, and only the fields that are compared."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(
            200,
            json={
                "update": [{"id": 36, "manage_stock": True, "stock_quantity": 7, "stock_status": "instock"}]
            },
        )

    woo = client(answer)
    results = asyncio.run(WooStock(woo).write_stock([StockWrite(sku="a", listing_id="36", quantity=7)]))
    assert [one.outcome for one in results] == [Outcome.WRITTEN]
    request = seen[0]
    assert str(request.url) == "https://shop.example/sub/wp-json/wc/v3/products/batch"
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"ck_test:cs_test").decode()
    assert request.headers["content-type"] == "application/json"
    assert request.content.startswith(b'{"update":[{"id":36,"stock_quantity":7}],"_fields":["update.0.id",')


def test_a_batch_that_is_answered_without_its_items() -> None:
    """Nothing is known then; the next one is asked for in full, should the shop not understand the trimming."""
    bodies: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(request.content)
        return httpx2.Response(200, json={"update": []} if len(bodies) == 1 else [])

    stock = WooStock(client(answer))
    for _ in range(2):
        with pytest.raises(ShopFailure) as caught:
            asyncio.run(stock.write_stock([StockWrite(sku="a", listing_id="36", quantity=7)]))
        assert caught.value.maybe_applied
    assert b"_fields" in bodies[0]
    assert b"_fields" not in bodies[1]


@pytest.mark.parametrize("quantity", [True, 3.0, "3", None])
def test_nothing_but_whole_numbers_is_sent(quantity: Any) -> None:  # Any: what is none
    """A batch makes 0 of everything else: it is a bug of ours before it is the shop's shelf."""
    stock = WooStock(client(lambda _: httpx2.Response(200, json={})))
    with pytest.raises(AssertionError):
        asyncio.run(stock.write_stock([StockWrite(sku="a", listing_id="36", quantity=quantity)]))


def test_failures_of_the_network() -> None:
    """No connection is told apart from no answer: of the first it is known that nothing was done."""

    def refused(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    def torn(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.RemoteProtocolError("torn", request=request)

    def late(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("late", request=request)

    assert (failure(client(refused)).kind, failure(client(refused)).maybe_applied) == (
        FailureKind.UNREACHABLE,
        False,
    )
    assert (failure(client(torn)).kind, failure(client(torn)).maybe_applied) == (FailureKind.BROKEN, True)
    assert (failure(client(late)).kind, failure(client(late)).maybe_applied) == (FailureKind.TIMEOUT, True)


def test_an_answer_that_trickles_or_never_ends() -> None:
    """The deadline is the call's, not each packet's; and an answer has a size."""

    class Trickle(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.02)
                yield b" "

    def trickling(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=JSON, stream=Trickle())

    assert failure(client(trickling, timeout_ms=150)).kind is FailureKind.TIMEOUT
    large = client(lambda _: httpx2.Response(200, headers=JSON, content=b" " * 2_000), answer_bytes_max=1_000)
    assert failure(large).kind is FailureKind.BROKEN


def test_a_redirect_is_not_followed() -> None:
    """Keys go to the shop that was named, nowhere else."""
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        return httpx2.Response(301, headers={"location": "https://elsewhere.example/"})

    assert failure(client(answer)).kind is FailureKind.REJECTED
    assert len(seen) == 1


def test_keys_that_cannot_be_read_stop_the_shop() -> None:
    """It is told as refused keys are, before anything is sent."""

    def keys() -> Credentials:
        raise SettingsRefused("the variable K is not set")

    settings = ShopSettings.model_validate(
        {"url": "https://shop.example", "key": {"env": "K"}, "secret": {"env": "S"}}
    )
    woo = WooClient(settings, keys, transport=httpx2.MockTransport(lambda _: httpx2.Response(200, json=[])))
    assert failure(woo).kind is FailureKind.AUTHENTICATION
