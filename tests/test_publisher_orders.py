"""Orders of a shop reach the ledger: whatever the shop does with them, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from availability.client import ClientError
from availability.history.order_tables import shop_order_hints, shop_order_places, shop_orders
from publisher.orders.facts import Rules, ShopOrder
from publisher.orders.ledger import KnownOrder
from publisher.orders.poller import PollRules
from publisher.storefront import ShopFailure
from publisher.testing.faults import Fault, Kind
from publisher.testing.order_state import Order
from publisher.testing.orders import (
    delete_order,
    edit_lines,
    place_order,
    refund_order,
    set_status,
    trash_order,
)
from publisher.testing.shop import Version
from tests.shop_lab import OrderLab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[OrderLab]:
    made = OrderLab(tmp_path)
    made.add("A", 100)
    asyncio.run(made.poller.catch_up())
    yield made
    made.stop()


def poll(lab: OrderLab) -> None:
    """Let a second pass and poll."""
    lab.clock.advance(1)
    asyncio.run(lab.poller.catch_up())


PATHS = [
    ("pending",),
    (
        "pending",
        "on-hold",
        "processing",
        "completed",
        "cancelled",
        "processing",
        "pending",
        "processing",
        "failed",
    ),
    ("processing", "failed", "processing", "on-hold", "refunded"),
    ("on-hold", "failed", "pending"),
    ("failed", "processing", "cancelled"),
    ("cancelled", "completed", "pending"),
]


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_the_ledger_follows_the_shops_own_stock(lab: OrderLab, path: tuple[str, ...]) -> None:
    """After each transition of section 7 the ledger has left what the shop has."""
    order = lab.buy(status="pending")
    for status in path:
        set_status(lab.shop, order, status)
        poll(lab)
        assert lab.ledger.sellable("A") == lab.shop.stock("A"), status


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_states_between_two_polls_leave_no_trace(lab: OrderLab, path: tuple[str, ...]) -> None:
    """Only the last state is ever seen; the ledger has left what the shop has."""
    order = lab.buy(status="pending")
    for status in path:
        set_status(lab.shop, order, status)
    poll(lab)
    assert lab.ledger.sellable("A") == lab.shop.stock("A")


def test_line_edits_refunds_and_cancels_move_what_the_shop_moves(lab: OrderLab) -> None:
    """3 to 5, 5 to 1, removed, another 4, 2 of them refunded, the rest cancelled."""
    order = lab.buy()
    line = order.lines[0].id
    edits: list[list[dict[str, object]]] = [
        [{"id": line, "quantity": 5}],
        [{"id": line, "quantity": 1}],
        [{"id": line, "quantity": 0}],
        [{"product_id": lab.shop.find("A")[0].id, "quantity": 4}],
    ]
    for edit, left in zip(edits, (95, 99, 100, 96), strict=True):
        with lab.shop.lock:
            edit_lines(lab.shop, order, edit)
            set_status(lab.shop, order, order.status)
        poll(lab)
        assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (left, left)
    refund_order(lab.shop, order, [(order.lines[0].id, 2)])
    poll(lab)
    assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (98, 98)
    set_status(lab.shop, order, "cancelled")
    poll(lab)
    assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (100, 100)


def test_an_older_shop_that_moves_no_stock_at_edits_is_told_the_orders_quantity(lab: OrderLab) -> None:
    """8.9.3 leaves 97 after an edit from 3 to 5; the order wants 5, so 95 are left, and that is what is published."""
    lab.shop.version = Version("8.9.3")
    order = lab.buy()
    with lab.shop.lock:
        edit_lines(lab.shop, order, [{"id": order.lines[0].id, "quantity": 5}])
        set_status(lab.shop, order, "processing")
    poll(lab)
    assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (95, 97)


def test_a_refund_of_money_alone_moves_nothing(lab: OrderLab) -> None:
    """An amount without lines gives no units back, wholly refunded or not."""
    order = lab.buy()
    refund_order(lab.shop, order, [], amount=1.0)
    poll(lab)
    assert lab.ledger.sellable("A") == 97
    refund_order(lab.shop, order, [], amount=29.0)
    assert order.status == "refunded"
    poll(lab)
    assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (97, 97)


def test_refunded_units_that_were_shipped_are_expected_back(lab: OrderLab) -> None:
    """The shop puts 2 of 5 back on sale at once; the ledger waits until they have come."""
    order = lab.buy(quantity=5)
    poll(lab)
    lab.ledger.orders[order.id] = KnownOrder(shipped={("", "A"): {"W": 5}}, kits={})
    refund_order(lab.shop, order, [(order.lines[0].id, 2)])
    poll(lab)
    assert lab.shop.stock("A") == 97
    assert lab.ledger.sellable("A") == 95
    assert {place: units for place, (_, units) in lab.ledger.expected.items()} == {
        (str(order.id), "A", "W"): 2
    }


@pytest.mark.parametrize("end", [trash_order, delete_order])
def test_an_order_that_disappears_is_missed(lab: OrderLab, end: object) -> None:
    """Trash and force-delete give nothing back, in the shop and in the ledger; and neither goes unnoticed."""
    order = lab.buy()
    poll(lab)
    assert callable(end)
    end(lab.shop, order)
    poll(lab)
    lab.clock.advance(61)
    asyncio.run(lab.poller.check_vanished())
    assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (97, 97)
    assert lab.book.told([order.id])[order.id].status == ("trash" if end is trash_order else "vanished")
    assert lab.book.to_check(before=1e12, modified_after_us=0, limit=9) == []


@pytest.mark.parametrize("end", [trash_order, delete_order])
def test_a_shop_may_have_disappeared_orders_cancelled(tmp_path: Path, end: object) -> None:
    """With the setting the ledger gives the units back, although the shop does not."""
    lab = OrderLab(tmp_path, rules=Rules(gives_back=frozenset({"trash", "vanished"})))
    lab.add("A", 100)
    poll(lab)
    order = lab.buy()
    poll(lab)
    assert callable(end)
    end(lab.shop, order)
    lab.clock.advance(61)
    asyncio.run(lab.poller.check_vanished())
    assert lab.ledger.sellable("A") == 100
    lab.stop()


def test_another_shop_behind_the_address_deletes_nothing(tmp_path: Path) -> None:
    """When all orders are gone at once, it is the shop that is wrong."""
    lab = OrderLab(tmp_path, rules=Rules(gives_back=frozenset({"vanished"})))
    lab.add("A", 1_000)
    poll(lab)
    for _ in range(25):
        lab.buy()
    poll(lab)
    lab.shop.orders.clear()
    lab.clock.advance(61)
    asyncio.run(lab.poller.check_vanished())
    assert lab.ledger.ordered("A") == 75
    lab.stop()


def test_drafts_are_no_orders(lab: OrderLab) -> None:
    """A checkout that was only looked at is neither told nor kept."""
    order = place_order(lab.shop, [{"product_id": lab.shop.find("A")[0].id, "quantity": 3}], status="pending")
    order.status = "checkout-draft"
    poll(lab)
    assert lab.ledger.taken == []
    assert lab.book.figures()["orders"] == 0


def test_the_beginning_tells_what_is_still_to_ship(tmp_path: Path) -> None:
    """Old open orders count, however old; what was finished before has left the shelf long ago."""
    lab = OrderLab(tmp_path)
    lab.add("A", 100)
    old, done = lab.buy(), lab.buy()
    set_status(lab.shop, done, "completed")
    lab.clock.advance(90 * 86_400)
    recent = lab.buy()
    set_status(lab.shop, recent, "completed")
    poll(lab)
    assert lab.ledger.ordered("A") == 3
    set_status(lab.shop, old, "completed")
    set_status(lab.shop, done, "completed")
    new = lab.buy(quantity=2)
    set_status(lab.shop, new, "completed")
    poll(lab)
    assert lab.ledger.ordered("A") == 5
    lab.stop()


def test_an_order_that_waited_for_payment_at_the_beginning_counts_when_it_is_paid(tmp_path: Path) -> None:
    """Even where it is completed at once: its units had not left before."""
    lab = OrderLab(tmp_path)
    lab.add("A", 100)
    waiting, done = lab.buy(status="pending"), lab.buy(quantity=5)
    set_status(lab.shop, done, "completed")
    lab.clock.advance(86_400)
    poll(lab)
    set_status(lab.shop, waiting, "completed")
    set_status(lab.shop, done, "completed")
    poll(lab)
    assert lab.ledger.ordered("A") == 3
    lab.stop()


def test_a_lost_ack_and_a_kill_send_the_same_words_again(lab: OrderLab) -> None:
    """Whatever was written down goes out again under the same ids, by the next process too."""
    lab.buy()
    lab.ledger.lose_acks = 1
    with pytest.raises(ClientError):
        poll(lab)
    assert lab.book.figures()["unsent"] == 1
    lab.stop()
    lab.start()
    poll(lab)
    assert lab.book.figures()["unsent"] == 0
    assert len(lab.ledger.taken) == 1
    assert lab.ledger.sellable("A") == 97


def test_an_outage_of_the_ledger_only_delays(lab: OrderLab) -> None:
    """Orders that change while the ledger is away are told as they are when it is back."""
    order = lab.buy()
    lab.ledger.away = True
    for _ in range(3):
        with pytest.raises(ClientError):
            poll(lab)
    set_status(lab.shop, order, "cancelled")
    other = lab.buy(quantity=7)
    lab.ledger.away = False
    poll(lab)
    set_status(lab.shop, other, "completed")
    poll(lab)
    assert lab.ledger.sellable("A") == lab.shop.stock("A") == 93


def test_a_lost_book_tells_everything_again_without_a_conflict(tmp_path: Path) -> None:
    """Whoever loses the database begins anew: same words, same ids, nothing counted twice."""
    lab = OrderLab(tmp_path / "one")
    lab.add("A", 100)
    poll(lab)
    order = lab.buy()
    poll(lab)
    lab.stop()
    lab.folder = tmp_path / "two"
    lab.start()
    poll(lab)
    assert lab.ledger.sellable("A") == 97
    set_status(lab.shop, order, "cancelled")
    poll(lab)
    assert lab.ledger.sellable("A") == 100
    lab.stop()


def test_polling_pages_through_everything(lab: OrderLab) -> None:
    """250 orders of one second are three pages; a shop's limits cut nothing off."""
    for _ in range(250):
        place_order(lab.shop, [{"product_id": lab.shop.find("A")[0].id, "quantity": 1}])
    poll(lab)
    assert lab.ledger.ordered("A") == 250


