"""How the replica follows the ledger, and what it does where it cannot: one promise a test.

Random failures are the simulation's subject.
"""

from __future__ import annotations

import threading
import time
from random import Random

import msgspec
import pytest

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import AvailabilityState
from availability.domain.version import Version
from availability.ledger.reader import Page, PositionState, SkuState
from availability.replica import Progress, Replica, ReplicaSettings
from tests.fakes_ledger import FakeLedger
from tests.replica_lab import (
    Clock,
    answer,
    catch_up,
    clock,
    forked,
    ledger,
    replica_of,
    served,
    walk_until_doubt,
)

__all__ = ["clock", "ledger"]


def test_a_batch_of_records_shows_as_a_whole(ledger: FakeLedger, clock: Clock) -> None:
    """Several records of one read fold into one change, at the last one's version."""
    replica = served(ledger, clock)
    ledger.reserve("x", "a", 1)
    ledger.put(("new", "c", (3, 0, 0, 0, -1)))
    ledger.set_channel("web", ["c", "a"])
    replica.step()
    assert replica.version == ledger.version
    assert answer(replica, "web", "x") == (4, AvailabilityState.IN_STOCK)
    assert answer(replica, "web", "new") == (3, AvailabilityState.IN_STOCK)


def test_freshness_is_the_age_of_the_last_proof(ledger: FakeLedger, clock: Clock) -> None:
    """An unreachable ledger leaves memory and ages it; the first proof after that makes it young."""
    replica = served(ledger, clock)
    ledger.unreachable = True
    clock.now += 3
    assert replica.step() > 0
    assert (replica.ready, replica.freshness_ms()) == (True, 3_000)
    ledger.unreachable = False
    replica.step()
    assert replica.freshness_ms() == 0


def test_a_backlog_is_no_proof(ledger: FakeLedger, clock: Clock) -> None:
    """A full read says that there may be more: answers stay as old as they were."""
    replica = served(ledger, clock, batch_records=2)
    for _ in range(4):
        ledger.reserve("x", "a", 1)
    clock.now += 1
    replica.step()
    assert replica.freshness_ms() == 1_000


def test_retries_back_off_with_jitter(ledger: FakeLedger, clock: Clock) -> None:
    """Pauses grow to a limit and are not equal."""
    replica = replica_of(ledger, clock, backoff_min_ms=100, backoff_max_ms=1_000)
    ledger.unreachable = True
    pauses = [replica.step() for _ in range(20)]
    assert 0.05 <= pauses[0] <= 0.1
    assert all(0.5 <= pause <= 1.0 for pause in pauses[5:])
    assert len(set(pauses)) > 10
    assert not replica.ready


def test_a_trimmed_log_is_read_again(ledger: FakeLedger, clock: Clock) -> None:
    """Behind the trim point there is a gap: memory ages, is read again, and is right (FAILURES 8)."""
    replica = served(ledger, clock)
    for _ in range(5):
        ledger.reserve("x", "a", 1)
    ledger.trim(2)
    replica.step()
    assert replica.ready
    assert replica.version < ledger.version
    catch_up(replica, ledger)
    assert replica.counts().resyncs == 2
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_deleted_log_is_noticed_by_the_head(ledger: FakeLedger, clock: Clock) -> None:
    """A read of a deleted stream waits for ever; the head tells (FAILURES 9)."""
    replica = served(ledger, clock)
    ledger.reserve("x", "a", 1)
    ledger.trim(0)
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_restart_of_redis_is_no_fork(ledger: FakeLedger, clock: Clock) -> None:
    """A new epoch that begins where we are is followed without reading anything again."""
    replica = served(ledger, clock)
    ledger.hand_shake()
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert replica.counts().resyncs == 1
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_fork_is_reported_and_read_again(ledger: FakeLedger, clock: Clock) -> None:
    """What was read and is gone is named; memory is in doubt until it was read again."""
    replica, forks, lost = forked(ledger, clock)
    ledger.hand_shake()
    replica.step()
    assert not replica.ready
    assert [(fork.epoch, fork.kept_seq, fork.seen) for fork in forks] == [(1, lost.seq - 2, lost)]
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")
    assert len(forks) == 1


def test_ids_handed_out_again_are_found_by_the_chain(ledger: FakeLedger, clock: Clock) -> None:
    """The worst failover leaves no gap to see (FAILURES 1): same ids, other content."""
    replica, forks, lost = forked(ledger, clock)
    ledger.put(("x", "a", (1, 0, 0, 0, -1)))
    ledger.put(("x", "a", (2, 0, 0, 0, -1)))
    assert ledger.version == lost
    replica.step()
    assert not replica.ready
    assert forks[0].kept_seq == -1
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_ledger_that_went_back_is_not_served(ledger: FakeLedger, clock: Clock) -> None:
    """A lower version than was read is refused until the ledger says how it goes on."""
    replica, _, _ = forked(ledger, clock)
    replica.step()
    assert not replica.ready
    assert "was read before" in replica.not_ready_reason
    ledger.hand_shake()
    catch_up(replica, ledger)


