"""What is kept of a shop: one row a sku, one owner, letters by sku; the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from availability.history.database import open_database
from publisher.letters import Letter, Letters
from publisher.listing_rows import ListingRows
from publisher.state import Change, Kept, OwnerLost, Sending, Settled, State
from publisher.status import statuses
from publisher.storefront import Category, Kind, Listing, Managed, StockStatus
from tests.postgres import database_url, postgres, postgres_url

__all__ = ["database_url", "postgres", "postgres_url"]


@pytest.fixture
def engine(database_url: str, tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(database_url, tmp_path)
    yield engine
    engine.dispose()


def owned(engine: Engine, owner: str = "one") -> State:
    state = State(engine, "web", owner)
    assert state.acquire(1_000.0, 3_600.0)
    return state


def change(sku: str, wanted: int, version: str, heard_at: float = 1_000.0) -> Change:
    return Change(sku=sku, sellable=wanted, wanted=wanted, version=version, heard_at=heard_at)


def only(state: State) -> Kept:
    rows = state.rows()
    assert len(rows) == 1
    return rows[0]


def test_a_sku_has_one_row_however_often_it_changes(engine: Engine) -> None:
    """The latest number stands, the oldest unanswered change gives the time, and the feed's place is kept with it."""
    state = owned(engine)
    for number in range(5):
        state.heard([change("a", number, f"1-{number}", 1_000.0 + number)], f"1-{number}", 1_000.0)
    row = only(state)
    assert (row.wanted, row.wanted_version, row.wanted_since, row.pending) == (4, "1-4", 1_000.0, True)
    shop = state.shop()
    assert shop is not None
    assert shop.resume_version == "1-4"


def test_what_was_acknowledged_and_what_came_meanwhile(engine: Engine) -> None:
    """An acknowledged number is settled; one that was heard meanwhile is not."""
    state = owned(engine)
    state.heard([change("a", 5, "1-1")], "1-1", 1_000.0)
    state.begin([Sending(sku="a", quantity=5)], 1_001.0)
    assert (only(state).sending, only(state).sending_owner) == (5, "one")
    state.heard([change("a", 4, "1-2", 1_001.5)], "1-2", 1_001.5)
    settled = Settled(
        sku="a", sent=5, acked=5, version="1-1", pending=False, shown=5, status=StockStatus.IN_STOCK
    )
    state.settle([settled], 1_002.0)
    row = only(state)
    assert (row.acked, row.acked_version, row.sending, row.pending) == (5, "1-1", None, True)
    state.settle([Settled(sku="a", sent=4, acked=4, version="1-2", pending=False)], 1_003.0)
    assert (only(state).acked, only(state).pending, only(state).shown) == (4, False, 5)
    state.heard([change("a", 4, "1-3", 1_004.0)], "1-3", 1_004.0)
    assert not only(state).pending, "the shop shows it already"
    state.heard([change("a", 4, "1-4", 1_005.0)], "1-4", 1_005.0, always=True)
    assert only(state).pending, "a shop that sells by itself is looked at all the same"


def test_an_unknown_outcome_forgets_what_was_acknowledged(engine: Engine) -> None:
    """A restart must not skip a number because it was acknowledged before a write that nobody knows the end of."""
    state = owned(engine)
    state.heard([change("a", 5, "1-1")], "1-1", 1_000.0)
    state.settle([Settled(sku="a", sent=5, acked=5, version="1-1", pending=False)], 1_001.0)
    state.heard([change("a", 4, "1-2")], "1-2", 1_002.0)
    state.begin([Sending(sku="a", quantity=4)], 1_002.0)
    state.settle([Settled(sku="a", sent=4, acked=None, version="1-2", pending=True, forget=True)], 1_003.0)
    assert (only(state).acked, only(state).pending) == (None, True)
    state.heard([change("a", 5, "1-3")], "1-3", 1_004.0)
    assert only(state).pending


def test_a_shop_has_one_owner(engine: Engine) -> None:
    """Others wait for the lease; who has lost it may note nothing, and therefore send nothing."""
    one, two = State(engine, "web", "one"), State(engine, "web", "two")
    assert one.acquire(1_000.0, 0.0 if engine.dialect.name == "postgresql" else 5.0)
    one_may = engine.dialect.name != "postgresql"  # there the database's own clock counts, and 0 s are over
    if one_may:
        assert not two.acquire(1_004.0, 5.0)
        one.heard([change("a", 5, "1-1")], "1-1", 1_004.0)
    assert two.acquire(1_006.0, 3_600.0)
    assert not one.acquire(1_007.0, 5.0)
    with pytest.raises(OwnerLost):
        one.begin([Sending(sku="a", quantity=1)], 1_007.0)
    with pytest.raises(OwnerLost):
        one.heard([change("a", 1, "1-2")], "1-2", 1_007.0)
    two.give_up()
    assert one.acquire(1_008.0, 5.0)


