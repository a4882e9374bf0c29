"""Expected supply, transfers and counts: the same end in whatever order the facts arrive.

The ledger is called straight, with Redis TIME set where time matters; every run is compared with the plain model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, permutations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from availability.service.delta_codec import pack
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import audit
from tests.faults.lab import BASE, DAY_MS, Lab, delta, own_lab
from tests.model import Delta, Model
from tests.wire import to_proto

BASE_US = (int(time.time()) - 3600) * 1_000_000
NODES = ("n1", "n2")
_numbers = count(1)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A ledger of this module's own; tests use skus of their own."""
    with own_lab() as made:
        yield made


def told(type_: str, moment: int, **fields: object) -> Delta:
    """Make a fact; identity and sku are given when it is told."""
    return Delta(source="erp", type=type_, occurred_us=BASE_US + moment * 1_000_000, **fields)  # type: ignore[arg-type]


moments = st.integers(1, 9)
units = st.integers(1, 5)
nodes = st.sampled_from(NODES)
sources = st.sampled_from(["erp", "wms"])
references = st.sampled_from(["", "po 1", "po 2"])
lines = st.sampled_from(["", "", "1"])
facts = st.one_of(
    st.builds(
        lambda kind, at, q, node, ref, line, due: told(
            "EXPECTED", at, quantity=q, node=node, reference=ref, line=line, expected_kind=kind, due_us=due
        ),
        st.sampled_from(["", "TRANSFER", "RETURN"]),
        moments,
        st.integers(0, 6),
        nodes,
        references,
        lines,
        st.sampled_from([0, BASE_US, BASE_US + 7]),
    ),
    st.builds(
        lambda type_, at, q, node, ref, line: told(
            type_, at, quantity=q, node=node, reference=ref, line=line, order_ref=ref and "o" + ref
        ),
        st.sampled_from(["RECEIPT", "RETURN_RECEIVED", "TRANSFER_IN", "TRANSFER_IN"]),
        moments,
        units,
        nodes,
        references,
        lines,
    ),
    st.builds(
        lambda at, q, node, ref, order: told(
            "TRANSFER_OUT",
            at,
            quantity=q,
            node=node,
            to_node=NODES[node == NODES[0]],
            reference=ref,
            order_ref=order,
            due_us=BASE_US + at,
        ),
        moments,
        units,
        nodes,
        references,
        st.sampled_from(["", "", "o1"]),
    ),
    st.builds(
        lambda at, q, node: told("SET_ON_HAND", at, quantity=q, node=node), moments, st.integers(0, 9), nodes
    ),
    st.builds(
        lambda type_, at, q, node: told(type_, at, quantity=q, node=node, reason="damage"),
        st.sampled_from(["WRITE_OFF", "RECEIPT", "QUARANTINE"]),
        moments,
        units,
        nodes,
    ),
    st.builds(
        lambda at, q, node: told("ADJUSTMENT", at, quantity=q, node=node),
        moments,
        st.integers(-4, 4).filter(bool),
        nodes,
    ),
)


def live(lab: Lab, tale: list[Delta]) -> tuple[object, ...]:
    """Tell a tale about a new sku to both; what is left at the end, the same in both."""
    sku, model = f"sku {next(_numbers)}", Model()
    for fact in tale:
        one = replace(fact, sku=sku, order_ref=fact.order_ref and f"{sku} {fact.order_ref}")
        if one.event_id:
            one = replace(one, event_id=f"{sku} {one.event_id}")
        else:
            one = replace(one, stream=f"{sku} {one.stream}")
        real = lab.results(to_proto(one))[0]
        mine = model.apply_delta(one)
        assert real == " ".join(filter(None, mine)), f"{one} of {tale}"
    end = {}
    for node in NODES:
        position = model.positions.get(sku, {}).get(node)
        mine_end = (
            (
                position.on_hand,
                sum(position.quarantined.values()),
                model.reserved(sku, node),
                model.committed(sku, node),
            )
            if position
            else (0, 0, 0, 0)
        )
        assert lab.position(sku, node) == mine_end, f"{node} after {tale}"
        end[node] = mine_end[:2]
    rows = {
        (r.node, r.kind, r.reference, r.line, r.quantity, r.due_us) for r in lab.ledger.behind(sku).expected
    }
    expected = {(n, k, r.removeprefix(f"{sku} "), *rest) for n, k, r, *rest in rows}
    assert rows == model.expected(sku), f"expected after {tale}"
    return (end, expected)


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[Delta], list[list[int]]]:
    """Draw facts of two sources, one of them by numbers, after a first count of each node; and orders of arrival."""
    chosen = draw(st.lists(facts, min_size=2, max_size=9))
    first = [told("SET_ON_HAND", 0, quantity=10, node=node, event_id=f"first {node}") for node in NODES]
    known = [replace(fact, event_id=f"e{i}", source=draw(sources)) for i, fact in enumerate(chosen)]
    orders = [list(range(len(known)))]
    orders += [draw(st.permutations(range(len(known)))) for _ in range(3)]
    return first + known, [[0, 1, *(2 + i for i in order)] for order in orders]


