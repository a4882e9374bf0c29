"""The contract's tricky sentences as small examples, held against the plain model."""

from __future__ import annotations

from itertools import count, permutations
from typing import Any  # fields of Delta and arguments of reserve, passed on

import pytest

from tests.model import Buffer, Delta, Facts, Model, Override, Policy, Refusal, Shortage, place

_numbers = count(1)


def told(model: Model, type_: str, quantity: int = 0, **fields: Any) -> str:
    """Tell the model one event of a source called erp; the answer is its result."""
    event = Delta(source="erp", type=type_, event_id=f"e{next(_numbers):04}", quantity=quantity, **fields)
    return model.apply_delta(event)[0]


def stocked(**on_hand: int) -> Model:
    """Make a ledger with a sku called tea at some nodes, and a channel web that sells it everywhere."""
    model = Model()
    model.set_channel("web", Policy())
    for node, quantity in on_hand.items():
        told(model, "ADJUSTMENT", quantity, sku="tea", node=node)
    return model


def hold(model: Model, quantity: int, name: str = "h", **fields: Any) -> str:
    """Reserve tea on web; the answer is the outcome. The reservation is called like its request."""
    answer = model.reserve(name, "web", [("tea", quantity)], reservation_id=name, **fields)
    return answer.outcome


def order(model: Model, quantity: int, ref: str = "1001") -> None:
    """Reserve and commit tea on web."""
    assert hold(model, quantity, ref) == "RESERVED"
    model.commit(f"commit {ref}", ref, order_ref=ref)


# --- formula


def test_units_promised_and_lost_are_taken_from_the_others() -> None:
    """Five ordered and all five damaged: another node's stock pays for them."""
    model = stocked(east=5, west=4)
    order(model, 5)
    told(model, "QUARANTINE", 5, sku="tea", node="east", reason="damage")
    assert model.net("tea", "east") == -5
    assert model.free("tea", "east") == 0
    assert model.sellable("web", "tea") == 0
    told(model, "RECEIPT", 3, sku="tea", node="west")
    assert model.sellable("web", "tea") == 2


def test_a_negative_node_hides_nothing_elsewhere() -> None:
    """A counting error at one node takes nothing from another's stock."""
    model = stocked(east=-7, west=4)
    assert model.give("tea", "east") == 0
    assert model.sellable("web", "tea") == 4


def test_a_negative_quarantine_gives_nothing() -> None:
    """Units released from quarantine before they were put there are not sellable twice."""
    model = stocked(east=5)
    told(model, "QUARANTINE_RELEASE", 3, sku="tea", node="east", reason="inspection")
    assert model.sellable("web", "tea") == 5
    told(model, "QUARANTINE", 4, sku="tea", node="east", reason="inspection")
    assert model.sellable("web", "tea") == 4


def test_promises_of_a_node_that_is_not_counted_still_count() -> None:
    """An offline or excluded node adds what it promised too much, and nothing else."""
    model = stocked(east=5, west=10)
    order(model, 5)
    told(model, "WRITE_OFF", 2, sku="tea", node="east", reason="damage")
    model.set_node("east", online=False)
    assert model.sellable("web", "tea") == 10 - 2  # damaged went below 0, and counts as 0
    model.set_node("east", online=True)
    model.set_override("web", "tea", Override(excluded_nodes=("east",)))
    assert model.sellable("web", "tea") == 10 - 2


def test_a_percent_buffer_rounds_up_and_does_not_shrink_by_selling() -> None:
    """Ten percent of 11 is 2, before and after 5 of them are promised."""
    model = stocked(east=11)
    model.set_channel("web", Policy(buffer=Buffer(percent=10)))
    assert model.sellable("web", "tea") == 9
    order(model, 5)
    assert model.sellable("web", "tea") == 4
    model.set_node("east", online=False)
    assert model.terms("web", "tea").buffer == 0


