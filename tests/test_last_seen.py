"""The note of how far a machine has seen its ledger: what Redis turns into while a server runs does not replace it."""

from __future__ import annotations

from pathlib import Path

import pytest

from availability.ledger.last_seen import LastSeen, LedgerLost
from availability.ledger.reader import Head


def head(ledger_id: str, epoch: int, seq: int) -> Head:
    return Head(ledger_id, epoch, seq, "", 0)


@pytest.mark.parametrize("restarted", [False, True])
def test_another_ledger_is_never_noted_in_its_place(tmp_path: Path, restarted: bool) -> None:
    """Redis came back empty and somebody made a new ledger: a server that is started again by itself must refuse it."""
    watching = LastSeen(tmp_path)
    watching.note(head("ours", 1, 40))
    if restarted:
        watching = LastSeen(tmp_path)
    for found in (head("", 0, 0), head("another", 1, 1), head("another", 7, 900)):
        watching.note(found)
    with pytest.raises(LedgerLost, match="another ledger, this machine worked with ours up to 1-40"):
        LastSeen(tmp_path).check(head("another", 7, 900))
    with pytest.raises(LedgerLost, match="no ledger"):
        LastSeen(tmp_path).check(head("", 0, 0))


def test_what_was_lost_is_still_told_at_the_next_start(tmp_path: Path) -> None:
    """Redis came back with less, and the server ended before anybody began the next epoch."""
    watching = LastSeen(tmp_path)
    watching.note(head("ours", 1, 40))
    watching.note(head("ours", 1, 30))
    assert LastSeen(tmp_path).check(head("ours", 1, 30)) == (31, 40)
    watching.note(head("ours", 2, 1))
    assert LastSeen(tmp_path).check(head("ours", 2, 1)) is None