def test_polling_again_tells_nothing_again(lab: OrderLab) -> None:
    """The overlap reads the same orders again and again; no word and no row comes of it."""
    for _ in range(5):
        lab.buy()
    poll(lab)
    told = len(lab.ledger.taken)
    for _ in range(3):
        poll(lab)
    assert len(lab.ledger.taken) == told == 5


def test_kits_of_an_order_keep_their_recipe(lab: OrderLab) -> None:
    """A kit is told as its parts; by the recipe that the ledger's order remembers, else today's, else what was used."""
    lab.shop.add("KIT", 10)
    lab.ledger.recipes["KIT"] = (("A", 2), ("B", 1))
    order = lab.buy("KIT")
    poll(lab)
    assert (lab.ledger.ordered("A"), lab.ledger.ordered("B")) == (6, 3)
    lab.ledger.recipes["KIT"] = (("A", 50),)
    lab.clock.advance(120)
    with lab.shop.lock:
        edit_lines(lab.shop, order, [{"id": order.lines[0].id, "quantity": 1}])
        set_status(lab.shop, order, "processing")
    poll(lab)
    assert (lab.ledger.ordered("A"), lab.ledger.ordered("B")) == (2, 1)
    committed = lab.buy("KIT", 1, status="pending")
    lab.ledger.orders[committed.id] = KnownOrder(shipped={}, kits={"KIT": ((1, (("C", 7),)),)})
    set_status(lab.shop, committed, "processing")
    poll(lab)
    assert lab.ledger.ordered("C") == 7


