"""Causes: each fault is told apart from the others by what the journal says, and the parts add up to the variance."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.v1 import stock_pb2 as pb
from ingest.reconcile.causes import Case, Cause, Context, Move, explain
from ingest.reconcile.compare import Counts, Doubled
from ingest.reconcile.corrections import of_order, of_position
from ingest.reconcile.guard import File, Severity, doubled, judge, judge_file, verdict
from ingest.reconcile.order_causes import OrderCase, explain_order
from ingest.reconcile.orders import OrderVariance
from ingest.reconcile.settings import Guard

SECOND = 1_000_000
CONTEXT = Context(factors={"CS": 12}, by_sku={"tea": {"CS": 6}})


def move(version: int, kind: str, quantity: int, **more: Any) -> Move:
    fields: dict[str, Any] = {
        "version": version,
        "number": 0,
        "clock_ms": version * 1_000,
        "source": "wms",
        "stream": "",
        "source_sequence": 0,
        "event_id": f"e{version}",
        "type": pb.DeltaType.Value(f"DELTA_TYPE_{kind}"),
        "sku": "tea",
        "node": "berlin",
        "to_node": "",
        "quantity": quantity,
        "order_source": "",
        "order_ref": "",
        "line": "",
        "reference": "",
        "reason": "",
        "occurred_us": version * SECOND,
    }
    return Move(**{**fields, **more})


def case(said: int, ledger: int, **more: Any) -> Case:
    return Case(
        sku="tea", node="berlin", said=said, ledger=ledger, **{"agreed": 1, "agreed_run": "r1", **more}
    )


def causes(one: Case, *moves: Move, context: Context = CONTEXT) -> list[tuple[Cause, int, str]]:
    parts = explain(one, moves, context)
    assert sum(part.units for part in parts) == one.variance
    assert all(part.sentence for part in parts)
    return [(part.cause, part.units, part.hold) for part in parts]


SALE = [move(10 + number, "SHIPMENT", 2 + number % 3, order_ref=f"o{number}") for number in range(6)]


def test_a_delta_under_two_names_was_applied_twice() -> None:
    """Same content, same moment, another event id."""
    twice = [
        move(20, "RECEIPT", 5, reference="PO"),
        move(30, "RECEIPT", 5, reference="PO", occurred_us=20 * SECOND),
    ]
    assert causes(case(7, 12), *SALE, *twice) == [(Cause.DUPLICATE_DELTA, 5, "")]
    different = [twice[0], move(30, "RECEIPT", 5, reference="PO-2", occurred_us=20 * SECOND)]
    assert causes(case(7, 12), *SALE, *different)[0][0] is Cause.MISSED_DELTA


def test_a_double_of_before_the_last_agreement_is_no_reason() -> None:
    """It was in the ledger when the ledger agreed."""
    twice = [move(2, "RECEIPT", 5), move(3, "RECEIPT", 5, occurred_us=2 * SECOND)]
    assert causes(case(7, 12, agreed=5), *twice) == [(Cause.MISSED_DELTA, 5, "")]
    assert causes(case(7, 12, agreed=2), *twice) == [(Cause.DUPLICATE_DELTA, 5, "")]


@pytest.mark.parametrize(
    ("moves", "variance"),
    [
        ([move(9, "ORDER_ALLOCATED", 4, order_ref="A")], 4),
        ([move(9, "EXPECTED", 9, reference="PO")], -9),
        ([move(9, "TRANSFER_OUT", 3, node="hamburg", to_node="berlin", reference="T")], -3),
    ],
)
def test_a_document_that_ended_nowhere_was_missed(moves: list[Move], variance: int) -> None:
    """Allocated and not shipped, announced and not received, sent and not arrived."""
    parts = explain(case(100, 100 + variance, agreed=0), moves, CONTEXT)
    assert [(part.cause, part.units) for part in parts] == [(Cause.MISSED_DELTA, variance)]
    assert parts[0].evidence


def test_a_shipment_in_cases_is_a_unit() -> None:
    """One case shipped where six pieces were allocated."""
    moves = [move(9, "ORDER_ALLOCATED", 6, order_ref="A"), move(12, "SHIPMENT", 1, order_ref="A")]
    assert causes(case(94, 99), *moves) == [(Cause.UNIT_OR_MAPPING, 5, "")]


def test_an_odd_receipt_is_a_unit() -> None:
    """A quantity unlike the others of its kind, and like them by the sku's own factor."""
    usual = [move(10 + number, "RECEIPT", units) for number, units in enumerate((60, 72, 66, 54))]
    assert causes(case(100, 50), *usual, move(30, "RECEIPT", 10)) == [(Cause.UNIT_OR_MAPPING, -50, "")]
    assert causes(case(100, 400), *usual, move(30, "RECEIPT", 360)) == [(Cause.UNIT_OR_MAPPING, 300, "")]


