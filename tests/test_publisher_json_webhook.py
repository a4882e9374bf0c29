"""The second storefront, in one file behind the same port: signed numbers out, what was stored back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy.engine import Engine

from availability.history.database import open_database
from publisher.json_webhook import JsonWebhook
from publisher.settings import ShopSettings
from publisher.storefront import FailureKind, Outcome, ShopFailure, StockWrite
from tests.publishing import FAST, KEYS, FakeLedger, Running, publisher_of

URL = "https://marketplace.example/stock"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database("", tmp_path)
    yield engine
    engine.dispose()


class Marketplace:
    """The other side. ``trouble``: what the next call does instead."""

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}
        self.trouble: list[str] = []
        self.poison = 500
        self.calls = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.calls += 1
        body = request.content
        signature = hmac.new(b"cs_test", body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(request.headers["x-signature-sha256"], signature):
            return httpx2.Response(401, json={"code": "signature", "message": "no"})
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble == "500":
            return httpx2.Response(500, text="oh")
        if trouble == "page":
            return httpx2.Response(200, html="<h1>hello</h1>")
        if trouble == "nothing":
            return httpx2.Response(200, json={"results": []})
        items = json.loads(body)["items"]
        if any(item["sku"] == "poison" for item in items):
            return httpx2.Response(self.poison, text="oh")
        results: list[dict[str, object]] = []
        for item in items:
            if item["sku"] == "forbidden":
                results.append({"sku": "forbidden", "error": "<b>not sold here</b>"})
                continue
            self.stock[item["sku"]] = item["quantity"]
            results.append(item)
        return httpx2.Response(200, json={"results": results[::-1]})


def settings() -> ShopSettings:
    return ShopSettings.model_validate({"kind": "json_webhook", "url": URL, "secret": {"env": "S"}, **FAST})


def storefront(marketplace: Marketplace) -> JsonWebhook:
    return JsonWebhook(settings(), lambda: KEYS, transport=httpx2.MockTransport(marketplace))


def test_results_are_compared_by_sku() -> None:
    """Each number is held against what the other side says it stored; a refusal is that item's alone."""
    marketplace = Marketplace()
    writes = [StockWrite(sku=sku, listing_id=sku, quantity=3) for sku in ("a", "forbidden", "b")]
    results = asyncio.run(storefront(marketplace).write_stock(writes))
    assert [one.outcome for one in results] == [Outcome.WRITTEN, Outcome.REFUSED, Outcome.WRITTEN]
    assert results[1].message == "not sold here"
    marketplace.trouble = ["nothing"]
    results = asyncio.run(storefront(marketplace).write_stock(writes))
    assert {one.outcome for one in results} == {Outcome.UNKNOWN}


def test_a_page_is_no_answer() -> None:
    """200 with something else than results is a failure, and may have been done."""
    marketplace = Marketplace()
    marketplace.trouble = ["page"]
    with pytest.raises(ShopFailure) as caught:
        asyncio.run(storefront(marketplace).write_stock([StockWrite(sku="a", listing_id="a", quantity=1)]))
    assert (caught.value.kind, caught.value.maybe_applied) == (FailureKind.BROKEN, True)


def test_published_like_any_other_shop(engine: Engine) -> None:
    """The same publisher works behind it: failures are got over, refusals become letters, the last number stands."""

    async def scenario() -> None:
        ledger, marketplace, stop = FakeLedger(), Marketplace(), asyncio.Event()
        marketplace.trouble = ["500", "page", "", "nothing"]
        publisher = publisher_of(engine, ledger, settings(), storefront=storefront(marketplace))
        task = asyncio.create_task(publisher.run(stop))
        running = Running(publisher=publisher, engine=engine, ledger=ledger, stop=stop)
        ledger.say(a=5, b=2, forbidden=1)
        await running.quiet()
        ledger.say(a=4)
        await running.quiet()
        assert marketplace.stock == {"a": 4, "b": 2}
        assert [(one.sku, one.category) for one in running.letters()] == [("forbidden", "REJECTED")]
        stop.set()
        assert publisher.parts is not None
        publisher.parts.delivery.wake.set()
        await task

    asyncio.run(scenario())


@pytest.mark.parametrize("status", [500, 400, 403, 504])
def test_one_item_that_fails_every_call_it_is_in(engine: Engine, status: int) -> None:
    """Whoever travels with it is tried without it; alone it becomes a letter, and everybody else is published."""

    async def scenario() -> None:
        ledger, marketplace, stop = FakeLedger(), Marketplace(), asyncio.Event()
        marketplace.poison = status
        publisher = publisher_of(engine, ledger, settings(), storefront=storefront(marketplace))
        task = asyncio.create_task(publisher.run(stop))
        running = Running(publisher=publisher, engine=engine, ledger=ledger, stop=stop)
        others = {f"s{number}": 3 for number in range(30)}
        ledger.tell({**others, "poison": 1})
        step = 0
        while not running.letters():  # others go on meanwhile, or nobody could tell it from an outage
            step += 1
            assert step < 500
            ledger.tell({f"s{step % 30}": step * 7 % 11})
            await asyncio.sleep(0.02)
        await running.quiet()
        assert marketplace.stock == {sku: n for sku, n in ledger.sellable().items() if sku != "poison"}
        assert [one.sku for one in running.letters()] == ["poison"]
        stop.set()
        assert publisher.parts is not None
        publisher.parts.delivery.wake.set()
        await task

    asyncio.run(scenario())
