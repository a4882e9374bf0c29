"""The door for webhooks: who is let in, what is kept, and what happens when the shop gives up."""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.testclient import TestClient

from availability.history.database import DatabaseUnreachable
from publisher.orders.facts import Rules
from publisher.orders.receiver import TOPICS, Door, receiver_app, signature
from publisher.orders.webhooks import tend
from publisher.testing.checkout import buy
from publisher.testing.orders import set_status, trash_order
from publisher.testing.webhooks import Losses
from tests.shop_lab import OrderLab

SECRET = 's3cr&t<"x'
PATH = "/shops/shop/orders"
BODY = b'{"id":336,"status":"processing","billing":{"first_name":"Ada"}}'


class Gate:
    """A receiver with what it kept."""

    def __init__(self, keep: object = None) -> None:
        self.kept: list[int] = []
        self.counts: Counter[str] = Counter()
        self.woken = 0
        door = Door(
            secret=lambda: SecretStr(SECRET),
            keep=keep if callable(keep) else self.kept.append,
            came=self._came,
            count=lambda result: self.counts.update([result]),
        )
        self.client = TestClient(receiver_app({"shop": door}, body_bytes_max=10_000))

    def _came(self) -> None:
        self.woken += 1

    def post(
        self, body: bytes, *, told: str | None = None, topic: str = "order.updated", path: str = PATH
    ) -> int:
        """Deliver, signed with the right secret unless told otherwise."""
        headers = {
            "content-type": "application/json",
            "x-wc-webhook-topic": topic,
            "x-wc-webhook-signature": signature(SECRET.encode(), body) if told is None else told,
        }
        if told == "":
            del headers["x-wc-webhook-signature"]
        return self.client.post(path, content=body, headers=headers).status_code


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


def test_a_signed_delivery_keeps_the_orders_id_and_nothing_else(gate: Gate) -> None:
    """It is a hint: the order's id is kept, then it is answered."""
    assert gate.post(BODY) == 200
    assert gate.kept[-1] == 336
    assert gate.woken > 0


def test_the_signature_is_of_the_raw_bytes() -> None:
    """base64 of HMAC-SHA256, as a calculation elsewhere gives it."""
    assert signature(b"secret", b"{}") == "dzJZAsrKgS3CWXM6rNBGtzgXNyx3e42VtAJkdHRRbhM="


def _forged() -> list[str]:
    right = signature(SECRET.encode(), BODY)
    raw = bytearray(base64.b64decode(right))
    raw[0] ^= 1
    return [
        "",
        " ",
        right[:-1],
        right + "=",
        right.lower(),
        f"sha256={right}",
        base64.b64encode(bytes(raw)).decode(),
        base64.b64decode(right).hex(),
        signature(b"", BODY),
        signature(b"secret", BODY),
        signature(SECRET.encode(), BODY + b" "),
        signature(SECRET.encode(), b""),
        "\u00ff" * 44,
        "x" * 5_000,
    ]


@pytest.mark.parametrize("told", _forged())
def test_forged_signatures_are_refused(told: str) -> None:
    """Whatever is not the signature of these very bytes is a stranger's."""
    gate = Gate()
    headers = {
        "x-wc-webhook-signature": told.encode("latin-1", "replace"),
        "x-wc-webhook-topic": b"order.updated",
    }
    if not told:
        del headers["x-wc-webhook-signature"]
    answer = gate.client.post(PATH, content=BODY, headers=headers)  # type: ignore[arg-type]  # bytes, as on the wire
    assert answer.status_code == 401
    assert gate.kept == []
    assert gate.counts == {"forged": 1}