def test_a_kit_that_was_made_a_moment_ago_is_exploded_too(lab: OrderLab) -> None:
    """Recipes are remembered for a minute; a word that names an unknown kit is refused, and said again at once."""
    lab.shop.add("NEW", 10)
    lab.buy("A", 1)
    poll(lab)
    lab.ledger.recipes["NEW"] = (("A", 4),)
    lab.ledger.away = True
    order = lab.buy("NEW", 2)
    with pytest.raises(ClientError):
        poll(lab)
    lab.ledger.away = False
    poll(lab)
    assert lab.ledger.ordered("A") == 1 + 8
    assert lab.book.refused(10) == {}
    set_status(lab.shop, order, "cancelled")
    lab.buy("NEW", 1)
    poll(lab)
    assert lab.ledger.ordered("A") == 1 + 4


def test_a_word_that_the_ledger_refuses_is_kept_for_a_person(lab: OrderLab) -> None:
    """It stops nothing, is listed with its reason, and is said again when told to."""
    lab.add("B", 10)
    lab.ledger.refuse["B"] = "ORDER_CLOSED"
    order = lab.buy("B", 2)
    lab.buy("A", 1)
    poll(lab)
    assert lab.ledger.ordered("A") == 1
    assert lab.book.refused(10) == {order.id: "ORDER_CLOSED B"}
    poll(lab)
    assert lab.counted.count("refused") == 1
    lab.ledger.refuse.clear()
    asyncio.run(lab.poller.retell(order.id))
    assert lab.ledger.ordered("B") == 2
    assert lab.book.refused(10) == {}


