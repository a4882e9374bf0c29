"""The comparison: variances, counts, doubled rows, and the same outcome however many rounds it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.v1 import stock_pb2 as pb
from ingest.reconcile.book import book_frame
from ingest.reconcile.compare import Rules, compare_positions, lookalike
from ingest.reconcile.orders import OrderRow, OrderVariance, compare_orders

Place = tuple[str, str]
PLACES = [(sku, node) for sku in ("a", "b", "c", "d") for node in ("n1", "n2")]


def said_frame(rows: list[tuple[str, str, int, bool, str]]) -> pl.LazyFrame:
    schema = {
        "sku": pl.String,
        "node": pl.String,
        "quantity": pl.Int64,
        "quarantine": pl.Boolean,
        "reason": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index("row", 1).lazy()


def book(positions: Mapping[Place, int], unsettled: set[Place] = frozenset()) -> pl.LazyFrame:  # type: ignore[assignment]
    rows = [
        (sku, node, units, 0, 0, (sku, node) not in unsettled, True, 0, 0, units)
        for (sku, node), units in positions.items()
    ]
    return book_frame(rows).lazy()


def reasons(rows: list[tuple[str, str, str, int]] = []) -> pl.LazyFrame:  # noqa: B006 -- only read
    schema = {"sku": pl.String, "node": pl.String, "reason": pl.String, "quantity": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row").lazy()


STOCK = st.dictionaries(st.sampled_from(PLACES), st.integers(-5, 20), max_size=8)


@given(said=STOCK, ledger=STOCK, zero=st.booleans(), small=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_variances_are_those_of_plain_arithmetic(
    said: dict[Place, int], ledger: dict[Place, int], zero: bool, small: bool, data: st.DataObject
) -> None:
    """Ledger minus what the snapshot implies, for every position, whatever is absent, in one round or in many."""
    unsettled = set(data.draw(st.lists(st.sampled_from(PLACES), max_size=3)))
    rules = Rules(nodes=("n1", "n2"), absent="ZERO" if zero else "IGNORE", batch_rows=2 if small else 1_000)
    rows = [(*place, units, False, "") for place, units in said.items()]
    compared = compare_positions(said_frame(rows), book(ledger, unsettled), reasons(), rules)
    expected = {}
    for place in {*said, *ledger} if zero else set(said):
        variance = ledger.get(place, 0) - said.get(place, 0)
        if variance:
            expected[place] = (variance, place not in unsettled or place not in ledger, place in ledger)
    found = {
        (row["sku"], row["node"]): (row["variance"], row["settled"], row["known"])
        for row in compared.variances.iter_rows(named=True)
    }
    assert found == expected
    counts = compared.counts
    moving = [p for p, (_, settled, known) in expected.items() if settled and known]
    assert counts.rows == len(said)
    assert counts.positions == len(ledger)
    assert counts.moved == len(moving)
    assert counts.units_moved == sum(abs(expected[place][0]) for place in moving)
    assert counts.missing_with_stock == sum(units > 0 for place, units in ledger.items() if place not in said)
    assert counts.zeroed == sum(ledger[p] > 0 >= said.get(p, 0) for p in moving)


@given(said=STOCK.filter(bool), ledger=STOCK, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_doubled_row_is_always_seen(
    said: dict[Place, int], ledger: dict[Place, int], data: st.DataObject
) -> None:
    """Equal or not, of a known position or a new one: which row would be true?"""
    place = data.draw(st.sampled_from(sorted(said)))
    rows = [(*one, units, False, "") for one, units in said.items()]
    rows.append((*place, data.draw(st.sampled_from([said[place], 99])), False, ""))
    compared = compare_positions(said_frame(rows), book(ledger), reasons(), Rules(nodes=()))
    assert compared.doubled is not None
    assert compared.doubled.keys == 1
    assert f"{place[0]} at {place[1]}" in compared.doubled.examples[0][0]
    assert compared.variances.height == 0


@pytest.mark.parametrize(("quarantine", "on_hand"), [("INCLUDED", 10), ("BESIDE", 7)])
def test_quarantine_by_reason(quarantine: Any, on_hand: int) -> None:
    """Reasons that the file does not name have nothing; on_hand includes quarantine whichever way it is written."""
    rows = [("a", "n1", on_hand, False, ""), ("a", "n1", 3, True, "damage")]
    compared = compare_positions(
        said_frame(rows),
        book({("a", "n1"): 10, ("b", "n1"): 4}),
        reasons([("a", "n1", "damage", 1), ("a", "n1", "recall", 2), ("b", "n1", "damage", 4)]),
        Rules(nodes=("n1",), quarantine=quarantine),
    )
    found = {
        (row["kind"], row["reason"]): row["variance"] for row in compared.variances.iter_rows(named=True)
    }
    assert found == {("QUARANTINED", "damage"): -2, ("QUARANTINED", "recall"): 2}


def test_net_leaves_out_what_is_confirmed() -> None:
    """Basis NET: the source has taken off what it confirmed for its orders; so is the ledger's figure."""
    rows = [("a", "n1", 10, 0, 4, True, True, 0, 4, 10), ("b", "n1", 10, 0, 4, True, False, 0, 4, 10)]
    compared = compare_positions(
        said_frame([("a", "n1", 6, False, ""), ("b", "n1", 5, False, "")]),
        book_frame(rows).lazy(),
        reasons(),
        Rules(nodes=("n1",), basis="NET"),
    )
    (row,) = compared.variances.iter_rows(named=True)
    assert (row["sku"], row["variance"], row["settled"]) == ("b", 1, False)