def test_an_absent_override_is_not_zero() -> None:
    """What an override does not name stays the channel's; what it sets to 0 is 0."""
    model = stocked(east=10)
    model.set_channel("web", Policy(buffer=Buffer(units=3), oversell_limit=2))
    assert model.sellable("web", "tea") == 9
    model.set_override("web", "tea", Override(buffer=Buffer()))
    assert model.sellable("web", "tea") == 12
    model.set_override("web", "tea", Override(oversell_limit=0))
    assert model.sellable("web", "tea") == 7
    model.clear_override("web", "tea")
    assert model.sellable("web", "tea") == 9


def test_safety_stock_of_a_position_over_that_of_its_node() -> None:
    """A position's own number counts, 0 too; without one it is its node's default."""
    model = stocked(east=10)
    model.set_safety_stock("east", 4)
    assert model.sellable("web", "tea") == 6
    model.set_safety_stock("east", 0, sku="tea")
    assert model.sellable("web", "tea") == 10
    model.set_safety_stock("east", None, sku="tea")
    assert model.sellable("web", "tea") == 6


def test_any_stop_in_force_blocks() -> None:
    """Lifting one of two stops leaves the sku blocked; blocked sells nothing, oversell or not."""
    model = stocked(east=10)
    model.set_channel("web", Policy(oversell_limit=5))
    model.set_sale_state(sku="tea", blocked=True)
    model.set_sale_state(channel="web", sku="tea", blocked=True)
    model.set_sale_state(sku="tea", blocked=False)
    assert (model.sellable("web", "tea"), model.state("web", "tea")) == (0, "BLOCKED")
    assert hold(model, 1) == "INSUFFICIENT_STOCK"
    model.set_sale_state(channel="web", sku="tea", blocked=False)
    assert model.sellable("web", "tea") == 15


def test_an_unknown_sku_sells_nothing() -> None:
    """The oversell limit grants nothing of what the ledger has never heard of."""
    model = stocked(east=1)
    model.set_channel("web", Policy(oversell_limit=5))
    assert (model.sellable("web", "coffee"), model.state("web", "coffee")) == (0, "UNKNOWN_SKU")


def test_states_as_words() -> None:
    """The state follows the sellable quantity, the threshold and where the units come from."""
    model = stocked(east=10)
    model.set_channel("web", Policy(low_stock_threshold=3, oversell_limit=2))
    states = []
    for quantity in (1, 8, 1, 2):
        states.append(model.state("web", "tea"))
        hold(model, quantity, f"h{quantity}{len(states)}")
    assert [*states, model.state("web", "tea")] == [
        "IN_STOCK",
        "IN_STOCK",
        "LOW_STOCK",
        "OVERSELLING",
        "OUT_OF_STOCK",
    ]


# --- grants


def test_oversold_units_bring_the_next_answer_down() -> None:
    """Nobody can sell more than was first answered: 3 there and 2 beyond, whatever the basket sizes."""
    model = stocked(east=3)
    model.set_channel("web", Policy(oversell_limit=2))
    assert model.sellable("web", "tea") == 5
    assert hold(model, 4) == "RESERVED"
    assert model.sellable("web", "tea") == 1
    assert hold(model, 2, "h2") == "INSUFFICIENT_STOCK"
    assert hold(model, 1, "h3") == "RESERVED"
    assert model.sellable("web", "tea") == 0


def test_oversold_units_sit_at_the_first_node_and_go_back_first() -> None:
    """A grant takes nodes in order, the rest at the first; a release gives the rest back first."""
    model = stocked(east=2, west=3)
    model.set_channel("web", Policy(nodes=("west", "east"), oversell_limit=4))
    assert hold(model, 7) == "RESERVED"
    assert model.held("h") == {("tea", "west"): 5, ("tea", "east"): 2}
    model.release("r1", "h", [("tea", 2)])
    assert model.held("h") == {("tea", "west"): 3, ("tea", "east"): 2}
    model.release("r2", "h", [("tea", 3)])
    assert model.held("h") == {("tea", "west"): 2}
    assert model.release("r3", "h", [("tea", 2)]).state == "RELEASED"


