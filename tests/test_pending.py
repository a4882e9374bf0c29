"""A ledger call's answer is told once, however it comes to be known."""

from __future__ import annotations

import time

import pytest

from availability.ledger.commit_queue import CommitQueue, Pending, QueueSettings
from availability.ledger.connection import ConnectionSettings
from availability.ledger.errors import LedgerFunctionFailed, LedgerUnreachable
from availability.ledger.library import packaged


def owed() -> Pending:
    return Pending("function", b"", time.monotonic() + 5)


def test_an_answer_is_told_once() -> None:
    """Finished, waited for, and finished again: told once, and the first reply stays."""
    told: list[int] = []
    pending = owed()
    pending.on_done(lambda: told.append(1))
    pending.finish(b"first")
    assert pending.wait() == b"first"
    pending.finish(error=LedgerUnreachable("late"))
    assert pending.finished
    assert told == [1]
    assert pending.reply == b"first"


def test_an_answer_that_is_there_is_told_at_once() -> None:
    """Who asks to be told after the answer came is told there and then."""
    told: list[int] = []
    pending = owed()
    pending.finish(b"reply")
    pending.on_done(lambda: told.append(1))
    assert told == [1]


def test_a_teller_that_fails_harms_nobody() -> None:
    """An exception of who is told stays with him; the answer is there."""
    pending = owed()
    pending.on_done(lambda: 1 // 0)
    pending.finish(error=LedgerUnreachable("gone"))
    with pytest.raises(LedgerUnreachable):
        pending.wait()


def test_a_bug_after_sending_leaves_the_outcome_open() -> None:
    """What was sent may count: its caller is told to ask again, and only what was not sent is told as not done."""
    queue = CommitQueue(ConnectionSettings(url="unix:///nowhere"), QueueSettings(), packaged())
    sent, unsent = owed(), owed()

    def fails(group: list[Pending]) -> list[Pending]:
        group[0].sent = True
        raise ZeroDivisionError

    queue._round_trip = fails  # type: ignore[method-assign]
    queue._carry_out([sent, unsent])
    with pytest.raises(LedgerUnreachable, match="ask again with the same id"):
        sent.wait()
    with pytest.raises(LedgerFunctionFailed):
        unsent.wait()


def test_a_call_that_comes_while_the_queue_closes_is_answered() -> None:
    """Between the look at the door and the queue the door was shut: who is told by others must not wait for ever."""
    made = CommitQueue(
        ConnectionSettings(url="redis://127.0.0.1:1/0", connect_timeout_s=0.1), QueueSettings(), packaged()
    )
    made.start("ledger")
    real = made._queue

    class Slow:
        """Closes the queue right before a call is put into it."""

        def put(self, item: Pending | None) -> None:
            if item is not None:
                made._queue = real
                made.close()
            real.put(item)

    made._queue = Slow()  # type: ignore[assignment]  # stands in for one call
    told: list[int] = []
    pending = made.submit("f", b"", time.monotonic() + 60)
    pending.on_done(lambda: told.append(1))
    assert told == [1]
    with pytest.raises(LedgerUnreachable):
        pending.wait()