def test_a_whole_position_in_cases_is_not_corrected() -> None:
    """Where all of a position is off by a factor, the mapping is mended first."""
    assert causes(case(10, 60, agreed=0)) == [(Cause.UNIT_OR_MAPPING, 50, "UNIT")]


def test_the_same_units_at_another_node() -> None:
    """What is missing here lies there: one node's code was taken for the other's."""
    context = Context(elsewhere={("tea", -7): ["hamburg"], ("tea", 7): ["berlin"]})
    assert causes(case(3, 10, agreed=0), context=context) == [(Cause.UNIT_OR_MAPPING, 7, "")]


def test_what_arrived_after_the_point_is_late_and_left_alone() -> None:
    """The snapshot has it, the ledger has it by now: a correction would count it twice."""
    context = Context(point=50, point_us=50 * SECOND)
    late = move(60, "RECEIPT", 8, occurred_us=40 * SECOND)
    assert causes(case(20, 12), *SALE, late, context=context) == [(Cause.LATE_DELTA, -8, "ARRIVED")]
    after = move(60, "RECEIPT", 8, occurred_us=55 * SECOND)
    assert causes(case(20, 12), *SALE, after, context=context)[0][0] is Cause.MISSED_DELTA


def test_a_waiting_letter_is_left_to_whoever_replays_it() -> None:
    """Correcting what a dead letter holds would count it twice."""
    context = Context(letters={("tea", "berlin"): [(5, "letter-1")]})
    assert causes(case(15, 10), *SALE, context=context) == [(Cause.MISSED_DELTA, -5, "LETTER_WAITS")]


def test_what_nothing_accounts_for() -> None:
    """Missed where it agreed before, negative where nobody can have it, else unexplained."""
    assert causes(case(9, 10), *SALE) == [(Cause.MISSED_DELTA, 1, "")]
    assert causes(case(9, 10, agreed=0)) == [(Cause.UNEXPLAINED, 1, "")]
    assert causes(case(9, -2, agreed=0)) == [(Cause.NEGATIVE, -11, "")]
    assert causes(case(-1, 10)) == [(Cause.NEGATIVE, 11, "NEGATIVE")]
    assert causes(case(5, 0, sku_known=False, agreed=0)) == [(Cause.UNKNOWN_SKU, -5, "UNKNOWN_SKU")]


def test_two_faults_of_one_position_are_told_apart() -> None:
    """One delta doubled and another one missed: both parts are there."""
    twice = [move(20, "RECEIPT", 50), move(21, "RECEIPT", 50, occurred_us=20 * SECOND)]
    assert causes(case(10, 53), *SALE, *twice) == [
        (Cause.DUPLICATE_DELTA, 50, ""),
        (Cause.MISSED_DELTA, -7, ""),
    ]


MOVES = st.lists(
    st.builds(
        move,
        st.integers(2, 90),
        st.sampled_from(["RECEIPT", "SHIPMENT", "ADJUSTMENT", "ORDER_ALLOCATED", "EXPECTED", "TRANSFER_IN"]),
        st.integers(1, 30),
        order_ref=st.sampled_from(["", "A", "B"]),
        reference=st.sampled_from(["", "P"]),
        occurred_us=st.sampled_from([0, SECOND, 70 * SECOND]),
    ),
    max_size=8,
)


@given(said=st.integers(-3, 40), ledger=st.integers(-20, 60), moves=MOVES, agreed=st.sampled_from([0, 30]))
@settings(max_examples=200, deadline=None)
def test_the_parts_always_add_up(said: int, ledger: int, moves: list[Move], agreed: int) -> None:
    """Whatever is in the journal: causes account for the whole variance, with a sentence each."""
    if said != ledger:
        context = Context(point=60, point_us=60 * SECOND, factors={"CS": 6})
        causes(
            case(said, ledger, agreed=agreed), *sorted(moves, key=lambda one: one.version), context=context
        )


