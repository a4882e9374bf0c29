"""Orders of a shop become facts: each status as it was observed, whatever order they are read in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from availability.v1 import stock_pb2 as pb
from publisher.orders.facts import (
    Fact,
    Folded,
    Outcome,
    Rules,
    ShopLine,
    ShopOrder,
    Told,
    deltas,
    fold,
    from_bytes,
    to_bytes,
)

T = 1_795_248_619_000_000
SECOND = 1_000_000
RULES = Rules()


def order(status: str, *lines: ShopLine, at: int = 0) -> ShopOrder:
    return ShopOrder(order_id=336, status=status, modified_us=T + at * SECOND, lines=lines or (line(3),))


def line(quantity: int, *, refunded: int = 0, reduced: int | None = None, name: str = "1", sku: str = "A"):  # type: ignore[no-untyped-def]
    return ShopLine(line=name, sku=sku, quantity=quantity, refunded=refunded, reduced=reduced)


def walk(
    *orders: ShopOrder,
    rules: Rules = RULES,
    shipped: Mapping[tuple[str, str], Mapping[str, int]] | None = None,
) -> Folded:
    """Fold readings one after the other, through the stored form each time."""
    told: Told | None = None
    for one in orders:
        folded = fold(one, told, rules=rules, now_us=T, shipped=shipped)
        told = from_bytes(to_bytes(folded.told))
        assert told == folded.told
    return folded


def ordered(folded: Folded) -> int:
    return folded.told.open_units


# WOOCOMMERCE.md section 7: the stock of a shop with 100 after each transition of an order of 3.
TABLE = [
    (("pending",), 100),
    (("failed",), 100),
    (("cancelled",), 100),
    (("on-hold",), 97),
    (("processing",), 97),
    (("completed",), 97),
    (("pending", "on-hold"), 97),
    (("pending", "processing"), 97),
    (("pending", "on-hold", "processing", "completed"), 97),
    (("processing", "failed"), 97),
    (("on-hold", "failed", "processing"), 97),
    (("failed", "pending"), 100),
    (("processing", "cancelled"), 100),
    (("processing", "pending"), 100),
    (("processing", "cancelled", "processing"), 97),
    (("processing", "cancelled", "processing", "pending", "processing", "failed", "processing"), 97),
    (("processing", "refunded"), 97),
    (("on-hold", "refunded"), 97),
    (("processing", "trash"), 97),
    (("processing", "vanished"), 97),
    (("processing", "trash", "processing"), 97),
    (("pending", "trash"), 100),
    (("pending", "vanished"), 100),
    (("checkout-draft",), 100),
    (("checkout-draft", "processing"), 97),
    (("processing", "delivered-by-drone"), 97),
    (("delivered-by-drone",), 100),
]


@pytest.mark.parametrize(
    ("path", "stock"), TABLE, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
@pytest.mark.parametrize("same_second", [False, True])
def test_each_transition_takes_what_the_shop_takes(
    path: tuple[str, ...], stock: int, same_second: bool
) -> None:
    """Whatever states an order goes through, the ledger has ordered what the shop took; a second is no limit."""
    folded = walk(*(order(status, at=0 if same_second else n) for n, status in enumerate(path)))
    assert 100 - ordered(folded) == stock


@pytest.mark.parametrize(
    ("path", "stock"), TABLE, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_a_ledger_that_hears_the_words_in_any_order_ends_the_same(path: tuple[str, ...], stock: int) -> None:
    """By their times alone the latest word of each line wins: the order of arrival is nothing."""
    told: Told | None = None
    words: list[tuple[int, pb.Delta]] = []
    for n, status in enumerate(path):
        folded = fold(order(status, at=n // 3), told, rules=RULES, now_us=T)
        told = folded.told
        words += [
            (delta.occurred_time.ToMicroseconds(), delta) for delta in deltas("shop", 336, told, folded.facts)
        ]
    latest: tuple[int, int] = (0, 0)
    for at, delta in reversed(words):
        if at > latest[0]:
            latest = (at, 0 if delta.type == pb.DELTA_TYPE_ORDER_CANCELLED else delta.quantity)
    assert 100 - latest[1] == stock
    assert len({at for at, _ in words}) == len(words)


def test_a_cancel_is_said_once_and_for_the_whole_order() -> None:
    """ORDER_CANCELLED releases holds of the order too, so it is said even where nothing was ordered."""
    assert walk(order("cancelled")).facts == (Fact(kind="cancelled"),)
    assert walk(order("processing"), order("cancelled", at=1)).facts == (Fact(kind="cancelled"),)
    again = walk(order("cancelled"), order("cancelled", line(4), at=1))
    assert again.facts == ()


def test_states_that_were_never_seen_are_skipped() -> None:
    """The shop tells only its last state: a failed order that had been paid counts by what the shop says it took."""
    assert ordered(walk(order("failed", line(3, reduced=3)))) == 3
    assert ordered(walk(order("trash", line(3, reduced=3)))) == 3
    assert ordered(walk(order("refunded"))) == 3
    assert ordered(walk(order("failed", line(3, reduced=0)))) == 0
    mirror = Rules(shop_reduces=True)
    paid, failed = order("processing", line(3, reduced=3)), order("failed", line(3), at=1)
    assert ordered(walk(paid, failed)) == 3
    assert ordered(walk(paid, failed, rules=mirror)) == 0  # it was cancelled in between
    assert ordered(walk(paid, order("failed", line(5, reduced=5), at=1), rules=mirror)) == 5
    refunded = order("failed", line(3, refunded=1, reduced=3), at=1)  # without putting the unit back
    assert ordered(walk(paid, refunded, rules=mirror)) == 2
    assert ordered(walk(paid, refunded)) == 2
    assert ordered(walk(paid, order("failed", line(2), at=1))) == 2  # edited before it failed


def test_edited_lines_are_told_as_they_stand() -> None:
    """3 to 5, 5 to 1, the line removed, another added: the quantity of now, and 0 for what is gone."""
    steps = [
        (order("processing"), {("1", "A"): 3}),
        (order("processing", line(5), at=1), {("1", "A"): 5}),
        (order("processing", line(1), at=1), {("1", "A"): 1}),
        (replace(order("processing", at=2), lines=()), {("1", "A"): 0}),
        (order("processing", line(4, name="2"), at=2), {("1", "A"): 0, ("2", "A"): 4}),
        (order("cancelled", line(4, name="2"), at=2), {("1", "A"): 0, ("2", "A"): 0}),
    ]
    told: Told | None = None
    for one, expected in steps:
        folded = fold(one, told, rules=RULES, now_us=T)
        told = folded.told
        assert {(cell.line, cell.sku): cell.ordered for cell in told.cells} == expected
    assert [fact.kind for fact in folded.facts] == ["cancelled"]


def test_a_line_keeps_the_sku_that_it_was_first_read_with() -> None:
    """With a deleted product the shop names no sku any more, with a renamed one another: the order is the same."""
    for sku in ("", "B"):
        folded = walk(order("processing"), order("completed", line(3, sku=sku), at=1))
        assert {(cell.sku, cell.ordered) for cell in folded.told.cells} == {("A", 3)}
    unknown = walk(order("processing", line(3, sku=""), line(2, name="2")))
    assert unknown.unmapped == 1
    assert ordered(unknown) == 2


def test_everything_can_be_said_once_more() -> None:
    """Words that the ledger refused are said again when the reason is gone, as a new revision."""
    told = walk(order("processing", line(3), line(2, name="2"))).told
    again = fold(order("processing", line(3), line(2, name="2")), told, rules=RULES, now_us=T, again=True)
    assert [fact.quantity for fact in again.facts] == [3, 2]
    assert again.told.occurred_us > told.occurred_us


def test_two_lines_of_one_sku_add_up() -> None:
    """2 and 5 of one product are 7."""
    assert ordered(walk(order("processing", line(2), line(5, name="2")))) == 7


def test_negative_lines_order_nothing() -> None:
    """A line of -2 gives units to the shop; to the ledger it is no order."""
    assert ordered(walk(order("processing", line(-2)))) == 0


def test_a_refund_before_shipment_lowers_what_is_ordered() -> None:
    """2 of 5 refunded: 3; the later cancel takes the rest."""
    refunded = walk(order("processing", line(5)), order("processing", line(5, refunded=2), at=1))
    assert refunded.facts == (Fact(kind="changed", line="1", sku="A", quantity=3),)
    end = walk(
        order("processing", line(5)),
        order("processing", line(5, refunded=2), at=1),
        order("cancelled", line(5, refunded=2), at=2),
    )
    assert ordered(end) == 0


def test_a_refund_after_shipment_expects_a_return_where_it_left_from() -> None:
    """Shipped units that are refunded are not for sale: they are expected at the nodes that shipped them."""
    shipped = {("", "A"): {"W1": 1, "W2": 4}}
    folded = walk(order("completed", line(5)), order("completed", line(5, refunded=3), at=1), shipped=shipped)
    assert ordered(folded) == 5
    assert folded.facts == (
        Fact(kind="expected", sku="A", node="W1", quantity=1),
        Fact(kind="expected", sku="A", node="W2", quantity=2),
    )
    sent = deltas("shop", 336, folded.told, folded.facts)
    assert {(delta.expected_kind, delta.reference) for delta in sent} == {(pb.EXPECTED_KIND_RETURN, "336")}


def test_a_refund_of_units_partly_shipped_is_split() -> None:
    """5 ordered, 4 shipped, 3 refunded: 1 never leaves, 2 come back."""
    shipped = {("9", "A"): {"W": 4}}
    folded = walk(
        order("processing", line(5)), order("processing", line(5, refunded=3), at=1), shipped=shipped
    )
    assert ordered(folded) == 4
    assert Fact(kind="expected", sku="A", node="W", quantity=2) in folded.facts


def test_only_the_owner_of_a_node_books_its_stock() -> None:
    """No shipment is told but from the shop's own node; there a completed order ships, and a cancel takes it back."""
    assert all(fact.kind != "shipped" for fact in walk(order("completed")).facts)
    mine = Rules(owned_node="HOME")
    done = walk(order("processing"), order("completed", at=1), rules=mine)
    assert done.facts == (Fact(kind="shipped", line="1", sku="A", node="HOME", quantity=3),)
    back = walk(order("processing"), order("cancelled", at=1), rules=mine, shipped={("1", "A"): {"HOME": 3}})
    assert Fact(kind="shipped", line="1", sku="A", node="HOME", quantity=-3) in back.facts


