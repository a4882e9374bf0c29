"""The mapper: what is remembered of earlier rows never changes what a later one means."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ingest.mapping import Mapper
from ingest.mapping_settings import MappingSettings
from ingest.rows import Row, RowRefused

MAPPING = {
    "version": "1",
    "author": "test",
    "columns": {
        "type": "t", "sku": "s", "node": "n", "quantity": "q", "reason": "r", "occurred_time": "at", "author": "a"
    },
    "movements": {
        "1": {"type": "RECEIPT"}, "2": {"type": "ADJUSTMENT", "sign": -1, "reason": "count"},
        "True": {"type": "QUARANTINE", "reason": "odd"}, "9": {"ignore": True},
    },
    "nodes": {"P1": "east", "1": "one"},
}  # fmt: skip
CELLS = st.sampled_from(["1", 1, True, "2", 2, "9", " 1 ", "", None, "x", ["1"], {"a": 1}])
ROWS = st.lists(
    st.tuples(
        CELLS, st.sampled_from(["A", "B", 7, None, ["A"]]), st.sampled_from(["P1", 1, True, "1", "else", None]),
        st.sampled_from([1, "2", "2.0", "2.5", "", None, True, ["3"]]), CELLS,
        st.sampled_from(["2026-11-01T08:00:00Z", "2026-11-01T08:00:00", "0001-01-01T00:00:00+14:00", "", 5, ["x"]]),
        st.sampled_from([None, "", "erp", 1, True]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


def said(mapper: Mapper, row: Row) -> object:
    try:
        delta = mapper.delta(row, f"e:{row.position}")
    except RowRefused as refused:
        return refused.reason, refused.message
    return delta.SerializeToString(deterministic=True) if delta is not None else None


@settings(max_examples=300, deadline=None)
@example(
    [(1, "A", 1, 1, None, None, None), (True, "A", 1, 1, None, None, None)]
)  # equal, and not the same text
@given(ROWS)
def test_a_row_means_the_same_whatever_came_before(rows: list[tuple[object, ...]]) -> None:
    """Any cells of any type, in any order: as a mapper says it that has seen nothing else; never a crash."""
    found = MappingSettings.model_validate(MAPPING)
    seasoned = Mapper("wms", found)
    for position, values in enumerate(rows, 1):
        row = Row(position, values, b"")
        assert said(seasoned, row) == said(Mapper("wms", found), row)


@pytest.mark.parametrize(
    "name", ["event_id", "source_sequence", "occurred_time", "due_time", "shipped_quantity"]
)
def test_what_differs_from_row_to_row_is_no_constant(name: str) -> None:
    """It would have been ignored, or given every row one name."""
    with pytest.raises(ValidationError, match="no constant"):
        MappingSettings.model_validate({**MAPPING, "constants": {name: "1", "stream": "s"}})


def test_a_cancel_needs_no_quantity_and_a_receipt_does() -> None:
    """An empty cell is what the type makes of it."""
    movements = {"C": {"type": "ORDER_CANCELLED"}, "R": {"type": "RECEIPT"}}
    columns = {"type": "t", "order_ref": "o", "quantity": "q"}
    mapper = Mapper(
        "erp", MappingSettings.model_validate({**MAPPING, "columns": columns, "movements": movements})
    )
    cancelled = mapper.delta(Row(1, ["C", "SO-1", None], b""), "e")
    assert cancelled is not None
    assert (cancelled.order_ref, cancelled.quantity) == ("SO-1", 0)
    with pytest.raises(RowRefused, match="no number"):
        mapper.delta(Row(2, ["R", "SO-1", ""], b""), "e")