@pytest.mark.parametrize(
    ("one", "moves", "cause", "hold"),
    [
        (
            OrderCase(order_ref="A", sku="tea", said=0, ledger=3),
            [],
            Cause.ORDER_UNCONFIRMED,
            "ORDER_UNCONFIRMED",
        ),
        (OrderCase(order_ref="A", sku="tea", said=0, ledger=3, confirmed=True), [], Cause.MISSED_DELTA, ""),
        (OrderCase(order_ref="A", sku="tea", said=4, ledger=0, known=False), [], Cause.MISSED_DELTA, ""),
        (
            OrderCase(order_ref="A", sku="tea", said=3, ledger=0, confirmed=True),
            [
                move(5, "SHIPMENT", 3, order_ref="A"),
                move(6, "SHIPMENT", 3, order_ref="A", occurred_us=5 * SECOND),
            ],
            Cause.DUPLICATE_DELTA,
            "",
        ),
        (
            OrderCase(order_ref="A", sku="tea", said=0, ledger=5, confirmed=True),
            [move(5, "ORDER_ALLOCATED", 6, order_ref="A"), move(6, "SHIPMENT", 1, order_ref="A")],
            Cause.UNIT_OR_MAPPING,
            "",
        ),
    ],
)
def test_causes_of_open_orders(one: OrderCase, moves: list[Move], cause: Cause, hold: str) -> None:
    """An order that its source never knew is for people; one that it knew has missed its end."""
    (part,) = explain_order(one, moves, CONTEXT)
    assert (part.cause, part.units, part.hold) == (cause, one.variance, hold)


# --- The guard --------------------------------------------------------------------------------------------

DAY = 86_400.0


def counts(**more: Any) -> Counts:
    figures = {"rows": 1_000, "positions": 1_000, "with_stock": 1_000, "units": 50_000, "matched": 1_000}
    return Counts(**{**figures, **more})


def judged(seen: Counts, **more: Any) -> dict[str, Severity]:
    given: dict[str, Any] = {
        "absent_is_zero": True,
        "unknown_rows": 0,
        "factors": {"CS": 12},
        "lookalikes": {},
    }
    found = judge(seen, Guard.model_validate({}), **{**given, **more})
    assert all(finding.sentence for finding in found)
    return {finding.code: finding.severity for finding in found}


def test_an_ordinary_night_needs_nobody() -> None:
    """A few corrections pass."""
    assert judged(counts(moved=40, units_moved=300, zeroed=4)) == {}


@pytest.mark.parametrize(
    ("seen", "more", "code"),
    [
        (counts(moved=300), {}, "MANY_MOVED"),
        (counts(zeroed=30, moved=30), {}, "MANY_ZEROED"),
        (counts(missing_with_stock=400, moved=400, zeroed=400), {}, "MANY_MISSING"),
        (counts(units_moved=20_000, moved=20), {}, "MANY_UNITS"),
        (counts(zero_rows=1_000, moved=1_000, zeroed=1_000), {}, "ALL_ZERO"),
        (counts(moved=900, ratios={12: 850}), {}, "UNIT"),
        (counts(moved=900), {"lookalikes": {"hamburg": 0.95}}, "OTHER_NODE"),
        (counts(rows=2_000), {"unknown_rows": 1_000}, "UNKNOWN_SKUS"),
    ],
)
def test_absurd_files_wait_for_somebody(seen: Counts, more: dict[str, Any], code: str) -> None:
    """Whatever looks like a mistake of the file is held, with its own sentence."""
    found = judged(seen, **more)
    assert found[code] is Severity.HELD


def test_another_nodes_rows_are_refused() -> None:
    """Rows of nodes that the snapshot does not speak for."""
    assert judged(counts(foreign_rows=900), nodes=["berlin"])["WRONG_NODE"] is Severity.REFUSED