def test_kits_are_exploded_by_what_the_order_remembers() -> None:
    """The recipe of the first word counts for ever; a kit of today's recipe does not change an order of last week."""
    old = {"KIT": ((1_000, (("A", 2), ("B", 1))),)}
    new = {"KIT": ((1_000, (("A", 9),)),)}
    kit = order("processing", line(3, sku="KIT"))
    first = fold(kit, None, rules=RULES, now_us=T, kits=old)
    assert {(cell.sku, cell.ordered) for cell in first.told.cells} == {("A", 6), ("B", 3)}
    told = from_bytes(to_bytes(first.told))
    later = fold(order("processing", line(5, sku="KIT"), at=1), told, rules=RULES, now_us=T, kits=new)
    assert {(cell.sku, cell.ordered) for cell in later.told.cells} == {("A", 10), ("B", 5)}
    back = fold(
        order("processing", line(5, sku="KIT", refunded=1), at=2), later.told, rules=RULES, now_us=T, kits=new
    )
    assert {(cell.sku, cell.ordered) for cell in back.told.cells} == {("A", 8), ("B", 4)}


def test_kits_made_by_several_recipes_are_taken_in_turn() -> None:
    """An order whose commits used two recipes is exploded by both, the last one for the rest."""
    kits = {"KIT": ((1, (("A", 1),)), (1, (("B", 1),)))}
    folded = fold(order("processing", line(3, sku="KIT")), None, rules=RULES, now_us=T, kits=kits)
    assert {(cell.sku, cell.ordered) for cell in folded.told.cells} == {("A", 1), ("B", 2)}