def test_an_order_names_the_ledgers_sku(lab: OrderLab) -> None:
    """The shop's own name of a sku is translated by the alias that publishing uses too."""
    lab.shop.add("OLD-A", 10)
    lab.orders._aliases = {"OLD-A": "A"}
    lab.buy("OLD-A", 2)
    poll(lab)
    assert lab.ledger.ordered("A") == 2
    assert lab.ledger.ordered("OLD-A") == 0


def test_lines_without_a_sku_are_left_out_and_counted(lab: OrderLab) -> None:
    """A line of an unknown product is no reason to lose the order's other lines."""
    place_order(
        lab.shop, [{"sku": "NOPE", "quantity": 1}, {"product_id": lab.shop.find("A")[0].id, "quantity": 2}]
    )
    poll(lab)
    assert lab.ledger.ordered("A") == 2
    assert "unmapped" in lab.counted


def test_an_order_that_makes_no_sense_stops_nothing(lab: OrderLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of its page are told; it is counted, and is not taken for deleted."""
    order = lab.buy()
    poll(lab)
    lab.buy(quantity=1)
    broken = lab.orders._order

    async def reading(found: Any) -> ShopOrder:
        return await broken({**found, "line_items": "none"} if found["id"] == order.id else found)

    monkeypatch.setattr(lab.orders, "_order", reading)
    set_status(lab.shop, order, "completed")
    lab.clock.advance(61)
    poll(lab)
    asyncio.run(lab.poller.check_vanished())
    lab.book.hint(order.id, lab.clock())
    asyncio.run(lab.poller.follow_hints())
    assert lab.ledger.ordered("A") == 4
    assert "unreadable" in lab.counted
    assert lab.book.told([order.id])[order.id].status == "processing"


def test_a_shop_that_fails_is_asked_again(lab: OrderLab) -> None:
    """Nothing of a failed round is lost: HTML, 503 and a cut answer only delay."""
    lab.buy()
    for kind in (Kind.CHALLENGE_PAGE, Kind.MAINTENANCE, Kind.CUT_ANSWER, Kind.DATABASE_DOWN):
        lab.shop.faults.add(Fault(kind=kind, path="orders"))
        with pytest.raises(ShopFailure):
            poll(lab)
    poll(lab)
    assert lab.ledger.sellable("A") == 97


def test_nothing_of_a_customer_is_stored(lab: OrderLab) -> None:
    """The stored bytes hold no text of an order but skus, statuses and digests; searched, all of them."""
    order = lab.buy()
    order.customer_note = "Leave it with Mrs Applebaum"
    order.transaction_id = "tx-Applebaum"
    order.meta = {"billing_email": "applebaum@example.test"}
    order.lines[0].name = "Mug engraved Applebaum"
    poll(lab)
    lab.book.hint(order.id, lab.clock())
    assert lab.book.figures()["orders"] == 1
    content = b"".join(file.read_bytes() for file in lab.folder.rglob("*") if file.is_file()).lower()
    assert b"applebaum" not in content
    assert b"engraved" not in content
    with lab.engine.connect() as connection:
        columns = {
            table.name: set(table.columns.keys())
            for table in (shop_orders, shop_order_hints, shop_order_places)
        }
        row = connection.execute(sa.select(shop_orders)).one()
    assert columns["shop_orders"] == {
        *("channel", "order_id", "status", "open_units", "modified_us", "checked_at", "gone"),
        *("told", "unsent", "refused"),
    }
    assert row.told.startswith(b'[1,"processing",')


@pytest.mark.parametrize("number", range(4))
def test_any_day_of_a_shop_ends_with_the_shops_own_stock(tmp_path: Path, seed: int, number: int) -> None:
    """Orders, edits, cancels, failures, kills at random: at quiet, the ledger has left what the shop has."""
    rng = random.Random(seed * 10 + number)
    lab = OrderLab(tmp_path, rules=Rules(shop_reduces=True), poll_rules=PollRules(check_s=5))
    for sku in "AB":
        lab.add(sku, 10_000)
    poll(lab)
    orders: list[Order] = []
    for _ in range(120):
        lab.clock.advance(rng.choice((0, 0, 0.4, 1, 3)))
        _something(lab, rng, orders)
        try:
            if rng.random() < 0.3:
                asyncio.run(lab.poller.catch_up())
            elif rng.random() < 0.2 and orders:
                lab.book.hint(rng.choice(orders).id, lab.clock())
                asyncio.run(lab.poller.follow_hints())
            elif rng.random() < 0.1:
                asyncio.run(lab.poller.check_vanished())
            elif rng.random() < 0.05:
                lab.stop()
                lab.start()
        except (ShopFailure, ClientError):
            continue
    lab.shop.faults.clear()
    lab.ledger.away, lab.ledger.lose_acks = False, 0
    for _ in range(2):
        lab.clock.advance(6)
        asyncio.run(lab.poller.catch_up())
        asyncio.run(lab.poller.check_vanished())
    assert {sku: lab.ledger.sellable(sku) for sku in "AB"} == {sku: lab.shop.stock(sku) for sku in "AB"}
    lab.stop()


def _something(lab: OrderLab, rng: random.Random, orders: list[Order]) -> None:
    """One thing that happens on a day."""
    what = rng.random()
    alive = [
        order for order in orders if order.id in lab.shop.orders and order.status not in ("trash", "refunded")
    ]
    if what < 0.4 or not alive:
        status = rng.choice(("pending", "processing", "on-hold", "completed", "failed"))
        orders.append(lab.buy(rng.choice("AB"), rng.randint(1, 9), status=status))
    elif what < 0.75:
        statuses = ("pending", "processing", "on-hold", "completed", "failed", "cancelled")
        set_status(lab.shop, rng.choice(alive), rng.choice(statuses))
    elif what < 0.85:
        order = rng.choice(alive)
        if order.lines and not order.refunds and order.status in ("processing", "on-hold", "completed"):
            with lab.shop.lock:
                edit_lines(lab.shop, order, [{"id": order.lines[0].id, "quantity": rng.randint(1, 9)}])
                set_status(lab.shop, order, order.status)
    elif what < 0.88:
        lab.ledger.away = not lab.ledger.away
    elif what < 0.92:
        lab.ledger.lose_acks = 1
    else:
        kind = rng.choice((Kind.CHALLENGE_PAGE, Kind.MAINTENANCE, Kind.CUT_ANSWER, Kind.TOO_MANY_REQUESTS))
        lab.shop.faults.add(Fault(kind=kind, path="orders"))


def test_a_shop_whose_clock_was_ahead_for_a_moment_hides_no_order(lab: OrderLab) -> None:
    """One order is dated two hours ahead: those that come after it, and its own cancel, are dated before it."""
    ahead_s = 7_200.0
    lab.clock._now_s += ahead_s
    early = lab.buy(quantity=5)
    lab.clock._now_s -= ahead_s
    poll(lab)
    assert lab.ledger.sellable("A") == 95
    lab.clock.advance(300)
    lab.buy(quantity=2)
    poll(lab)
    assert lab.ledger.sellable("A") == 93
    lab.clock.advance(300)
    set_status(lab.shop, early, "cancelled")
    poll(lab)
    assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (98, 98)
    lab.clock.advance(2 * ahead_s)
    lab.buy(quantity=1)
    poll(lab)
    assert (lab.ledger.sellable("A"), lab.shop.stock("A")) == (97, 97)


def test_an_order_that_the_shop_cannot_answer_keeps_no_other_waiting(lab: OrderLab) -> None:
    """A plugin fails at one order: hints behind it are followed, lost orders are missed; it is asked for again."""
    broken, other, gone = lab.buy(quantity=1), lab.buy(quantity=2), lab.buy(quantity=4)
    poll(lab)
    fault = lab.shop.faults.add(Fault(kind=Kind.FATAL_EARLY, path=f"orders/{broken.id}", times=0))
    for order in (broken, other):
        with lab.shop.lock:
            edit_lines(lab.shop, order, [{"id": order.lines[0].id, "quantity": 8}])
        lab.book.hint(order.id, lab.clock())
        lab.clock.advance(1)
    followed, _ = asyncio.run(lab.poller.follow_hints())
    assert (followed, [hint.order_id for hint in lab.book.hints(10)]) == (1, [broken.id])
    assert lab.ledger.ordered("A") == 1 + 8 + 4
    delete_order(lab.shop, gone)
    lab.clock.advance(200)
    trash_order(lab.shop, broken)  # no list names it, and it cannot be read
    asyncio.run(lab.poller.check_vanished())
    assert lab.counted.count("vanished") == 1
    assert asyncio.run(lab.poller.follow_hints())[0] == 0
    lab.shop.faults.remove(fault)
    assert asyncio.run(lab.poller.follow_hints())[0] == 1
    assert lab.book.hints(10) == []
    assert lab.counted.count("unreadable") == 3


def test_a_shop_that_answers_nothing_keeps_its_hints(lab: OrderLab) -> None:
    """That is no order's fault: the round ends, and nothing is struck out."""
    orders = [lab.buy(quantity=1) for _ in range(6)]
    poll(lab)
    for order in orders:
        lab.book.hint(order.id, lab.clock())
    fault = lab.shop.faults.add(Fault(kind=Kind.DATABASE_DOWN, path="orders", times=0))
    with pytest.raises(ShopFailure):
        asyncio.run(lab.poller.follow_hints())
    assert {hint.order_id for hint in lab.book.hints(10)} == {order.id for order in orders}
    assert fault.hits <= 3