def test_any_order_of_arrival_ends_alike(lab: Lab, seed: int, full: bool) -> None:
    """Counts, receipts, transfers, returns and words about what is expected: one end, the model's."""

    @hypothesis_seed(seed)
    @settings(
        max_examples=600 if full else 60,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(telling=tellings())
    def check(telling: tuple[list[Delta], list[list[int]]]) -> None:
        known, orders = telling
        ends = [live(lab, [known[i] for i in order]) for order in orders]
        assert all(end == ends[0] for end in ends), f"{known}: {ends}"

    check()
    audit(lab.redis)


def test_two_streams_end_alike_however_they_interleave(lab: Lab) -> None:
    """Within a stream the number says what a count has seen, though its clock says otherwise."""
    erp = [
        told("RECEIPT", 5, quantity=4, node="n1", stream="erp", source_sequence=1),
        told("SET_ON_HAND", 3, quantity=7, node="n1", stream="erp", source_sequence=2),
        told("ADJUSTMENT", 2, quantity=-1, node="n1", stream="erp", source_sequence=3),
    ]
    wms = [
        replace(told("ADJUSTMENT", 2, quantity=-2, node="n1"), source="wms", stream="w", source_sequence=1),
        replace(told("ADJUSTMENT", 4, quantity=-3, node="n1"), source="wms", stream="w", source_sequence=2),
    ]
    first = told("SET_ON_HAND", 0, quantity=5, node="n1", event_id="first")
    for places in permutations("eeeww"):
        e, w = iter(erp), iter(wms)
        end = live(lab, [first, *(next(e) if place == "e" else next(w) for place in places)])
        assert end[0] == {"n1": (7 - 1 - 3, 0), "n2": (0, 0)}


def test_a_first_count_is_exact_or_refused(lab: Lab) -> None:
    """A change after its point that nobody remembers: POINT_TOO_OLD, nothing changed. A later count is taken."""
    lab.receive("first", "n1", 3)
    late = delta("SET_ON_HAND", "first", "n1", 9, occurred_us=BASE_US)
    assert lab.results(late) == ["REJECTED POINT_TOO_OLD"]
    assert lab.position("first", "n1")[0] == 3
    assert lab.results(delta("SET_ON_HAND", "first", "n1", 9)) == ["APPLIED"]
    assert lab.results(delta("SHIPMENT", "first", "n1", 2)) == ["APPLIED"]
    assert lab.position("first", "n1")[0] == 7


def test_a_count_and_changes_of_one_batch_without_times_count_in_their_order(lab: Lab) -> None:
    """They arrive in one call, in one millisecond."""
    batch = [
        delta("RECEIPT", "batch", "n1", 3),
        delta("SET_ON_HAND", "batch", "n1", 10),
        delta("SHIPMENT", "batch", "n1", 2),
        delta("SET_ON_HAND", "batch", "n1", 6),
        delta("SHIPMENT", "batch", "n1", 1),
    ]
    assert lab.results(*batch) == ["APPLIED"] * 5
    assert lab.position("batch", "n1")[0] == 5


def test_a_memory_that_does_not_reach_the_point_refuses(lab: Lab) -> None:
    """32 changes are remembered; a count before one that was dropped is POINT_TOO_OLD, one after them is taken."""
    assert lab.results(delta("SET_ON_HAND", "many", "n1", 0, occurred_us=BASE_US)) == ["APPLIED"]
    for number in range(40):
        change = delta("RECEIPT", "many", "n1", 1, occurred_us=BASE_US + 1000 + number)
        assert lab.results(change) == ["APPLIED"]
    between = delta("SET_ON_HAND", "many", "n1", 1, occurred_us=BASE_US + 1003)
    assert lab.results(between) == ["REJECTED POINT_TOO_OLD"]
    after = delta("SET_ON_HAND", "many", "n1", 100, occurred_us=BASE_US + 1019)
    assert lab.results(after) == ["APPLIED"]
    assert lab.position("many", "n1")[0] == 120


def test_a_short_receipt_stays_expected_until_it_is_closed(lab: Lab) -> None:
    """Ten sent, nine came: one is expected until an EXPECTED of 0 says that it is lost."""
    out = delta("TRANSFER_OUT", "short", "n1", 10, to_node="n2", reference="t", occurred_us=BASE_US)
    came = delta("TRANSFER_IN", "short", "n2", 9, reference="t", occurred_us=BASE_US + 1)
    assert lab.results(out, came) == ["APPLIED", "APPLIED"]
    (row,) = lab.ledger.behind("short").expected
    assert (row.node, row.kind, row.reference, row.quantity) == ("n2", "TRANSFER", "t", 1)
    assert lab.position("short", "n1")[0] == -10
    lost = delta(
        "EXPECTED",
        "short",
        "n2",
        0,
        reference="t",
        expected_kind=stk.EXPECTED_KIND_TRANSFER,
        occurred_us=BASE_US + 2,
    )
    assert lab.results(lost) == ["APPLIED"]
    assert lab.ledger.behind("short").expected == []
    assert lab.position("short", "n2")[0] == 9


def test_a_transfer_for_an_order_ships_its_line(lab: Lab) -> None:
    """What left for a customer's order counts as shipped, and is expected where it goes."""
    lab.receive("shipped", "n1", 5)
    order = {"order_source": "web", "order_ref": "for a customer"}
    lab.tell(delta("ORDER_PLACED", "shipped", "n1", 3, line="1", **order))
    assert lab.position("shipped", "n1")[3] == 3
    lab.tell(delta("TRANSFER_OUT", "shipped", "n1", 2, to_node="n2", reference="t", line="1", **order))
    assert lab.position("shipped", "n1") == (3, 0, 0, 1)


@pytest.mark.parametrize(
    ("reason", "type_", "quantity", "fields"),
    [
        ("TO_NODE_REQUIRED", "TRANSFER_OUT", 1, {}),
        ("SAME_NODE", "TRANSFER_OUT", 1, {"to_node": "n1"}),
        ("INVALID_QUANTITY", "TRANSFER_OUT", 0, {"to_node": "n2"}),
        ("INVALID_QUANTITY", "TRANSFER_IN", -1, {}),
        ("INVALID_QUANTITY", "EXPECTED", -1, {}),
        ("INVALID_QUANTITY", "SET_ON_HAND", -1, {}),
        ("INVALID_QUANTITY", "SET_ON_HAND", 10**9 + 1, {}),
        ("INVALID_KIND", "EXPECTED", 1, {"expected_kind": 9}),
        ("INVALID_BASIS", "SET_ON_HAND", 1, {"basis": 9}),
        ("NET_NEEDS_SNAPSHOT", "SET_ON_HAND", 1, {"basis": stk.SNAPSHOT_BASIS_NET}),
        ("INVALID_STATE", "SET_ON_HAND", 1, {"state": stk.STOCK_STATE_QUARANTINED, "reason": "damage"}),
    ],
)
def test_bad_input_has_a_reason_of_its_own(
    lab: Lab, reason: str, type_: str, quantity: int, fields: dict[str, object]
) -> None:
    """It consumes its number and changes nothing."""
    before = lab.ledger.head().version
    assert lab.results(delta(type_, "bad", "n1", quantity, **fields)) == [f"REJECTED {reason}"]
    assert lab.ledger.head().version == before
    assert lab.ledger.behind("bad").expected == []


def test_a_node_that_nobody_declared_is_refused_without_auto_create(lab: Lab) -> None:
    """Both ends of a transfer are looked at."""
    lab.receive("strict", "n1", 3)
    there = delta("TRANSFER_OUT", "strict", "n1", 1, to_node="nowhere")
    reply = lab.fcall("deltas", ("erp", [pack(there, "erp")[0]], False, 10**9))
    assert [detail[2] for detail in reply[3]] == ["UNKNOWN_NODE"]
    assert lab.position("strict", "n1")[0] == 3
    assert lab.results(delta("TRANSFER_OUT", "strict", "n1", 1, to_node="new")) == ["APPLIED"]
    assert "new" in {node.node for node in lab.ledger.policies().nodes}


def test_cells_at_nothing_are_forgotten_and_open_ones_are_kept(lab: Lab) -> None:
    """What is still expected is never forgotten; the rest goes like closed orders."""
    lab.tell(
        delta("EXPECTED", "old", "n1", 5, reference="open"), delta("EXPECTED", "old", "n1", 5, reference="p")
    )
    lab.tell(delta("RECEIPT", "old", "n1", 5, reference="p"), delta("RECEIPT", "old", "n1", 1, reference="q"))
    assert lab.redis.hlen(BASE + "exp:old") == 3
    lab.age(31 * DAY_MS)
    while lab.redis.zrangebyscore(BASE + "exp_last", "-inf", lab.head()[2] - 30 * DAY_MS):
        lab.sweep()
    assert lab.redis.hlen(BASE + "exp:old") == 1
    (row,) = lab.ledger.behind("old").expected
    assert (row.reference, row.quantity) == ("open", 5)
