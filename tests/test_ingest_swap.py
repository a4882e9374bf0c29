"""One source in another's place: in shadow beside it, compared, and cut over; against a real server."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from ingest.authority import Cutover, Point
from ingest.operations import CutoverRefused
from ingest.runs import DONE
from tests.ingest_lab import NUMBERS
from tests.ingest_works import Works, works

__all__ = ["works"]


def swap(works: Works) -> tuple[str, str, str]:
    """An old source that speaks, a new one in shadow, a sku of which the old one has told 10."""
    tea = works.names.sku("tea")
    old = works.source("old", columns=NUMBERS)
    new = works.source("new", top=f'mode = "shadow"\nshadow_channel = "{works.channel}"', columns=NUMBERS)
    works.carry(old, f"RECEIPT,{tea},{works.node},10,s,1")
    return old, new, tea


def test_a_source_in_shadow_is_compared_and_not_applied(works: Works) -> None:
    """Not a unit moves; what both tell agrees, what one misses or the other doubles is a difference."""
    old, new, tea = swap(works)
    outcome = works.carry(
        new,
        f"SHIPMENT,{tea},{works.node},2,n,1",
        f"SHIPMENT,{tea},{works.node},2,n,1",
        f"RECEIPT,{tea},{works.node},x,n,2",
    )
    assert (outcome.state, outcome.progress.compared, outcome.progress.refused) == (DONE, 1, 1)
    assert works.on_hand(tea) == 10
    assert works.client.last_sequences(new) == {}
    shadow = works.desk.operations.shadow(works.sources[new])
    (one,) = shadow.report(time.time())
    assert (one.says, one.ledger, one.difference, one.based_on) == (8, 10, -2, "LEDGER")
    works.carry(old, f"SHIPMENT,{tea},{works.node},2,s,2")
    assert [one.difference for one in shadow.report(time.time())] == [0]
    works.carry(new, f"SET_ON_HAND,{tea},{works.node},30,n,3", f"RECEIPT,{tea},{works.node},1,n,4")
    (one,) = shadow.report(time.time())
    assert (one.says, one.difference, one.based_on) == (31, 23, "SAID")
    assert shadow.rebase(time.time()) == 1
    assert [one.difference for one in shadow.report(time.time())] == [0]
    letter = works.desk.letters.find(source=new)[0]
    outcome_of_replay = works.desk.replay([letter])
    assert outcome_of_replay.refused, "a letter of a source in shadow is not applied either"
    assert works.on_hand(tea) == 8


def test_authority_moves_without_a_jump_and_without_double_counting(works: Works) -> None:
    """Both sources tell every movement; each counts once, whichever side of the point it is on."""
    old, new, tea = swap(works)
    cake = works.names.sku("cake")
    works.carry(old, f"RECEIPT,{cake},{works.node},5,s,2")
    both = [f"SHIPMENT,{tea},{works.node},1" for _ in range(6)]
    works.carry(old, *(f"{row},s,{n}" for n, row in enumerate(both[:2], 3)))
    works.carry(new, *(f"{row},n,{n}" for n, row in enumerate(both[:2], 1)))
    operations = works.desk.operations
    move = Cutover(
        from_source=old,
        from_point=Point(stream="s", sequence=6),
        to_source=new,
        to_point=Point(stream="n", sequence=4),
        nodes=frozenset({works.node}),
        skus=frozenset({tea}),
        reason="new ERP",
        made_at=time.time(),
    )
    operations.shadow(works.sources[new]).rebase(time.time())
    before = works.nodes(tea)
    operations.cut_over(move, works.sources[new], settle_s=0)
    assert works.nodes(tea) == before
    # The old one tells all six (numbers 5 to 8), and something of a sku that stays its own.
    late = works.carry(
        old, *(f"{row},s,{n}" for n, row in enumerate(both[2:], 5)), f"SHIPMENT,{cake},{works.node},1,s,9"
    )
    assert (late.progress.applied, late.progress.reasons) == (3, {"NOT_AUTHORITY": 2})
    # The new one too (numbers 3 to 6): before its point they are counted and left out.
    told = works.carry(new, *(f"{row},n,{n}" for n, row in enumerate(both[2:], 3)))
    assert (told.progress.applied, told.progress.before_point) == (2, 2)
    assert works.on_hand(tea) == 10 - 6
    assert works.on_hand(cake) == 4
    # Of other skus the new source is still only compared.
    assert works.carry(new, f"RECEIPT,{cake},{works.node},7,n,7").progress.compared == 1
    assert works.carry(new, f"RECEIPT,{tea},{works.node},7,n,8").progress.applied == 1
    assert (works.on_hand(tea), works.on_hand(cake)) == (11, 4)
    letters = works.desk.letters.find(source=old)
    assert {letter.category for letter in letters} == {"AUTHENTICATION"}
    assert len(works.desk.replay(letters).refused or ()) == len(letters)
    assert works.on_hand(tea) == 11


def test_a_cutover_that_would_count_twice_is_refused(works: Works) -> None:
    """A point that has passed, a point that is not given, differences that nobody accepted."""
    old, new, tea = swap(works)
    works.carry(new, f"RECEIPT,{tea},{works.node},7,n,1")

    def move(sequence: int, **changes: object) -> Cutover:
        fields: dict[str, object] = {
            "from_source": old,
            "from_point": Point(stream="s", sequence=sequence),
            "to_source": new,
            "to_point": Point(sequence=4),
            "nodes": frozenset({works.node}),
            "skus": frozenset(),
            "reason": "",
            "made_at": 0.0,
        }
        return Cutover(**{**fields, **changes})  # type: ignore[arg-type]  # by name

    def refused(one: Cutover) -> str:
        with pytest.raises(CutoverRefused) as refusal:
            works.desk.operations.cut_over(one, works.sources[new], settle_s=0)
        return str(refusal.value)

    assert "is at 1 of s already" in refused(move(0))
    assert "positions differ" in refused(move(5))
    assert "no point of" in refused(move(5, to_point=Point()))
    assert "name nodes or skus" in refused(move(5, nodes=frozenset()))
    assert "the same" in refused(move(5, to_source=old))
    accepted = works.desk.operations.cut_over(
        move(5), works.sources[new], accept_differences=True, settle_s=0
    )
    assert [one.difference for one in accepted] == [7]


def test_events_without_numbers_are_cut_at_a_time(works: Works) -> None:
    """The old one's until then, the new one's after."""
    tea = works.names.sku("tea")
    old, new = (works.source(name, columns='occurred_time = "at"\n') for name in ("old", "new"))
    at = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()
    move = Cutover(
        from_source=old,
        from_point=Point(at_time=at),
        to_source=new,
        to_point=Point(at_time=at),
        nodes=frozenset({works.node}),
        skus=frozenset(),
        reason="",
        made_at=0.0,
    )
    works.desk.operations.cut_over(move, works.sources[new], settle_s=0)
    rows = [f"RECEIPT,{tea},{works.node},{n},2026-11-01T{n}:00:00Z" for n in (10, 12, 14)]
    assert works.carry(old, *rows).progress.reasons == {"NOT_AUTHORITY": 1}
    assert works.carry(new, *rows).progress.before_point == 2
    assert works.on_hand(tea) == 10 + 12 + 14