def test_an_unknown_shop_is_answered_like_a_forger(gate: Gate) -> None:
    """Strangers learn nothing of which shops there are."""
    known = gate.client.post(PATH, content=BODY)
    unknown = gate.client.post("/shops/other/orders", content=BODY)
    assert (known.status_code, known.content) == (unknown.status_code, unknown.content)
    ping = {"content-type": "application/x-www-form-urlencoded"}
    one = gate.client.post(PATH, content=b"webhook_id=9", headers=ping)
    other = gate.client.post("/shops/other/orders", content=b"webhook_id=9", headers=ping)
    assert (one.status_code, one.content) == (other.status_code, other.content) == (200, b'{"result":"ping"}')


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/x-www-form-urlencoded", b"webhook_id=11", 200),
        ("application/x-www-form-urlencoded; charset=UTF-8", b"webhook_id=11", 200),
        ("application/x-www-form-urlencoded", b"webhook_id=11&id=336", 401),
        ("application/x-www-form-urlencoded", b"webhook_id=x", 401),
        ("application/x-www-form-urlencoded", b"webhook_id=" + b"1" * 99, 401),
        ("application/x-www-form-urlencoded", b"id=336", 401),
        ("application/x-www-form-urlencoded", b"\xff\xfe", 401),
        ("application/json", b"webhook_id=11", 401),
        ("application/json", BODY, 401),
    ],
)
def test_only_a_ping_may_come_unsigned(kind: str, body: bytes, status: int) -> None:
    """The ping at a webhook's creation says its id, as a form; it keeps nothing."""
    gate = Gate()
    assert gate.client.post(PATH, content=body, headers={"content-type": kind}).status_code == status
    assert gate.kept == []


def test_our_own_echoes_are_ignored(gate: Gate) -> None:
    """product.updated comes for every number that is written; it is answered, and wakes nobody."""
    kept, woken = len(gate.kept), gate.woken
    assert gate.post(b'{"id":60,"stock_quantity":62}', topic="product.updated") == 200
    assert (len(gate.kept), gate.woken) == (kept, woken)


def test_a_body_has_a_limit() -> None:
    """What is too large is not read to its end, whatever length it claims."""
    gate = Gate()
    assert gate.post(b'{"id":1,"x":"' + b"x" * 20_000 + b'"}') == 413
    assert gate.client.post(PATH, content=iter([b"x" * 9_000] * 3)).status_code == 413
    assert gate.client.post(PATH, content=b"", headers={"content-length": "9" * 30}).status_code in (400, 413)
    assert gate.kept == []


def test_an_id_that_cannot_be_kept_is_not_acknowledged() -> None:
    """The database is away: 503, without its address; polling finds the order."""

    def away(_: int) -> None:
        raise DatabaseUnreachable("the history database does not answer")

    gate = Gate(away)
    assert gate.post(BODY) == 503
    assert gate.counts == {"lost": 1}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300)
    | st.builds(lambda number: f'{{"id":{number}}}'.encode(), st.integers() | st.floats() | st.just("null"))
    | st.builds(lambda deep: b'{"id":' * deep, st.integers(1, 1_500))
    | _JSON.map(lambda value: repr(value).encode())
)
def test_no_body_breaks_the_door(body: bytes, gate: Gate) -> None:
    """Signed or not, whatever the bytes are: an answer, never a crash; an id is kept only where there is one."""
    kept = len(gate.kept)
    assert gate.post(body, told="nonsense") == 401
    assert len(gate.kept) == kept
    assert gate.post(body) == 200
    assert all(0 < order_id < 2**63 for order_id in gate.kept[kept:])


# --- With the double


