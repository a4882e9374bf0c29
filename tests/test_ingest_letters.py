"""Dead letters as rows: what makes one letter of two, when a closed one is open again, and what errors do not tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.database import open_database
from ingest.letters import DISCARDED, REPLAYED, WAITING, KeptLetter, Letter, Letters
from ingest.rows import Category

LETTER = Letter(
    source="wms",
    artifact="monday.csv",
    run_id="run 1",
    position=7,
    category=Category.UNKNOWN_NODE,
    reason="UNKNOWN_NODE",
    message="no such node",
    raw=b"RECEIPT,tea,east,3\n",
    context=b"type,sku,node,quantity\n",
    event_id="dl:monday:7",
)


def kept(letters: Letters) -> KeptLetter:
    (one,) = letters.find(state="")
    return one


@pytest.mark.parametrize("state", [REPLAYED, DISCARDED])
def test_the_same_row_of_another_file_opens_a_replayed_letter_again(tmp_path: Path, state: str) -> None:
    """What was replayed was Monday's receipt; Tuesday's waits for its own replay. What was given up stays given up."""
    letters = Letters(open_database(str(tmp_path / "ingest.db")))
    engine = letters._engine
    with engine.begin() as connection:
        letters.put(connection, [LETTER], 1.0)
    assert letters.close([LETTER.letter_id], state, "", 2.0) == 1
    with engine.begin() as connection:  # a restart within Monday's file is no news
        letters.put(connection, [LETTER], 3.0)
    assert kept(letters).state == state
    tuesday = replace(LETTER, artifact="tuesday.csv", run_id="run 2", position=9, event_id="dl:tuesday:9")
    with engine.begin() as connection:
        letters.put(connection, [tuesday], 4.0)
    found = kept(letters)
    if state == REPLAYED:
        assert (found.state, found.event_id, found.closed_at) == (WAITING, "dl:tuesday:9", None)
        assert letters.counts() == {("wms", "UNKNOWN_NODE"): 1}
    else:
        assert (found.state, found.event_id, found.closed_at) == (DISCARDED, "dl:monday:7", 2.0)
    assert (found.count, found.artifact) == (2, "tuesday.csv")


def test_a_conflict_that_was_replayed_stays_so(tmp_path: Path) -> None:
    """The same number with the same other content, in the next file too: replaying it again would count it twice."""
    letters = Letters(open_database(str(tmp_path / "ingest.db")))
    conflict = replace(LETTER, category=Category.CONFLICT, reason="CONFLICT")
    with letters._engine.begin() as connection:
        letters.put(connection, [conflict], 1.0)
    assert letters.close([conflict.letter_id], REPLAYED, "", 2.0) == 1
    with letters._engine.begin() as connection:
        letters.put(connection, [replace(conflict, run_id="run 2", event_id="dl:tuesday:7")], 3.0)
    assert (kept(letters).state, kept(letters).count) == (REPLAYED, 2)


def test_a_waiting_letter_keeps_the_name_under_which_it_is_replayed(tmp_path: Path) -> None:
    """The same row is one letter and one effect, however many files bring it before it is replayed."""
    letters = Letters(open_database(str(tmp_path / "ingest.db")))
    for number in range(3):
        again = replace(LETTER, run_id=f"run {number}", event_id=f"dl:{number}:7")
        with letters._engine.begin() as connection:
            letters.put(connection, [again], float(number))
    assert (kept(letters).event_id, kept(letters).count) == ("dl:0:7", 3)


def test_an_error_of_the_database_holds_no_rows(tmp_path: Path) -> None:
    """A partner's row may hold what the letters leave out; a log of the error must not have it either."""
    engine = open_database(str(tmp_path / "ingest.db"))
    broken = sa.text("INSERT INTO nowhere VALUES (:raw)")
    with pytest.raises(sa.exc.OperationalError) as caught, engine.begin() as connection:
        connection.execute(broken, {"raw": "anna@example.org"})
    assert "anna@example.org" not in str(caught.value)