def test_a_shop_may_give_back_what_others_keep() -> None:
    """A setting makes failed, refunded, trashed and deleted orders cancels."""
    generous = Rules(gives_back=frozenset({"failed", "refunded", "trash", "vanished"}))
    for status in generous.gives_back:
        assert ordered(walk(order("processing"), order(status, at=1), rules=generous)) == 0
        assert (
            ordered(walk(order("processing"), order(status, at=1), order("processing", at=2), rules=generous))
            == 3
        )


def test_the_same_state_again_tells_nothing() -> None:
    """Deliveries come twice and orders are touched: only another state is a fact."""
    again = walk(order("processing"), order("processing", at=9))
    assert again.outcome is Outcome.UNCHANGED
    assert again.facts == ()
    assert again.told.modified_us == T + 9 * SECOND


def test_an_older_reading_is_no_news() -> None:
    """A page that was read before a newer state was folded changes nothing."""
    late = walk(order("processing", at=5), order("pending", at=4))
    assert late.outcome is Outcome.OLDER
    assert ordered(late) == 3


def test_ids_repeat_with_their_content_and_only_then() -> None:
    """What is sent again has the same id; another content has another one, even where the book was lost."""
    folded = walk(order("processing"))
    first = deltas("shop", 336, folded.told, folded.facts)
    assert [delta.event_id for delta in first] == [
        delta.event_id for delta in deltas("shop", 336, folded.told, folded.facts)
    ]
    other = walk(order("processing", line(4)))
    assert deltas("shop", 336, other.told, other.facts)[0].event_id != first[0].event_id
    assert all(len(delta.event_id.encode()) <= 128 for delta in first)