def test_the_file_itself() -> None:
    """What no person can approve: half written, last week's, older than the last, doubled; fewer rows can be true."""
    guard = Guard.model_validate({})
    base: dict[str, Any] = {"rows": 1_000, "refused": 0}
    now = 100 * DAY
    cases: tuple[tuple[dict[str, Any], str, Severity], ...] = (
        ({"rows_said": 2_000}, "HALF_WRITTEN", Severity.REFUSED),
        ({"point_at": now - 7 * DAY}, "TOO_OLD", Severity.REFUSED),
        ({"newer_run": "r9"}, "OLDER", Severity.REFUSED),
        ({"rows": 0}, "EMPTY", Severity.REFUSED),
        ({"previous_rows": 2_000}, "FEWER_ROWS", Severity.HELD),
        ({"refused": 500, "first_reason": "x"}, "UNREADABLE", Severity.HELD),
    )
    for more, code, severity in cases:
        found = judge_file(File(**{**base, **more}), guard, now)
        assert [(one.code, one.severity) for one in found] == [(code, severity)]
        assert verdict(found) is severity
    assert judge_file(File(**base, point_at=now - DAY, previous_rows=1_010), guard, now) == []
    assert doubled(Doubled(keys=2, examples=(("a at b", (4, 9)),))).sentence.count("rows 4 and 9") == 1


# --- Corrections ------------------------------------------------------------------------------------------


def test_corrections_are_named_by_run_and_position() -> None:
    """The same run corrects a position under one name; another run, kind or reason has its own."""
    made = [
        of_position("run", "ON_HAND", "a", "n", "", -3, "MISSED_DELTA"),
        of_position("run", "ON_HAND", "a", "n", "", -3, "MISSED_DELTA"),
        of_position("run", "QUARANTINED", "a", "n", "damage", -3, "MISSED_DELTA"),
        of_position("run", "QUARANTINED", "a", "n", "damage", 2, "MISSED_DELTA"),
        of_position("run 2", "ON_HAND", "a", "n", "", 3, "MISSED_DELTA"),
    ]
    deltas = [request.deltas[0] for request in made if request is not None]
    assert [(one.type, one.quantity) for one in deltas] == [
        (pb.DELTA_TYPE_ADJUSTMENT, 3),
        (pb.DELTA_TYPE_ADJUSTMENT, 3),
        (pb.DELTA_TYPE_QUARANTINE, 3),
        (pb.DELTA_TYPE_QUARANTINE_RELEASE, 2),
        (pb.DELTA_TYPE_ADJUSTMENT, -3),
    ]
    assert deltas[0] == deltas[1]
    assert len({one.event_id for one in deltas}) == 3
    assert {one.source for one in deltas} == {"reconcile"}
    assert deltas[0].correlation_id == "run"
    assert of_position("run", "ON_HAND", "a", "n", "", 10**10, "MISSED_DELTA") is None


def test_an_order_line_is_brought_to_what_its_source_has() -> None:
    """Ordered: shipped, open elsewhere, and what the source has open; allocations at the nodes that differ."""
    one = OrderVariance(
        order_source="web", order_ref="1", line="10", sku="a", said=2, ledger=5, variance=3,
        said_at={"n1": 2}, ledger_at={"n1": 1, "n2": 4}, shipped=7, elsewhere=6,
    )  # fmt: skip
    request = of_order("run", one, {"n2": 7}, "MISSED_DELTA", 5_000_000)
    found = [(delta.type, delta.node, delta.quantity) for delta in request.deltas]
    assert found == [
        (pb.DELTA_TYPE_ORDER_CHANGED, "", 15),
        (pb.DELTA_TYPE_ORDER_ALLOCATED, "n1", 2),
        (pb.DELTA_TYPE_ORDER_ALLOCATED, "n2", 7),
    ]
    assert {delta.occurred_time.ToMicroseconds() for delta in request.deltas} == {5_000_000}
    assert len({delta.event_id for delta in request.deltas}) == 3
    moved = OrderVariance(
        order_source="web", order_ref="1", line="", sku="a", said=3, ledger=3, variance=3, said_at={"n2": 3},
        ledger_at={"n1": 3}, placed=True,
    )  # fmt: skip
    types = [delta.type for delta in of_order("run", moved, {}, "MISSED_DELTA", 1).deltas]
    assert types == [pb.DELTA_TYPE_ORDER_ALLOCATED] * 2
