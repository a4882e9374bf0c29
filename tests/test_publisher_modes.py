"""Which number is written, case by case of the races that were observed."""

from __future__ import annotations

import pytest

from publisher.modes import Look, Step, step
from publisher.settings import Mode

MIRROR, OWNER = Mode.MIRROR, Mode.OWNER


@pytest.mark.parametrize(
    ("mode", "look", "expected"),
    [
        (OWNER, Look(desired=97, shown=100), Step.WRITE),
        (OWNER, Look(desired=97, shown=None), Step.WRITE),
        (OWNER, Look(desired=97, shown=97), Step.SKIP),
        (OWNER, Look(desired=5, shown=5, torn=True), Step.WRITE),
        # Nothing moved since our last write: the ledger's number goes in.
        (MIRROR, Look(desired=90, shown=100, explained=100), Step.WRITE),
        # A: the shop sold 3 that the ledger has not heard of; 100 must not be written over 97.
        (MIRROR, Look(desired=100, shown=97, explained=100), Step.FOLD),
        # A, the orders folded: 97 stands already.
        (MIRROR, Look(desired=97, shown=97, explained=97), Step.SKIP),
        # A2: a cancel on top of a stale write.
        (MIRROR, Look(desired=100, shown=103, explained=100), Step.FOLD),
        (MIRROR, Look(desired=100, shown=103, explained=103), Step.WRITE),
        # C: the ledger is back at what was sent last, the shop is not.
        (MIRROR, Look(desired=100, shown=97, explained=97), Step.WRITE),
        # Never read, or never written: the orders first.
        (MIRROR, Look(desired=10, shown=None, explained=10), Step.FOLD),
        (MIRROR, Look(desired=10, shown=4), Step.FOLD),
        (MIRROR, Look(desired=10, shown=10), Step.SKIP),
        # A status that contradicts its quantity is written again.
        (MIRROR, Look(desired=5, shown=5, explained=5, torn=True), Step.WRITE),
    ],
)
def test_steps(mode: Mode, look: Look, expected: Step) -> None:
    """Owner writes what differs; Mirror writes only over a value that the ledger's orders explain."""
    assert step(mode, look) is expected
