"""The storefront double's own promises: failures on demand, overlaps seen, webhooks, reservations, its latencies."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from publisher.testing.checkout import buy, offered
from publisher.testing.clock import FastClock, MovableClock
from publisher.testing.faults import Fault, Kind
from publisher.testing.keys import ApiKey
from publisher.testing.latency import Latency
from publisher.testing.orders import cancel_unpaid, place_order, refund_order, set_status, trash_order
from publisher.testing.server import Storefront, serve
from publisher.testing.shop import Shop
from publisher.testing.webhooks import Losses, signature
from publisher.testing.wire import Answer, Step, Work

KEY = {"ck_x": ApiKey(secret="cs_x")}
AUTH = "Basic Y2tfeDpjc194"


def shop_of(skus: int = 5, quantity: int = 10) -> Shop:
    """A shop of simple products 11, 12, … with skus S-0, S-1, …"""
    shop = Shop(clock=MovableClock(), keys=dict(KEY))
    for index in range(skus):
        shop.add(f"S-{index}", quantity)
    return shop


def send(front: Storefront, method: str, path: str, body: Any = None) -> tuple[Answer, Any]:
    """Call without a socket; returns the answer and its JSON (None where it is none)."""
    payload = b"" if body is None else json.dumps(body).encode()
    headers = {"Authorization": AUTH, "Content-Type": "application/json"}
    answer = front.call(method, f"/wp-json/wc/v3{path}", headers=headers, body=payload)
    try:
        return answer, json.loads(answer.body)
    except ValueError:
        return answer, None


def batch(quantity: int, *ids: int) -> dict[str, Any]:
    """A products/batch of one quantity."""
    return {"update": [{"id": identity, "stock_quantity": quantity} for identity in ids]}


@pytest.mark.parametrize(
    ("fault", "status", "stored"),
    [
        (Fault(kind=Kind.FATAL_EARLY), 500, [10, 10, 10]),
        (Fault(kind=Kind.FATAL_AT_ITEM, items=2), 500, [7, 7, 10]),
        (Fault(kind=Kind.HOOK_EXCEPTION, items=1), 200, [7, 7, 7]),
        (Fault(kind=Kind.LOCK_TIMEOUT, ids=frozenset({12})), 200, [7, 10, 7]),
        (Fault(kind=Kind.READ_ONLY), 200, [10, 10, 10]),
        (Fault(kind=Kind.DATABASE_DOWN), 500, [10, 10, 10]),
        (Fault(kind=Kind.PLUGIN_REFUSES), 500, [10, 10, 10]),
        (Fault(kind=Kind.MAINTENANCE), 503, [10, 10, 10]),
        (Fault(kind=Kind.MAINTENANCE, seconds=2), 503, [10, 10, 10]),
        (Fault(kind=Kind.TOO_MANY_REQUESTS, seconds=7), 429, [10, 10, 10]),
        (Fault(kind=Kind.HTML_BEFORE_JSON), 200, [7, 7, 7]),
        (Fault(kind=Kind.CHALLENGE_PAGE), 200, [10, 10, 10]),
        (Fault(kind=Kind.EMPTY_LIST), 200, [10, 10, 10]),
        (Fault(kind=Kind.BAD_GATEWAY), 502, [10, 10, 10]),
        (Fault(kind=Kind.GATEWAY_TIMEOUT, seconds=60), 504, [7, 7, 7]),
        (Fault(kind=Kind.HANG, seconds=60), 200, [7, 7, 7]),
        (Fault(kind=Kind.CUT_ANSWER), 200, [7, 7, 7]),
    ],
    ids=lambda value: value.kind.name if isinstance(value, Fault) else "",
)
def test_a_failure_leaves_exactly_what_it_leaves_in_a_real_shop(
    fault: Fault, status: int, stored: list[int]
) -> None:
    """Each failure answers its status, stores what it is said to store, and strikes once."""
    front = Storefront(shop=shop_of(3))
    armed = Fault(kind=fault.kind, items=fault.items, seconds=fault.seconds, ids=fault.ids, method="POST")
    front.faults.add(armed)
    send(front, "GET", "/products")
    answer, body = send(front, "POST", "/products/batch", batch(7, 11, 12, 13))
    assert answer.status == status
    assert [front.shop.stock(f"S-{index}") for index in range(3)] == stored
    assert armed.hits == 1
    if fault.kind is Kind.LOCK_TIMEOUT:
        assert [item["stock_quantity"] for item in body["update"]] == [7, 10, 7]
    if fault.kind in (Kind.CHALLENGE_PAGE, Kind.HTML_BEFORE_JSON):
        assert body is None
    if fault.kind is Kind.MAINTENANCE:
        assert answer.headers["Retry-After"] == str(int(fault.seconds) or 600)
    if fault.kind is Kind.TOO_MANY_REQUESTS:
        assert answer.headers["Retry-After"] == "7"
    again, _ = send(front, "POST", "/products/batch", batch(8, 11))
    assert again.status == 200
    assert front.shop.stock("S-0") == 8


def test_a_torn_status_is_repaired_by_the_same_quantity() -> None:
    """The quantity is new and the status old, until the quantity is written again."""
    front = Storefront(shop=shop_of(1, quantity=0))
    front.faults.add(Fault(kind=Kind.TORN_STATUS))
    _, torn = send(front, "PUT", "/products/11", {"stock_quantity": 5})
    assert (torn["stock_quantity"], torn["stock_status"]) == (5, "outofstock")
    _, repaired = send(front, "PUT", "/products/11", {"stock_quantity": 5})
    assert repaired["stock_status"] == "instock"


def test_a_stale_read_shows_the_product_before_its_last_write() -> None:
    """A read through a lagging cache shows the old quantity, the next one the new."""
    front = Storefront(shop=shop_of(1))
    send(front, "PUT", "/products/11", {"stock_quantity": 3})
    front.faults.add(Fault(kind=Kind.STALE_READ, method="GET", times=2))
    assert send(front, "GET", "/products/11")[1]["stock_quantity"] == 10
    assert send(front, "GET", "/products?sku=S-0")[1][0]["stock_quantity"] == 10
    assert send(front, "GET", "/products/11")[1]["stock_quantity"] == 3


def test_a_sale_in_the_window_of_a_write_is_overwritten() -> None:
    """The lost update: read 10, sold 3, written 10, and three sold units are on offer."""
    front = Storefront(shop=shop_of(1))
    front.faults.add(Fault(kind=Kind.BEFORE_ITEM, action=lambda: buy(front.shop, {"S-0": 3})))
    send(front, "POST", "/products/batch", batch(10, 11))
    assert front.shop.stock("S-0") == 10
    assert [order.stock_reduced for order in front.shop.orders.values()] == [True]


def test_a_sale_after_a_read_is_seen_by_the_next_read() -> None:
    """A sale between a read and a write happens after the answer was made."""
    front = Storefront(shop=shop_of(1))
    front.faults.add(Fault(kind=Kind.AFTER_READ, method="GET", action=lambda: buy(front.shop, {"S-0": 3})))
    assert send(front, "GET", "/products/11")[1]["stock_quantity"] == 10
    assert send(front, "GET", "/products/11")[1]["stock_quantity"] == 7


def test_slow_work_takes_longer_by_the_clock() -> None:
    """A batch of 100 takes about 3 s, and a slow shop takes it that many times as long."""
    shop = shop_of(100)
    front = Storefront(shop=shop)
    front.machine.latency = Latency()
    began = shop.clock()
    send(front, "POST", "/products/batch", batch(1, *range(11, 111)))
    plain = shop.clock() - began
    assert 2.5 < plain < 3.5
    front.faults.add(Fault(kind=Kind.SLOW, factor=4.0))
    began = shop.clock()
    send(front, "POST", "/products/batch", batch(2, *range(11, 111)))
    assert shop.clock() - began == pytest.approx(4 * plain)


def test_pending_orders_of_the_block_checkout_reserve_until_they_expire() -> None:
    """The shop offers less while a checkout is pending, shows the same number, and forgets after its hold time."""
    shop = shop_of(1)
    clock = shop.clock
    assert isinstance(clock, MovableClock)
    order = buy(shop, {"S-0": 4}, status="pending", created_via="store-api")
    assert order is not None
    assert (shop.stock("S-0"), offered(shop, shop.products[11])) == (10, 6)
    assert buy(shop, {"S-0": 7}) is None
    clock.advance(3601)
    assert offered(shop, shop.products[11]) == 10
    assert cancel_unpaid(shop) == []
    order.created_via = "checkout"
    assert cancel_unpaid(shop) == [order.id]
    assert shop.stock("S-0") == 10


def test_a_shop_that_does_not_count_leaves_the_quantity_alone() -> None:
    """With the shop's own reduction switched off, an order moves nothing, and neither does its end."""
    shop = shop_of(1)
    shop.settings.reduces_stock = False
    order = place_order(shop, [{"product_id": 11, "quantity": 4}])
    refund_order(shop, order, [(order.lines[0].id, 2)])
    set_status(shop, order, "cancelled")
    assert shop.stock("S-0") == 10