def test_a_ledger_that_comes_back_is_served_again(ledger: FakeLedger, clock: Clock) -> None:
    """A stale answer of a dying primary costs readiness only as long as it lasts."""
    replica = served(ledger, clock)
    good = ledger.now.copy()
    ledger.now.seq -= 1
    replica.step()
    assert replica.not_ready_reason
    ledger.now = good
    replica.step()
    assert replica.ready
    assert replica.counts().resyncs == 1


@pytest.mark.parametrize("ledger_id", ["", "another"])
def test_another_ledger_is_never_served(ledger: FakeLedger, clock: Clock, ledger_id: str) -> None:
    """An emptied Redis, or one with another ledger, however far it gets (FAILURES 6)."""
    replica = served(ledger, clock)
    wiped = FakeLedger(ledger_id)
    ledger.ledger_id, ledger.now = ledger_id, wiped.now
    for _ in range(3):
        replica.step()
        assert not replica.ready
    for _ in range(50):
        ledger.put(("x", "a", (9, 0, 0, 0, -1)))
    for _ in range(5):
        replica.step()
        assert not replica.ready


def test_a_ledger_that_was_never_made_is_not_served(clock: Clock) -> None:
    """No ledger is not an empty ledger."""
    ledger = FakeLedger("")
    replica = replica_of(ledger, clock)
    replica.step()
    assert not replica.ready
    ledger.ledger_id = "made"
    catch_up(replica, ledger)


def test_an_unreadable_record_is_never_skipped(ledger: FakeLedger, clock: Clock) -> None:
    """The first makes it read everything again; the next one within the window makes it not ready first."""
    replica = served(ledger, clock)
    ledger.append(b"\xc1")
    replica.step()
    assert replica.version < ledger.version
    catch_up(replica, ledger)
    assert replica.counts().resyncs == 2
    bad = ledger.append(b"\xc1")
    assert replica.step() > 0
    assert not replica.ready
    assert str(bad) in replica.not_ready_reason
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")


def test_a_record_of_an_unknown_kind_is_unreadable(ledger: FakeLedger, clock: Clock) -> None:
    """What a newer ledger tells and we do not know may be a policy."""
    replica = served(ledger, clock)
    ledger.emit(77, [], [])
    replica.step()
    assert replica.version < ledger.version


def test_memory_that_differs_from_the_ledger_is_found(ledger: FakeLedger, clock: Clock) -> None:
    """Everything is read back in turn; a difference is mended, a repeated one is not served."""
    replica = served(ledger, clock, digest_skus_per_s=100)
    state = replica._state
    state.positions._values[:] += 1
    walk_until_doubt(replica, clock)
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x")
    wrong = SkuState("x", [PositionState("a", 77, 0, 0, 0, -1)], [], [])

    def skus(names: list[str]) -> Page:
        return Page(ledger._head(), -1, [wrong])

    ledger.skus = skus  # type: ignore[method-assign]  # what a broken ledger would answer
    replica._state.positions._values[:] += 1
    walk_until_doubt(replica, clock)
    for _ in range(5):
        replica.step()
        assert not replica.ready
    assert "differ about 'x'" in replica.not_ready_reason


def test_a_fence_that_differs_from_the_ledgers_is_found(ledger: FakeLedger, clock: Clock) -> None:
    """What is left of fences is read back with the positions of a sku."""
    ledger.set_fence("web", "x", 4)
    replica = served(ledger, clock, digest_skus_per_s=100)
    number = replica._state.numbers["x"]
    fence = replica._state.fences.by_sku[number][0]
    replica._state.fences.by_sku[number] = (msgspec.structs.replace(fence, left=3),)
    walk_until_doubt(replica, clock)
    catch_up(replica, ledger)
    assert replica.policies().fences == (fence,)


def test_a_read_back_page_is_compared_at_its_own_version(ledger: FakeLedger, clock: Clock) -> None:
    """Records that come while skus are read back are no difference."""
    replica = served(ledger, clock, digest_skus_per_s=100)
    clock.now += 2

    def write_between(call: str) -> None:
        if call in {"page", "skus", "policies", "read"}:
            ledger.reserve("x", "a", 1)

    ledger.before_call = write_between
    for _ in range(9):
        replica.step()
        clock.now += 2
        assert replica.ready
    assert replica.digest.walks >= 2
    assert (replica.counts().resyncs, replica.digest.disagreements) == (1, 0)