def test_no_node_left_is_no_grant() -> None:
    """With every node offline the oversell limit has nowhere to sit."""
    model = stocked(east=3)
    model.set_channel("web", Policy(oversell_limit=2))
    model.set_node("east", online=False)
    answer = model.reserve("h", "web", [("tea", 1)], reservation_id="h")
    assert answer.outcome == "INSUFFICIENT_STOCK"
    assert answer.shortages == (Shortage("tea", 1, 0),)


def test_a_named_node_gives_at_most_what_the_channel_can() -> None:
    """East alone has 5, but the channel owes 4 of them to an order that west can no longer serve."""
    model = stocked(east=5, west=4)
    assert hold(model, 4, node="west") == "RESERVED"
    told(model, "ADJUSTMENT", -4, sku="tea", node="west")
    assert model.node_sellable("web", "tea", "east") == 1
    assert hold(model, 2, "h2", node="east") == "INSUFFICIENT_STOCK"
    assert hold(model, 1, "h3", node="east") == "RESERVED"


def test_equal_skus_are_added_up() -> None:
    """The last unit on two lines of one basket is one unit too many."""
    model = stocked(east=1)
    answer = model.reserve("h", "web", [("tea", 1), ("tea", 1)], reservation_id="h")
    assert answer.shortages == (Shortage("tea", 2, 1),)


def test_partial_serves_what_there_is() -> None:
    """All or nothing unless asked otherwise; then each line gets what it can, in order."""
    model = stocked(east=3)
    basket = [("tea", 5), ("coffee", 1)]
    assert model.reserve("h", "web", basket, reservation_id="h").outcome == "INSUFFICIENT_STOCK"
    answer = model.reserve("p", "web", basket, allow_partial=True, reservation_id="p")
    assert answer.outcome == "PARTIAL"
    assert answer.shortages == (Shortage("tea", 5, 3), Shortage("coffee", 1, 0))
    assert model.held("p") == {("tea", "east"): 3}


def test_an_answer_is_given_once() -> None:
    """A refusal stays a refusal for its request id, even after stock came; other content is refused."""
    model = stocked(east=1)
    assert hold(model, 2) == "INSUFFICIENT_STOCK"
    told(model, "RECEIPT", 5, sku="tea", node="east")
    again = model.reserve("h", "web", [("tea", 2)], reservation_id="h")
    assert (again.outcome, again.replayed) == ("INSUFFICIENT_STOCK", True)
    with pytest.raises(Refusal, match="REQUEST_ID_REUSED"):
        hold(model, 1)


def test_a_commit_after_expiry_reserves_anew_or_says_so() -> None:
    """Stock that is still there is taken again; stock that somebody else took is RESERVATION_EXPIRED."""
    model = stocked(east=3)
    for name in ("a", "b"):
        hold(model, 2, name)
        model.expire(name)
    assert model.sellable("web", "tea") == 3
    assert model.commit("ca", "a", order_ref="1").state == "COMMITTED"
    with pytest.raises(Refusal, match="RESERVATION_EXPIRED"):
        model.commit("cb", "b", order_ref="2")
    assert model.sellable("web", "tea") == 1


def test_a_second_commit_is_a_replay_of_the_first() -> None:
    """The same order again changes nothing; another order finds the reservation ended."""
    model = stocked(east=3)
    order(model, 2)
    assert model.commit("again", "1001", order_ref="1001").replayed
    with pytest.raises(Refusal, match="RESERVATION_NOT_ACTIVE"):
        model.commit("other", "1001", order_ref="1002")
    assert model.sellable("web", "tea") == 1


# --- orders


def test_an_allocation_elsewhere_moves_the_commitment() -> None:
    """The shop sourced from east; the ERP says west. It is counted once, and where the ERP says."""
    model = stocked(east=5, west=5)
    order(model, 3)
    web: dict[str, Any] = {"order_source": "web", "order_ref": "1001", "sku": "tea"}
    assert told(model, "ORDER_ALLOCATED", 2, node="west", **web) == "APPLIED"
    assert model.order_committed(("web", "1001"), "tea") == {"west": 2, "east": 1}
    told(model, "ORDER_ALLOCATED", 3, node="west", **web)
    assert model.order_committed(("web", "1001"), "tea") == {"west": 3}
    told(model, "SHIPMENT", 3, node="west", **web)
    assert model.order_committed(("web", "1001"), "tea") == {}
    assert model.sellable("web", "tea") == 7


