"""The book of orders and the operator's approvals: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import open_database
from availability.history.shop_tables import shop_skus
from publisher.golive import APPROVED_S, Approvals
from publisher.orders.book import Entry, OrderBook, Place
from publisher.orders.facts import Cell, Fact, KitUse, Return, Told
from publisher.state import Change, State
from tests.postgres import database_url, postgres, postgres_url

__all__ = ["database_url", "postgres", "postgres_url"]

FACT = Fact(kind="placed", line="1", sku="A", quantity=3)


@pytest.fixture
def engine(database_url: str, tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(database_url, tmp_path)
    yield engine
    engine.dispose()


def told(revision: int = 1, ordered: int = 3, status: str = "processing", modified_us: int = 1_000) -> Told:
    return Told(
        revision=revision,
        status=status,
        digest=f"d{revision}",
        modified_us=modified_us,
        occurred_us=modified_us + revision,
        cells=(Cell(line="1", sku="Ä {odd}: 'sku'", ordered=ordered),),
        returns=(Return(sku="A", node="W", quantity=1),),
        kits=(KitUse(kit="K", recipes=((2, (("A", 1), ("B", 2))),)),),
        skus=(("1", "K"),),
    )


def test_what_is_written_down_is_what_is_read(engine: Engine) -> None:
    """Words stay until they are struck out, and a newer revision's words take the place of the older ones."""
    book, other = OrderBook(engine, "web"), OrderBook(engine, "other")
    book.note([Entry(order_id=7, told=told(), facts=(FACT,))], now=5.0)
    assert book.told([7, 8]) == {7: told()}
    assert other.told([7]) == {}
    assert book.unsent(10) == [Entry(order_id=7, told=told(), facts=(FACT,))]
    newer = Entry(order_id=7, told=told(2, 0), facts=(Fact(kind="cancelled"),))
    book.note([newer], now=6.0)
    book.sent([Entry(order_id=7, told=told(), facts=(FACT,))])
    assert book.unsent(10) == [newer], "an ack of older words strikes out no newer ones"
    book.sent([newer], {7: "ORDER_CLOSED A"})
    assert book.unsent(10) == []
    assert book.refused(10) == {7: "ORDER_CLOSED A"}
    book.note([Entry(order_id=7, told=told(2, 0, modified_us=2_000))], now=7.0)
    assert book.refused(10) == {7: "ORDER_CLOSED A"}, "a touched order is no new word"
    assert book.figures() == {"orders": 1, "unsent": 0, "refused": 1, "hints": 0}


def test_the_place_comes_with_the_orders_or_not_at_all(engine: Engine) -> None:
    """One transaction: a row that cannot be stored takes the place with it."""
    book = OrderBook(engine, "web")
    assert book.place() is None
    book.note([], now=1.0, place=Place(modified_us=5, begun_us=1))
    broken = Entry(order_id=2**70, told=told())
    with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own word for it
        book.note([broken], now=1.0, place=Place(modified_us=9, begun_us=1))
    assert book.place() == Place(modified_us=5, begun_us=1)


def test_orders_that_count_are_looked_for_the_longest_unseen_first(engine: Engine) -> None:
    """Those that are gone, want nothing or are old are not."""
    book = OrderBook(engine, "web")
    for order_id, entry in enumerate(
        [told(), told(ordered=0), told(status="vanished"), told(modified_us=10), told(), told()]
    ):
        book.note([Entry(order_id=order_id, told=entry)], now=100.0 - order_id)
    assert book.to_check(before=99.0, modified_after_us=500, limit=10) == [5, 4]
    book.checked([5], 200.0)
    assert book.to_check(before=150.0, modified_after_us=500, limit=10) == [4, 0]
    assert book.forget(before_us=500) == 1
    assert book.figures()["orders"] == 5


def test_a_hint_is_kept_once_and_a_later_one_stays(engine: Engine) -> None:
    """However often an order is named, it is read once; what came while it was read counts."""
    book = OrderBook(engine, "web")
    for at in (1.0, 2.0, 3.0):
        book.hint(7, at)
    book.hint(8, 2.5)
    hints = book.hints(10)
    assert [(hint.order_id, hint.number) for hint in hints] == [(8, 1), (7, 3)]
    book.hint(7, 4.0)
    book.followed(hints)
    assert [(hint.order_id, hint.number) for hint in book.hints(10)] == [(7, 4)]


def test_zeros_wait_until_they_are_approved(engine: Engine) -> None:
    """How many wait is told, since when; an approval names its author, and needs something that waits."""
    approvals = Approvals(engine, "web")
    assert approvals.find() is None
    approvals.tell(0, 90, 10.0)
    assert approvals.approve("ada", "why not", 11.0) is None
    approvals.tell(30, 100, 20.0)
    approvals.tell(40, 100, 30.0)
    found = approvals.find()
    assert found is not None
    assert (found.held, found.on_sale, found.since, found.approved_until) == (40, 100, 20.0, 0.0)
    assert approvals.approve("ada", "sale is over", 40.0) == found
    approvals.tell(0, 60, 50.0)
    after = approvals.find()
    assert after is not None
    assert (after.held, after.since, after.approved_until) == (0, None, 40.0 + APPROVED_S)
    assert (after.author, after.reason) == ("ada", "sale is over")


def test_what_was_set_to_zero_lately_is_known_after_a_restart(engine: Engine) -> None:
    """The oldest first, and only what is 0."""
    state = State(engine, "web", "one")
    assert state.acquire(1_000.0, 3_600.0)
    state.heard(
        [Change(sku=sku, sellable=0, wanted=0, version="1-1", heard_at=1_000.0) for sku in ("a", "b", "c")],
        "1-1",
        1_000.0,
    )
    with engine.begin() as connection:
        for sku, acked, at in (("a", 0, 900.0), ("b", 0, 500.0), ("c", 4, 950.0)):
            connection.execute(
                sa.update(shop_skus).where(shop_skus.c.sku == sku).values(acked=acked, acked_at=at)
            )
    assert Approvals(engine, "web").zeroed_since(400.0) == [(500.0, "b"), (900.0, "a")]
    assert Approvals(engine, "web").zeroed_since(600.0) == [(900.0, "a")]
