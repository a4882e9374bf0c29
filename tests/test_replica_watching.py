"""Who watches the replica hears of every change and of nothing else: one promise a test."""

from __future__ import annotations

from functools import partial

import pytest

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import AvailabilityState
from availability.domain.version import ZERO, Version
from tests.fakes_ledger import FakeLedger
from tests.replica_lab import UNKNOWN, Clock, catch_up, clock, drained, ledger, served

__all__ = ["clock", "ledger"]


def test_a_watcher_gets_current_values_then_changes(ledger: FakeLedger, clock: Clock) -> None:
    """Only values that changed, and only the latest of each, however long the consumer slept."""
    replica = served(ledger, clock)
    watcher = replica.watch("web", None)
    assert drained(watcher) == [(True, {"x": 7, "y": 1}, ledger.version)]
    for _ in range(3):
        ledger.reserve("x", "a", 1)
        catch_up(replica, ledger)
    ledger.hand_shake()
    ledger.put(("new", "a", (4, 0, 0, 0, -1)))
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 4, "new": 3}, ledger.version)]
    watcher.close()
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert watcher.next(0) is None


def test_a_watcher_of_some_skus_gets_these_only(ledger: FakeLedger, clock: Clock) -> None:
    """One that the ledger does not know yet is UNKNOWN_SKU, and told when it appears."""
    replica = served(ledger, clock)
    watcher = replica.watch("web", ["y", "new"])
    batch = watcher.next(0)
    assert batch is not None
    assert batch.changes == [("y", 1, AvailabilityState.IN_STOCK), ("new", 0, UNKNOWN)]
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert watcher.next(0) is None
    ledger.put(("new", "a", (4, 0, 0, 0, -1)), ("other", "a", (4, 0, 0, 0, -1)))
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"new": 3}, ledger.version)]


def test_a_resumed_watcher_gets_what_changed_since(ledger: FakeLedger, clock: Clock) -> None:
    """Across epochs too; from a version that is not known any more, everything."""
    replica = served(ledger, clock)
    seen = ledger.version
    ledger.reserve("x", "a", 1)
    ledger.hand_shake()
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert drained(replica.watch("web", None, resume=seen)) == [(True, {"x": 5}, ledger.version)]
    assert drained(replica.watch("web", None, resume=ledger.version)) == [(True, {}, ledger.version)]
    old = Version(seen.epoch, seen.seq - 1)
    for resume in (ZERO, old, Version(1, seen.seq + 5), Version(9, 1)):
        assert drained(replica.watch("web", None, resume=resume)) == [
            (True, {"x": 5, "y": 1}, ledger.version)
        ]


def test_first_values_come_in_chunks_and_resume_only_when_complete(ledger: FakeLedger, clock: Clock) -> None:
    """An unfinished first pass resumes from nothing; a change in between is not missed."""
    replica = served(ledger, clock, watch_chunk_skus=1)
    watcher = replica.watch("web", None)
    first = watcher.next(0)
    assert first is not None
    assert first.version == ZERO
    began = replica.version
    ledger.reserve("x", "a", 2)
    catch_up(replica, ledger)
    assert drained(watcher) == [(True, {"y": 1}, began), (False, {"x": 5}, ledger.version)]


def test_watchers_survive_a_resync_with_the_differences(ledger: FakeLedger, clock: Clock) -> None:
    """Reading everything again tells a watcher what differs, not everything."""
    replica = served(ledger, clock)
    watcher = replica.watch("web", None)
    drained(watcher)
    ledger.reserve("x", "a", 1)
    ledger.put(("new", "a", (4, 0, 0, 0, -1)))
    ledger.trim(0)
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 6, "new": 3}, ledger.version)]


def test_a_watcher_of_a_channel_lost_in_a_fork_is_told(ledger: FakeLedger, clock: Clock) -> None:
    """The declaration is gone with the failover: UNKNOWN_CHANNEL, not silence."""
    kept = ledger.now.copy()
    ledger.set_channel("pos")
    replica = served(ledger, clock)
    watcher = replica.watch("pos", None)
    drained(watcher)
    ledger.now = kept
    ledger.hand_shake()
    catch_up(replica, ledger)
    with pytest.raises(ServiceError) as caught:
        watcher.next(0)
    assert caught.value.reason is Reason.UNKNOWN_CHANNEL


def test_only_those_meant_are_woken(ledger: FakeLedger, clock: Clock) -> None:
    """A change of one sku does not wake watchers of another one or of another channel."""
    ledger.set_channel("pos")
    replica = served(ledger, clock)
    woken: list[str] = []
    for name, channel, skus in (
        ("x", "web", ["x", "y"]),
        ("y", "web", ["y"]),
        ("all", "web", None),
        ("pos", "pos", None),
    ):
        watcher = replica.watch(channel, skus, wake=partial(woken.append, name))
        drained(watcher)
    woken.clear()
    ledger.set_override("web", "x", limit=3)
    catch_up(replica, ledger)
    assert sorted(woken) == ["all", "x"]