def test_an_old_order_is_told_with_a_time_that_the_ledger_still_takes() -> None:
    """Open orders of last year are told at going live; the ledger remembers events for 30 days."""
    now = T + 400 * 86_400 * SECOND
    folded = fold(order("processing"), None, rules=RULES, now_us=now)
    assert now - folded.told.occurred_us == RULES.age_max_us


STATUSES = st.sampled_from(
    [
        "pending",
        "on-hold",
        "processing",
        "completed",
        "failed",
        "cancelled",
        "refunded",
        "trash",
        "checkout-draft",
    ]
)


@given(st.lists(st.tuples(STATUSES, st.integers(-2, 9), st.integers(0, 4), st.integers(0, 2)), max_size=8))
def test_what_is_remembered_is_what_the_words_add_up_to(readings: list[tuple[str, int, int, int]]) -> None:
    """For any walk: the words give the remembered quantities, their times rise, and no quantity is negative."""
    told: Told | None = None
    words: dict[tuple[str, str], int] = {}
    now, at = 0, 0
    for status, quantity, refunded, later in readings:
        at += later
        folded = fold(order(status, line(quantity, refunded=refunded), at=at), told, rules=RULES, now_us=T)
        if told is not None and folded.facts:
            assert folded.told.occurred_us > now
        for fact in folded.facts:
            if fact.kind == "cancelled":
                words = dict.fromkeys(words, 0)
            else:
                assert fact.quantity >= 0
                words[fact.line, fact.sku] = fact.quantity
        if folded.outcome is not Outcome.DRAFT or told is not None:
            told = folded.told
            now = told.occurred_us
            assert {(cell.line, cell.sku): cell.ordered for cell in told.cells if cell.ordered} == {
                key: units for key, units in words.items() if units
            }