def test_an_allocation_before_the_commit_counts_once() -> None:
    """The ERP is faster than the checkout: the hold that carries the order stops counting, then commits."""
    model = stocked(east=5)
    assert hold(model, 3, order_ref="1001") == "RESERVED"
    web: dict[str, Any] = {"order_source": "web", "order_ref": "1001", "sku": "tea", "node": "east"}
    told(model, "ORDER_ALLOCATED", 3, **web)
    assert (model.reserved("tea", "east"), model.committed("tea", "east")) == (0, 3)
    model.commit("c", "h")
    assert (model.reserved("tea", "east"), model.committed("tea", "east")) == (0, 3)
    assert model.sellable("web", "tea") == 2


def test_a_shipment_beyond_the_allocation_lowers_the_others_first() -> None:
    """Five units allocated to two nodes, four of them leave from one: one is left, at the other."""
    facts = Facts(ordered=5, sourced={}, allocated={"east": 2, "west": 3}, shipped={"west": 4})
    assert place(facts) == ({"east": 1}, 0)


def test_a_voided_shipment_opens_the_line_again() -> None:
    """A shipment and its void leave everything as before, stock and order alike."""
    model = stocked(east=5)
    order(model, 2)
    web: dict[str, Any] = {"order_source": "web", "order_ref": "1001", "sku": "tea", "node": "east"}
    told(model, "SHIPMENT", 2, **web)
    assert (model.positions["tea"]["east"].on_hand, model.committed("tea", "east")) == (3, 0)
    told(model, "SHIPMENT", -2, **web)
    assert (model.positions["tea"]["east"].on_hand, model.committed("tea", "east")) == (5, 2)


def test_cancel_and_reopen() -> None:
    """A cancelled order holds nothing, whatever is committed on it later; a later word reopens it."""
    model = stocked(east=5)
    order(model, 2)
    web: dict[str, Any] = {"order_source": "web", "order_ref": "1001"}
    told(model, "ORDER_CANCELLED", occurred_us=20, **web)
    assert model.sellable("web", "tea") == 5
    hold(model, 1, "late")
    assert model.commit("c", "late", order_ref="1001").order_cancelled
    assert model.sellable("web", "tea") == 5
    assert told(model, "ORDER_CHANGED", 4, sku="tea", occurred_us=10, **web) == "APPLIED"
    assert model.sellable("web", "tea") == 5
    told(model, "ORDER_CHANGED", 4, sku="tea", occurred_us=30, **web)
    assert model.sellable("web", "tea") == 1
    assert told(model, "ORDER_CANCELLED", occurred_us=19, **web) == "STALE"


def test_a_cancel_releases_the_holds_that_carry_the_order() -> None:
    """A whole cancel ends them; that of one sku ends its units only."""
    model = stocked(east=5)
    told(model, "RECEIPT", 5, sku="coffee", node="east")
    model.reserve("h", "web", [("tea", 2), ("coffee", 2)], order_ref="7", reservation_id="h")
    told(model, "ORDER_CANCELLED", sku="tea", order_source="web", order_ref="7")
    assert model.held("h") == {("coffee", "east"): 2}
    assert model.sellable("web", "tea") == 5
    told(model, "ORDER_CANCELLED", order_source="web", order_ref="7")
    assert model.holds["h"].state == "RELEASED"
    assert model.sellable("web", "coffee") == 5


def test_the_sources_word_replaces_our_own_commits() -> None:
    """Two commits add up until the source says the quantity itself; an older word is STALE."""
    model = stocked(east=9)
    for name in ("a", "b"):
        hold(model, 2, name)
        model.commit(f"c{name}", name, order_ref="1")
    assert model.committed("tea", "east") == 4
    told(model, "ORDER_CHANGED", 3, sku="tea", order_source="web", order_ref="1", occurred_us=2)
    assert model.committed("tea", "east") == 3
    assert (
        told(model, "ORDER_PLACED", 9, sku="tea", order_source="web", order_ref="1", occurred_us=1) == "STALE"
    )
    assert model.committed("tea", "east") == 3