class Wired:
    """A shop whose webhooks come in at the door, and whose orders are told."""

    def __init__(self, folder: Path) -> None:
        self.lab = OrderLab(folder, rules=Rules(shop_reduces=True))
        self.lab.add("A", 1_000)
        self.counts: Counter[str] = Counter()
        self.broken = False
        self.alarms: list[str] = []
        door = Door(
            secret=lambda: SecretStr(SECRET),
            keep=lambda order_id: self.lab.book.hint(order_id, self.lab.clock()),
            count=lambda result: self.counts.update([result]),
        )
        self._client = TestClient(receiver_app({"shop": door}))
        self.lab.storefront.send = self._send

    def _send(self, url: str, headers: dict[str, str], body: bytes) -> int:
        if self.broken:
            return 500
        return self._client.post(
            url.removeprefix("https://ours.example.test"), content=body, headers=headers
        ).status_code

    def tend(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Look after the webhooks; return what was made and what had been disabled."""
        tended = asyncio.run(
            tend(
                "shop",
                self.lab.orders,
                f"https://ours.example.test{PATH}",
                lambda: SecretStr(SECRET),
                alarm=self.alarms.append,
            )
        )
        return tended.made, tended.disabled


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    made = Wired(tmp_path)
    asyncio.run(made.lab.poller.catch_up())
    yield made
    made.lab.stop()


def test_webhooks_are_made_pinged_and_left_alone(wired: Wired) -> None:
    """One for each topic; looking again makes no more; the pings are answered."""
    assert wired.tend() == (TOPICS, ())
    assert wired.counts == {"ping": len(TOPICS)}
    assert wired.tend() == ((), ())
    assert len(wired.lab.shop.webhooks) == len(TOPICS)


def test_a_delivery_is_followed_by_reading_the_order(wired: Wired) -> None:
    """order.updated may come before order.created, with a state that is over: the order's own state counts."""
    wired.tend()
    order = buy(wired.lab.shop, {"A": 3}, created_via="store-api")
    assert order is not None
    deliveries = wired.lab.storefront.deliver_webhooks()
    assert [one.topic for one in deliveries][:2] == ["order.updated", "order.created"]
    set_status(wired.lab.shop, order, "cancelled")
    asyncio.run(wired.lab.poller.follow_hints())
    assert wired.lab.ledger.ordered("A") == 0
    assert wired.lab.book.hints(10) == []


def test_a_hint_that_comes_while_its_order_is_read_stays(wired: Wired) -> None:
    """The reading that is under way may be too old for it."""
    book = wired.lab.book
    book.hint(7, 1.0)
    (hint,) = book.hints(10)
    book.hint(7, 2.0)
    book.followed([hint])
    assert [one.order_id for one in book.hints(10)] == [7]


def test_a_trashed_order_is_told_by_its_id_alone(wired: Wired) -> None:
    """order.deleted says nothing but the id."""
    wired.tend()
    order = wired.lab.buy()
    trash_order(wired.lab.shop, order)
    wired.lab.storefront.deliver_webhooks()
    asyncio.run(wired.lab.poller.follow_hints())
    assert wired.lab.book.told([order.id])[order.id].status == "trash"


def test_lost_doubled_and_shuffled_deliveries_end_in_the_shops_stock(wired: Wired, seed: int) -> None:
    """With every third delivery lost, polling finds the rest; what comes twice counts once."""
    rng = random.Random(seed)
    wired.tend()
    orders = []
    for _ in range(20):
        orders.append(wired.lab.buy("A", rng.randint(1, 5), status=rng.choice(("pending", "processing"))))
        set_status(
            wired.lab.shop, rng.choice(orders), rng.choice(("processing", "cancelled", "completed", "failed"))
        )
        wired.lab.storefront.deliver_webhooks(Losses(rng=rng, lost=0.3, doubled=0.3, shuffled=True))
        asyncio.run(wired.lab.poller.follow_hints())
    asyncio.run(wired.lab.poller.catch_up())
    assert wired.lab.ledger.sellable("A") == wired.lab.shop.stock("A")
    assert wired.counts["forged"] == 0


def test_a_disabled_webhook_raises_an_alarm_and_is_made_anew(wired: Wired) -> None:
    """Seven failures switch it off; it is deleted and made again, so that the next failure does not end it at once."""
    wired.tend()
    wired.broken = True
    for _ in range(7):
        wired.lab.buy("A", 1)
        wired.lab.storefront.deliver_webhooks()
    assert {hook.status for hook in wired.lab.shop.webhooks.values() if hook.topic == "order.updated"} == {
        "disabled"
    }
    wired.lab.buy("A", 1)
    made, disabled = wired.tend()
    assert set(made) == set(disabled) == set(wired.alarms) == {"order.created", "order.updated"}
    hooks = {hook.topic: hook for hook in wired.lab.shop.webhooks.values()}
    assert len(wired.lab.shop.webhooks) == len(TOPICS)
    assert (hooks["order.updated"].status, hooks["order.updated"].failure_count) == ("active", 0)
    wired.lab.buy("A", 1)
    wired.lab.storefront.deliver_webhooks()
    assert hooks["order.updated"].status == "active"
    wired.broken = False
    asyncio.run(wired.lab.poller.catch_up())
    assert wired.lab.ledger.ordered("A") == 9


def test_webhooks_of_others_and_paused_ones_are_left_alone(wired: Wired) -> None:
    """Somebody else's webhook is not ours to delete, and a pause is a person's decision."""
    asyncio.run(wired.lab.orders.create_webhook("order.updated", "https://else.example.test/x", "s"))
    wired.tend()
    for hook in wired.lab.shop.webhooks.values():
        hook.status = (
            "paused"
            if hook.topic == "order.deleted"
            else "disabled"
            if "else" in hook.delivery_url
            else "active"
        )
    assert wired.tend() == ((), ())
    assert len(wired.lab.shop.webhooks) == len(TOPICS) + 1