def test_operators_ask_for_another_write(engine: Engine) -> None:
    """What is asked for is found by the running publisher, once."""
    state = owned(engine)
    state.heard([change("a", 5, "1-1"), change("b", 6, "1-1")], "1-1", 1_000.0)
    settled = [
        Settled(sku=sku, sent=quantity, acked=quantity, version="1-1", pending=False)
        for sku, quantity in (("a", 5), ("b", 6))
    ]
    state.settle(settled, 1_001.0)
    assert state.ask(["b", "unknown"]) == 1
    assert [row.sku for row in state.asked()] == ["b"]
    assert [row.sku for row in state.open_rows()] == ["b"]
    state.settle(settled[1:], 1_002.0)
    assert state.asked() == []


def test_letters_are_one_a_sku(engine: Engine) -> None:
    """A repeat counts, another reason replaces, a success resolves, a new failure waits again."""
    state, letters = owned(engine), Letters(engine)
    state.heard([change("a", 5, "1-1")], "1-1", 1_000.0)

    def letter(reason: str) -> Letter:
        return Letter(
            sku="a", category=Category.REJECTED, reason=reason, message="no", quantity=5, version="1-1"
        )

    letters.put("web", [letter("X")], 1.0)
    letters.put("web", [letter("Y")], 2.0)
    found = letters.find()
    assert [(one.reason, one.count, one.first_seen_at) for one in found] == [("Y", 2, 1.0)]
    assert letters.counts() == {("web", "REJECTED"): 1}
    assert letters.replay(found, 3.0) == 1
    assert [row.sku for row in state.asked()] == ["a"]
    assert letters.find() == []
    letters.put("web", [letter("X")], 4.0)
    letters.resolve("web", ["a"], 5.0)
    assert [one.state for one in letters.find(state="")] == ["RESOLVED"]
    letters.put("web", [letter("X")], 6.0)
    assert [(one.count, one.first_seen_at) for one in letters.find()] == [(1, 6.0)]
    assert letters.discard(letters.find(), "gone for good", 7.0) == 1
    assert letters.find(letter_id=found[0].letter_id[:8], state="")[0].closed_reason == "gone for good"


def test_the_catalogue_is_kept(engine: Engine) -> None:
    """What a whole walk did not see is gone; what was looked up since stays."""
    state = owned(engine)
    rows = ListingRows(engine, "web")

    def listing(number: int, sku: str) -> Listing:
        return Listing(
            listing_id=str(number),
            sku=sku,
            kind=Kind.VARIATION,
            managed=Managed.OWN,
            quantity=3,
            parent_id="7",
        )

    rows.keep([listing(1, "a"), listing(2, "b")], 10.0)
    rows.keep([listing(1, "A2")], 20.0)
    rows.end_walk(20.0)
    assert [(one.listing_id, one.sku, one.parent_id) for one in rows.all()] == [("1", "A2", "7")]
    rows.drop(["1"])
    assert rows.all() == []
    shop = state.shop()
    assert shop is not None
    assert shop.catalogue_at == 20.0


def test_what_operators_asked_for_is_found_without_a_look_at_every_sku(tmp_path: Path) -> None:
    """It is asked for once a second: by the index of what is open, whatever the size of the catalogue."""
    engine = open_database("", tmp_path)
    plans: list[str] = []

    def explain(
        connection: Connection, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object
    ) -> None:
        if statement.startswith("SELECT"):
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            plans.extend(str(row[3]) for row in rows)

    try:
        state = owned(engine)
        state.heard([change("a", 5, "1-1"), change("b", 5, "1-1")], "1-1", 1_000.0)
        settled = [Settled(sku=sku, sent=5, acked=5, version="1-1", pending=False) for sku in "ab"]
        state.settle(settled, 1_000.0)
        assert state.asked() == []
        state.ask(["b"])
        sa.event.listen(engine, "before_cursor_execute", explain)
        assert [row.sku for row in state.asked()] == ["b"]
    finally:
        engine.dispose()
    assert any("USING INDEX shop_skus_open" in plan for plan in plans), plans


def test_status_tells_what_waits(engine: Engine) -> None:
    """Backlog, lag and letters are asked of the database alone."""
    state = owned(engine)
    state.heard([change("a", 5, "1-1", 990.0), change("b", 5, "1-1", 995.0)], "1-1", 1_000.0)
    state.settle([Settled(sku="b", sent=5, acked=5, version="1-1", pending=False)], 1_000.0)
    one = statuses(engine, 1_000.0)[0]
    assert (one.skus, one.backlog, one.lag_s, one.last_acked_s) == (2, 1, 10.0, 0.0)
    assert one.publishing
