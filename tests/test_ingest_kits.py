"""Orders of kits: each means its parts as they were; against a real server."""

from __future__ import annotations

import pytest

from ingest.runs import Outcome
from ingest.settings import read_source
from tests.ingest_lab import NUMBERS
from tests.ingest_works import AT, ORDERS, Works, works

__all__ = ["works"]


@pytest.mark.parametrize("numbered", [False, True])
def test_an_order_means_its_kits_as_they_were(works: Works, numbered: bool) -> None:
    """By what the checkout committed, or by the first word of the feed; a changed recipe is for new orders."""
    source = works.source("erp", columns=ORDERS + (NUMBERS if numbered else ""))
    a, b, c, node = (*(works.names.sku(name) for name in "abc"), works.node)
    number = iter(range(1, 100))
    rows = [f"RECEIPT,{sku},{node},100,,,{AT}" for sku in (a, b, c)]

    def carry(*lines: str) -> Outcome:
        return works.carry(source, *(f"{line},s,{next(number)}" if numbered else line for line in lines))

    carry(*rows)
    box = works.kit("box", a=1, b=2)
    held = works.client.reserve(works.channel, {box: 2}, hold_s=60.0)
    works.client.commit(held.reservation.reservation_id, order_source="shop", order_ref="1001")
    outcome = carry(f"ORDER_PLACED,{box},{node},3,o1,1,{AT}", f"ORDER_PLACED,{a},{node},1,o1,,{AT}")
    assert outcome.progress.refused == 0
    assert works.order(source, "o1") == {a: 4, b: 6}
    works.kit("box", a=1, c=5)
    later = "2026-11-01T09:00:00Z"
    carry(f"ORDER_CHANGED,{box},{node},1,o1,1,{later}", f"ORDER_PLACED,{box},{node},1,o2,1,{later}")
    assert works.order(source, "o1")[b] == 2
    assert works.order(source, "o2") == {a: 1, c: 5}
    before = [works.on_hand(sku) for sku in (a, b, c)]
    assert carry(f"SHIPMENT,{box},{node},1,o1,1,{later}").progress.refused == 0
    assert [works.on_hand(sku) for sku in (a, b, c)] == [before[0] - 1, before[1] - 2, before[2]]


def test_the_recipe_that_the_ledger_remembers_comes_first(works: Works) -> None:
    """The checkout's commit fixed it; the feed speaks of the same order after the recipe changed."""
    source = works.source("erp", columns=ORDERS)
    a, b, c, node = (*(works.names.sku(name) for name in "abc"), works.node)
    works.carry(source, *(f"RECEIPT,{sku},{node},100,,,{AT}" for sku in (a, b, c)))
    box = works.kit("box", a=1, b=2)
    held = works.client.reserve(works.channel, {box: 2}, hold_s=60.0)
    works.client.commit(held.reservation.reservation_id, order_source=source, order_ref="o1")
    works.kit("box", a=1, c=5)
    works.carry(source, f"ORDER_CHANGED,{box},{node},3,o1,1,{AT}")
    assert [works.nodes(sku)[2] for sku in (a, b, c)] == [3, 6, 0]


def test_a_kit_becomes_a_letter_where_the_mapping_says_so(works: Works) -> None:
    """explode_kits = false; replayed after it was switched on it has its effect, once."""
    source = works.source("erp", columns=ORDERS, more="[mapping.skus]\n")
    path = works.folder / "erp.toml"
    text = path.read_text()
    path.write_text(text.replace('version = "1"', 'version = "1"\nexplode_kits = false'))
    works.sources[source] = read_source(path)
    a = works.names.sku("a")
    box = works.kit("box", a=3)
    works.carry(source, f"RECEIPT,{a},{works.node},100,,,{AT}")
    assert works.carry(source, f"ORDER_PLACED,{box},,2,o1,1,{AT}").progress.reasons == {"KIT_SKU": 1}
    path.write_text(text)
    works.sources[source] = read_source(path)
    for applied in (1, 0):
        outcome = works.desk.replay(works.desk.letters.find(source=source))
        assert (outcome.applied, outcome.refused) == (applied, [])
    assert works.order(source, "o1") == {a: 6}