@pytest.mark.parametrize("handshake", [True, False])
def test_a_failover_during_bootstrap_is_noticed(ledger: FakeLedger, clock: Clock, handshake: bool) -> None:
    """Pages of a history that is gone never meet the log of the one that stayed."""
    kept = ledger.now.copy()
    ledger.put(("x", "a", (50, 0, 0, 0, -1)))
    lost, calls = ledger.now, list[str]()
    ledger.now = kept

    def fail_over(call: str) -> None:
        calls.append(call)
        if call == "page" and "read" not in calls:
            ledger.now = lost  # the page is later than the head
        if call == "read" and calls.count("read") == 1:
            ledger.now = kept
            if handshake:
                ledger.hand_shake()
            for _ in range(3):
                ledger.put(("y", "a", (1, 0, 0, 0, -1)))

    ledger.before_call = fail_over
    replica = replica_of(ledger, clock, verify_skus=0)
    replica.step()
    assert replica.not_ready_reason
    catch_up(replica, ledger)
    assert answer(replica, "web", "x") == ledger.answer("web", "x") == (7, AvailabilityState.IN_STOCK)


def test_a_bootstrap_tells_its_progress(ledger: FakeLedger, clock: Clock) -> None:
    """Page by page, then the phases up to done."""
    told: list[Progress] = []
    options = ReplicaSettings(page_skus=1)
    replica = Replica(ledger, options, clock, Random(1), on_progress=told.append)
    replica.step()
    assert [progress.phase for progress in told] == ["skus"] * 3 + ["log", "answers", "verify", "done"]
    assert told[-1].skus == 2


def test_wait_for_tells_reached_from_not_yet(ledger: FakeLedger, clock: Clock) -> None:
    """True at or after the version, False at the deadline."""
    replica = served(ledger, clock)
    assert replica.wait_for(ledger.version, clock.now)
    ahead = ledger.reserve("x", "a", 1)
    assert not replica.wait_for(ahead, clock.now)
    replica.step()
    assert replica.wait_for(ahead, clock.now)


def test_wait_for_a_lost_version_says_so(ledger: FakeLedger, clock: Clock) -> None:
    """Also in a server that never saw the fork, or that starts after it."""
    replica, _, lost = forked(ledger, clock)
    ledger.hand_shake()
    catch_up(replica, ledger)
    for one in (replica, served(ledger, clock)):
        with pytest.raises(ServiceError) as caught:
            one.wait_for(lost, clock.now)
        assert caught.value.reason is Reason.VERSION_LOST
        assert one.wait_for(Version(lost.epoch, lost.seq - 2), clock.now)


def test_the_thread_follows_and_stops(ledger: FakeLedger) -> None:
    """Started, it becomes ready, brings writes to waiting readers and watchers, and stops when told."""
    replica = Replica(ledger, ReplicaSettings(block_ms=1), time.monotonic, Random(1))
    replica.start()
    assert replica.wait_for(ledger.version, time.monotonic() + 10)
    watcher = replica.watch("web", ["x"])
    assert watcher.next(10) is not None
    written: list[Version] = []
    writer = threading.Thread(target=lambda: written.append(ledger.reserve("x", "a", 1)))
    writer.start()
    batch = watcher.next(10)
    writer.join()
    assert batch is not None
    assert batch.changes == [("x", 6, AvailabilityState.IN_STOCK)]
    assert replica.wait_for(written[0], time.monotonic() + 10)
    replica.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "replica"]


def test_the_next_page_is_asked_for_while_one_is_loaded(ledger: FakeLedger, clock: Clock) -> None:
    """Whoever loads the first of two pages finds the second already asked for, and never more than one ahead."""
    asked = threading.Semaphore(0)
    ledger.before_call = lambda what: asked.release() if what == "page" else None
    loaded: list[int] = []

    def progress(at: Progress) -> None:
        if at.phase == "skus":
            for _ in range((2, 1, 0)[len(loaded)]):  # the first page and the next, the next, no more
                assert asked.acquire(timeout=5)
            loaded.append(at.skus)

    replica = Replica(
        ledger, ReplicaSettings(digest_skus_per_s=0, page_skus=1), clock, Random(1), on_progress=progress
    )
    replica.step()
    assert loaded == [1, 2, 2]
    assert not asked.acquire(blocking=False)


def test_a_page_that_does_not_come_ends_the_loading(ledger: FakeLedger, clock: Clock) -> None:
    """The third page fails while the second is loaded: nothing is served, and the next try begins anew."""
    pages = 0

    def before(what: str) -> None:
        nonlocal pages
        pages += what == "page"
        ledger.unreachable = what == "page" and pages == 3

    ledger.before_call = before
    replica = replica_of(ledger, clock, page_skus=1)
    replica.step()
    assert not replica.ready
    catch_up(replica, ledger)
    assert pages == 6
    assert answer(replica, "web", "y")[0] == 1
