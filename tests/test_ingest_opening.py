"""Stock and open orders before go-live: both files or neither; against a real server."""

from __future__ import annotations

import pytest

from ingest.operations import OpeningRefused
from tests.ingest_works import AT, ORDERS, Works, works

__all__ = ["works"]


def test_an_opening_load_is_both_files_or_neither(works: Works) -> None:
    """Every problem of both files at once and nothing loaded; then stock and orders; a second time only when asked."""
    source = works.source("erp", columns=ORDERS)
    tea, cake, node = works.names.sku("tea"), works.names.sku("cake"), works.node
    box = works.kit("box", cake=2)
    good_stock = works.write(
        source, f"SET_ON_HAND,{tea},{node},20,,,{AT}", f"SET_ON_HAND,{cake},{node},8,,,{AT}"
    )
    bad_stock = works.write(
        source,
        f"SET_ON_HAND,{tea},{node},20,,,{AT}",
        f"SET_ON_HAND,{tea},{node},21,,,{AT}",
        f"SET_ON_HAND,{box},{node},1,,,{AT}",
        f"SHIPMENT,{tea},{node},1,,,{AT}",
        f"SET_ON_HAND,{tea},{works.names.node('mars')},1,,,",
    )
    orders = works.write(
        source, f"ORDER_PLACED,{tea},{node},3,o1,1,{AT}", f"ORDER_PLACED,{box},{node},2,o1,2,{AT}"
    )
    bad_orders = works.write(source, f"ORDER_PLACED,{tea},{node},many,o1,1,{AT}")
    operations, settings = works.desk.operations, works.sources[source]
    with pytest.raises(OpeningRefused) as refusal:
        operations.open(bad_stock, bad_orders, settings, settings, new_nodes=True)
    assert refusal.value.found is not None
    assert [(file, line) for file, line, _ in refusal.value.found.problems] == [
        (bad_stock.name, 3),
        (bad_stock.name, 4),
        (bad_stock.name, 5),
        (bad_stock.name, 6),
        (bad_orders.name, 2),
    ]
    assert works.nodes(tea) == (0, 0, 0)
    with pytest.raises(OpeningRefused) as refusal:
        operations.open(good_stock, orders, settings, settings)
    assert refusal.value.found is not None
    assert "knows no node" in refusal.value.found.problems[0][2]
    found = operations.open(good_stock, orders, settings, settings, new_nodes=True)
    assert (found.positions, found.units, found.orders, found.ordered_units) == (2, 28, 1, 5)
    assert (works.nodes(tea), works.nodes(cake)) == ((20, 0, 3), (8, 0, 4))
    again = operations.open(good_stock, orders, settings, settings)
    assert [outcome.known for outcome in again.outcomes] == [True, True]
    works.carry(source, f"RECEIPT,{tea},{node},1,,,{AT}")
    other = works.write(source, f"SET_ON_HAND,{tea},{node},5,,,2026-11-02T08:00:00Z")
    with pytest.raises(OpeningRefused, match="brought something already"):
        operations.open(other, orders, settings, settings)
    operations.open(other, orders, settings, settings, again=True)
    assert works.on_hand(tea) == 5