def test_facts_are_never_refused() -> None:
    """An order of another system is counted beyond what there is, and everybody's next answer pays for it."""
    model = stocked(east=2, west=1)
    told(model, "ORDER_PLACED", 5, sku="tea", order_source="shop", order_ref="1")
    assert model.order_committed(("shop", "1"), "tea") == {"east": 4, "west": 1}
    told(model, "RECEIPT", 4, sku="tea", node="west")
    assert model.sellable("web", "tea") == 2


def test_lines_of_one_sku_count_each_by_itself_until_a_fact_names_none() -> None:
    """A line shipped twice lends nothing to its sister; a fact without a line makes them one."""
    model = stocked(east=20)
    shop: dict[str, Any] = {"order_source": "shop", "order_ref": "1", "sku": "tea"}
    told(model, "ORDER_PLACED", 2, line="1", **shop)
    told(model, "ORDER_PLACED", 3, line="2", **shop)
    told(model, "SHIPMENT", 4, line="1", node="east", **shop)
    assert model.committed("tea", "east") == 3
    told(model, "SHIPMENT", 1, node="east", **shop)
    assert model.committed("tea", "east") == 0


def test_every_order_of_the_same_facts_ends_alike() -> None:
    """720 permutations of the six facts of one order: one total, at the nodes that the facts name."""
    web: dict[str, Any] = {"order_source": "web", "order_ref": "1", "sku": "tea"}
    facts: list[tuple[str, dict[str, Any]]] = [
        ("ORDER_PLACED", {"quantity": 5, "occurred_us": 1}),
        ("ORDER_CHANGED", {"quantity": 7, "occurred_us": 4}),
        ("ORDER_ALLOCATED", {"quantity": 4, "occurred_us": 5, "node": "west"}),
        ("ORDER_ALLOCATED", {"quantity": 0, "occurred_us": 5, "node": "east"}),
        ("SHIPMENT", {"quantity": 3, "node": "west"}),
    ]
    ends = set()
    for case in permutations(range(6)):
        model = stocked(east=9, west=9)
        hold(model, 6, "h")
        for which in case:
            if which == 5:
                model.commit("c", "h", order_ref="1")
            else:
                type_, fields = facts[which]
                delta = Delta(source="erp", type=type_, event_id=str(which), **web, **fields)
                model.apply_delta(delta)
                assert model.apply_delta(delta)[0] == "DUPLICATE"
        ends.add(tuple(sorted(model.order_committed(("web", "1"), "tea").items())))
    assert ends == {(("east", 3), ("west", 1))}


# --- sequences


def test_sequences_settle_in_order() -> None:
    """The first number opens a stream, the next is applied, a jump is parked, an old one is a duplicate."""
    model = stocked(east=0)

    def arrives(number: int, quantity: int = 1) -> str:
        where: dict[str, Any] = {"source": "wms", "stream": "s", "sku": "tea", "node": "east"}
        return model.apply_delta(Delta(type="RECEIPT", source_sequence=number, quantity=quantity, **where))[0]

    assert [arrives(7), arrives(7), arrives(9), arrives(8), arrives(9)] == [
        "APPLIED",
        "DUPLICATE",
        "PARKED",
        "APPLIED",
        "APPLIED",
    ]
    assert [arrives(10, 0), arrives(10), arrives(11)] == ["REJECTED", "DUPLICATE", "APPLIED"]
    assert model.sellable("web", "tea") == 4


def test_other_content_of_one_event_is_a_conflict() -> None:
    """An event id is taken once: the same content again is a duplicate, other content never is."""
    model = stocked(east=0)
    event: dict[str, Any] = {
        "source": "wms",
        "type": "RECEIPT",
        "event_id": "e",
        "sku": "tea",
        "node": "east",
    }
    answers = [model.apply_delta(Delta(quantity=units, **event)) for units in (1, 1, 2)]
    assert answers == [("APPLIED", ""), ("DUPLICATE", ""), ("REJECTED", "CONFLICT")]
    assert model.sellable("web", "tea") == 1