def test_rows_of_another_node_are_recognised() -> None:
    """A file of the wrong node looks like what the ledger has there."""
    said = said_frame([(f"s{number}", "n1", number + 1, False, "") for number in range(10)])
    others = book({(f"s{number}", "n2"): number + 1 for number in range(9)} | {("s1", "n3"): 5})
    assert lookalike(said, others, ["n2", "n3"]) == {"n2": 0.9}


# --- Open orders ------------------------------------------------------------------------------------------


def line(ref: str, sku: str, at: dict[str, int], **more: Any) -> pb.OrderLineOpen:
    made = pb.OrderLineOpen(
        order_source="web",
        order_ref=ref,
        sku=sku,
        ordered=sum(at.values()),
        settling=pb.SETTLING_SETTLED,
        **more,
    )
    for node, units in at.items():
        made.nodes.add(node=node, open_quantity=units)
    made.open_quantity = sum(at.values())
    return made


def row(
    ref: str, sku: str, node: str, units: int, place: int = 1, source: str = "web", name: str = ""
) -> OrderRow:
    return OrderRow(
        row=place, order_source=source, order_ref=ref, line=name, sku=sku, node=node, quantity=units
    )


def orders(rows: list[OrderRow], lines: list[pb.OrderLineOpen], **more: Any) -> tuple[OrderVariance, ...]:
    rules: dict[str, Any] = {"nodes": (), "order_sources": (), "absent": "ZERO"} | more
    return compare_orders(rows, lines, **rules).variances


def test_order_lines_are_compared_by_any_name_and_line() -> None:
    """A linked name is the order; where the ledger knows no lines, the source's lines of a sku are one."""
    known = line("1001", "a", {"n1": 5})
    known.links.add(order_source="erp", order_ref="SO-1")
    same = [row("SO-1", "a", "n1", 2, 1, "erp", "10"), row("SO-1", "a", "n1", 3, 2, "erp", "20")]
    assert orders(same, [known]) == ()
    (less,) = orders(same[:1], [known])
    assert (less.variance, less.order_ref, less.said_at) == (3, "1001", {"n1": 2})


def test_orders_that_one_side_does_not_have() -> None:
    """ZERO: a line without a row is done; IGNORE: nothing is known of it. What is new is told."""
    lines = [line("1", "a", {"n1": 5})]
    (gone,) = orders([], lines)
    assert (gone.said, gone.variance) == (0, 5)
    assert orders([], lines, absent="IGNORE") == ()
    (new,) = orders([row("2", "a", "n1", 4)], [])
    assert (new.known, new.variance) == (False, -4)
    assert orders([], lines, nodes=("n2",)) == ()
    assert orders([], lines, order_sources=("erp",)) == ()


def test_units_at_other_nodes_of_a_partial_snapshot_stay() -> None:
    """A snapshot of one node says nothing of the line's units elsewhere."""
    (found,) = orders([row("1", "a", "n1", 1)], [line("1", "a", {"n1": 3, "n2": 4})], nodes=("n1",))
    assert (found.variance, found.elsewhere) == (2, 4)


def test_the_right_units_at_the_wrong_node() -> None:
    """A total that agrees may still lie elsewhere."""
    (found,) = orders([row("1", "a", "n2", 3)], [line("1", "a", {"n1": 3})])
    assert (found.placed, found.variance) == (True, 3)


def test_doubled_order_rows_are_refused() -> None:
    """Two rows of one line at one node: nothing is compared."""
    compared = compare_orders(
        [row("1", "a", "n1", 1, 1), row("1", "a", "n1", 1, 2)], [], nodes=(), order_sources=(), absent="ZERO"
    )
    assert compared.doubled[0][1] == (1, 2)
    assert compared.variances == ()