class Receiver:
    """A webhook receiver that answers what it is told."""

    def __init__(self) -> None:
        self.status = 200
        self.got: list[tuple[dict[str, str], bytes]] = []

    def __call__(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Keep one delivery."""
        assert url == "http://127.0.0.1:1/hook"
        self.got.append((headers, body))
        return self.status


def hooked(topic: str, receiver: Receiver) -> Storefront:
    """A shop with one webhook."""
    front = Storefront(shop=shop_of(3), send=receiver)
    body = {"topic": topic, "delivery_url": "http://127.0.0.1:1/hook", "secret": "s3cr&t"}
    answer, _ = send(front, "POST", "/webhooks", body)
    assert answer.status == 201
    return front


def test_a_webhook_is_pinged_unsigned_and_then_signed_with_the_state_at_delivery() -> None:
    """The ping is a form without a signature; a delivery is signed and carries what is true when it is sent."""
    receiver = Receiver()
    front = hooked("order.updated", receiver)
    assert receiver.got[0][1] == b"webhook_id=1"
    assert "X-WC-Webhook-Signature" not in receiver.got[0][0]
    order = place_order(front.shop, [{"product_id": 11, "quantity": 1}])
    set_status(front.shop, order, "cancelled")
    assert len(receiver.got) == 1
    sent = front.deliver_webhooks()
    assert [json.loads(one.body)["status"] for one in sent] == ["cancelled"]
    assert sent[0].headers["X-WC-Webhook-Signature"] == signature("s3cr&t", sent[0].body)
    assert "s3cr&t" not in repr(front.shop.webhooks)


def test_the_seventh_failure_disables_and_activation_forgets_nothing() -> None:
    """Six failures are survived; after activation the next failure disables again, a success does not."""
    receiver = Receiver()
    front = hooked("order.updated", receiver)
    order = place_order(front.shop, [{"product_id": 11, "quantity": 1}])
    front.deliver_webhooks()
    receiver.status = 500
    statuses = []
    for _ in range(7):
        set_status(front.shop, order, "processing")
        front.deliver_webhooks()
        statuses.append(send(front, "GET", "/webhooks/1")[1]["status"])
    assert statuses == ["active"] * 6 + ["disabled"]
    send(front, "PUT", "/webhooks/1", {"status": "active"})
    set_status(front.shop, order, "processing")
    front.deliver_webhooks()
    assert front.shop.webhooks[1].status == "disabled"


def test_deliveries_are_lost_doubled_and_shuffled_on_demand() -> None:
    """The losses are those of the given probabilities, and a lost delivery counts as no failure."""
    receiver = Receiver()
    front = hooked("product.updated", receiver)
    losses = Losses(rng=random.Random(7), lost=0.3, doubled=0.3, shuffled=True)
    for _ in range(200):
        send(front, "PUT", "/products/11", {"stock_quantity": 1})
        send(front, "PUT", "/products/12", {"stock_quantity": 1})
        front.deliver_webhooks(losses)
    assert 300 < len(receiver.got) < 420
    assert front.shop.webhooks[1].failure_count == 0


def test_a_trashed_order_tells_only_its_id() -> None:
    """order.deleted carries the id and nothing else, and the stock stays taken."""
    receiver = Receiver()
    front = hooked("order.deleted", receiver)
    order = place_order(front.shop, [{"product_id": 11, "quantity": 3}])
    trash_order(front.shop, order)
    assert [one.body for one in front.deliver_webhooks()] == [b'{"id":%d}' % order.id]
    assert front.shop.stock("S-0") == 7


# --- over HTTP


@pytest.fixture
def front() -> Iterator[Storefront]:
    """A served double whose batch of 100 takes 0.3 s."""
    shop = Shop(clock=time.time, keys=dict(KEY))
    for index in range(100):
        shop.add(f"S-{index}", 10)
    with serve(shop, latency=Latency(factor=0.1)) as running:
        yield running


def client(front: Storefront, timeout: float = 10.0) -> httpx2.Client:
    """A client with the shop's key."""
    return httpx2.Client(base_url=f"{front.url}/wp-json/wc/v3", auth=("ck_x", "cs_x"), timeout=timeout)


def test_the_work_goes_on_when_the_caller_hangs_up(front: Storefront) -> None:
    """All items of a batch are stored although its caller gave up."""
    stored = threading.Event()
    front.shop.listeners.append(lambda product: stored.set() if product.id == 110 else None)
    with client(front, timeout=0.1) as http, pytest.raises(httpx2.TimeoutException):
        http.post("/products/batch", json=batch(3, *range(11, 111)))
    assert stored.wait(5)
    assert {front.shop.stock(f"S-{index}") for index in range(100)} == {3}


def test_an_answer_cut_in_the_middle_is_a_broken_connection(front: Storefront) -> None:
    """The caller sees a transport error; the value is stored."""
    front.faults.add(Fault(kind=Kind.CUT_ANSWER))
    with client(front) as http:
        with pytest.raises(httpx2.RemoteProtocolError):
            http.put("/products/11", json={"stock_quantity": 4})
        assert http.get("/products/11").json()["stock_quantity"] == 4


def test_two_writers_of_one_product_are_seen(front: Storefront) -> None:
    """Writes of one product under way at the same time are noted; those of different products are not."""

    def write(first: int) -> None:
        with client(front) as http:
            http.post("/products/batch", json=batch(1, *range(first, first + 20)))

    front.faults.add(Fault(kind=Kind.SLOW, factor=10.0, times=0))
    for starts, seen in (((11, 31), False), ((11, 30), True)):
        threads = [threading.Thread(target=write, args=(start,)) for start in starts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert bool(front.shop.overlaps) is seen
    assert {one.product_id for one in front.shop.overlaps} == {30}
    assert not front.shop.writing


def test_many_connections_share_the_machine() -> None:
    """Four connections get no more than the machine's cores, and more than one gets."""
    latency = Latency(factor=1.0)
    alone = latency.seconds(Step(Work.WRITE_ITEM, 100)) + latency.seconds(Step(Work.REQUEST))
    assert 2.8 < alone < 3.2
    assert 60 < latency.cores / latency.write_item_s < 75


def test_a_fast_clock_runs_as_fast_as_it_is_told() -> None:
    """Time is the wall's at the start and grows by the factor."""
    moments = iter([100.0, 100.5, 101.0])
    clock = FastClock(60.0, monotonic=lambda: next(moments), wall=lambda: 5000.0)
    assert [clock(), clock()] == [5030.0, 5060.0]


def test_nothing_of_the_publisher_imports_its_double() -> None:
    """The publisher itself runs without its double."""
    folder = Path(__file__).resolve().parent.parent / "publisher"
    sources = [path for path in folder.rglob("*.py") if "testing" not in path.relative_to(folder).parts]
    assert sources
    assert not [path.name for path in sources if "publisher.testing" in path.read_text()]
