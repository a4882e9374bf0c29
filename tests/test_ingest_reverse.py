"""A run that is booked back, once; against a real server."""

from __future__ import annotations

import time

import pytest

from ingest.reverse import REVERSED, ReverseRefused
from tests.ingest_works import AT, ORDERS, Works, works

__all__ = ["works"]


def test_a_run_is_booked_back_once(works: Works) -> None:
    """Every stock type finds its opposite, an order's shipment is voided; twice changes nothing; facts are listed."""
    source = works.source("wms", columns=ORDERS + 'reason = "why"\nreference = "doc"\n')
    tea, node = works.names.sku("tea"), works.node
    works.carry(
        source,
        f"RECEIPT,{tea},{node},50,,,{AT},,",
        f"QUARANTINE,{tea},{node},9,,,{AT},damage,",
        f"ORDER_PLACED,{tea},{node},4,o1,1,{AT},,",
    )
    before = works.nodes(tea)
    outcome = works.carry(
        source,
        f"RECEIPT,{tea},{node},7,,,{AT},,",
        f"RECEIPT,{tea},{node},2,,,{AT},inspection,",
        f"ADJUSTMENT,{tea},{node},-3,,,{AT},,",
        f"SHIPMENT,{tea},{node},1,o1,1,{AT},,",
        f"SHIPMENT,{tea},{node},2,,,{AT},,",
        f"QUARANTINE,{tea},{node},3,,,{AT},damage,",
        f"QUARANTINE_RELEASE,{tea},{node},1,,,{AT},damage,",
        f"WRITE_OFF,{tea},{node},2,,,{AT},damage,",
        f"RETURN_RECEIVED,{tea},{node},1,,,{AT},,",
        f"RECEIPT,{tea},{node},many,,,{AT},,",
        f"ORDER_PLACED,{tea},{node},5,o2,1,{AT},,",
    )
    assert outcome.progress.refused == 1
    after = works.nodes(tea)
    assert after != before
    drop = works.sources[source].drop
    assert drop is not None
    operations = works.desk.operations
    with pytest.raises(ReverseRefused, match="not in"):
        operations.reverser(outcome.run_id, works.sources[source], None, "wrong file")
    file = drop.folder / "002.csv"
    reverser, path = operations.reverser(outcome.run_id[:10], works.sources[source], file, "wrong file")
    preview = reverser.preview(path)
    assert works.nodes(tea) == after
    assert preview.on_hand[tea, node] == before[0] - after[0]
    assert preview.quarantined[tea, node] == before[1] - after[1]
    assert preview.stays_count == {"order facts are not reversed": 1}

    def book() -> tuple[int, int]:
        found = reverser.book(path, lambda deltas: works.client.apply_deltas(source, deltas), time.time)
        assert found.refused == []
        return found.applied, found.repeated

    assert book() == (9, 0)
    assert works.nodes(tea) == (before[0], before[1], before[2] + 5)
    assert book() == (0, 9)
    assert works.nodes(tea) == (before[0], before[1], before[2] + 5)
    assert [run.state for run in works.desk.runs(5) if run.run_id == outcome.run_id] == [REVERSED]


def test_only_what_the_run_itself_applied_is_booked_back(works: Works) -> None:
    """A row that an earlier file had brought is not this run's; another file is not the run's file."""
    source = works.source("wms", columns='event_id = "id"\n')
    tea, node = works.names.sku("tea"), works.node
    works.carry(source, f"RECEIPT,{tea},{node},5,a")
    outcome = works.carry(source, f"RECEIPT,{tea},{node},5,a", f"RECEIPT,{tea},{node},2,b")
    drop = works.sources[source].drop
    assert drop is not None
    operations = works.desk.operations
    reverser, path = operations.reverser(
        outcome.run_id, works.sources[source], drop.folder / "002.csv", "twice"
    )
    found = reverser.book(path, lambda deltas: works.client.apply_deltas(source, deltas), time.time)
    assert (found.applied, found.stays_count) == (1, {"had no effect: REPEATED": 1})
    assert works.on_hand(tea) == 5
    with pytest.raises(ReverseRefused, match="not the file"):
        reverser.preview(drop.folder / "001.csv")
