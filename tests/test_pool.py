"""The lending pool: few threads run, waiting ones lend their slot, nothing is lost or run twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from availability.service.pool import LendingPool, PoolBusy

WAIT_S = 10.0  # longest wait for another thread; a test that needs it has failed


def hold(begun: threading.Event, gate: threading.Event) -> bool:
    """Tell that it runs, then keep its thread until the gate opens."""
    begun.set()
    return gate.wait(WAIT_S)


@pytest.fixture
def pool() -> Iterator[LendingPool]:
    made = LendingPool(running=2, threads_max=6, stall_ms=60_000)
    yield made
    made.shutdown()


def test_a_future_tells_value_error_and_end(pool: LendingPool) -> None:
    """What a caller of an executor may ask of a future is answered."""
    future = pool.submit(pow, 2, 5)
    assert future.result(WAIT_S) == 32
    assert future.done()
    assert not future.cancelled()
    assert not future.running()
    failed = pool.submit(lambda: 1 // 0)
    assert isinstance(failed.exception(WAIT_S), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_callbacks_are_called_once_before_or_after_the_end(pool: LendingPool) -> None:
    """gRPC counts its calls by done callbacks: each comes exactly once, a failing one harms no other."""
    gate, called = threading.Event(), []
    future = pool.submit(gate.wait, WAIT_S)
    future.add_done_callback(lambda _: 1 // 0)
    future.add_done_callback(lambda _: called.append("before"))
    gate.set()
    future.result(WAIT_S)
    pool.submit(int).result(WAIT_S)
    future.add_done_callback(lambda _: called.append("after"))
    assert sorted(called) == ["after", "before"]


def test_a_task_is_cancelled_only_before_it_begins() -> None:
    """A queued task can be cancelled and is then not run; a running one cannot."""
    pool = LendingPool(running=1, threads_max=1, stall_ms=60_000)
    ran: list[int] = []
    gate, begun = threading.Event(), threading.Event()
    running = pool.submit(hold, begun, gate)
    assert begun.wait(WAIT_S)
    queued = pool.submit(ran.append, 1)
    assert queued.cancel()
    assert queued.cancelled()
    assert not running.cancel()
    gate.set()
    running.result(WAIT_S)
    pool.shutdown()
    assert ran == []
    with pytest.raises(CancelledError):
        queued.result()


def test_no_more_run_than_allowed(pool: LendingPool) -> None:
    """Tasks that do not wait never run on more threads than `running`."""
    lock, now_running, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal now_running, most
        with lock:
            now_running += 1
            most = max(most, now_running)
        sum(range(2_000))
        with lock:
            now_running -= 1

    for future in [pool.submit(work) for _ in range(300)]:
        future.result(WAIT_S)
    assert most <= 2
    assert pool.threads == 2


def test_a_waiting_task_lends_its_slot(pool: LendingPool) -> None:
    """While both running threads wait, others do the work; a slot comes back when the wait ends."""
    gate, waiting = threading.Event(), threading.Semaphore(0)

    def wait() -> str:
        with pool.blocking():
            waiting.release()
            gate.wait(WAIT_S)
        return "done"

    waiters = [pool.submit(wait) for _ in range(4)]
    for _ in waiters:
        assert waiting.acquire(timeout=WAIT_S)
    assert pool.blocked == 4
    assert pool.submit(pow, 3, 3).result(WAIT_S) == 27
    gate.set()
    assert [waiter.result(WAIT_S) for waiter in waiters] == ["done"] * 4
    assert pool.blocked == 0
    assert pool.threads <= 6


def test_after_a_wave_of_waits_only_the_running_ones_stay(pool: LendingPool) -> None:
    """Threads that helped out park again: the next tasks find no more than `running` of them."""
    barrier = threading.Barrier(4)

    def wait() -> None:
        with pool.blocking():
            barrier.wait(WAIT_S)

    for future in [pool.submit(wait) for _ in range(4)]:
        future.result(WAIT_S)
    for _ in range(50):  # each ended task is a chance to park
        pool.submit(int).result(WAIT_S)
    assert_two_run_and_the_third_queues(pool)


def assert_two_run_and_the_third_queues(pool: LendingPool) -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        begun.release()
        gate.wait(WAIT_S)

    futures = [pool.submit(hold) for _ in range(3)]
    for _ in range(2):
        assert begun.acquire(timeout=WAIT_S)
    assert not begun.acquire(timeout=0.05)
    gate.set()
    for future in futures:
        future.result(WAIT_S)


def test_with_every_thread_waiting_tasks_queue_and_then_run(pool: LendingPool) -> None:
    """threads_max is a limit: the task after it waits, and is not lost."""
    gate, waiting = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        with pool.blocking():
            waiting.release()
            gate.wait(WAIT_S)

    waiters = [pool.submit(wait) for _ in range(6)]
    for _ in waiters:
        assert waiting.acquire(timeout=WAIT_S)
    late = pool.submit(int)
    assert pool.threads == 6
    assert pool.queued == 1
    assert not late.done()
    gate.set()
    assert late.result(WAIT_S) == 0


def test_a_kind_of_call_may_be_told_not_to_wait(pool: LendingPool) -> None:
    """With `blocked_max` calls waiting, the next of that kind is refused; others may still wait."""
    gate, waiting = threading.Event(), threading.Event()

    def wait() -> None:
        with pool.blocking():
            waiting.set()
            gate.wait(WAIT_S)

    def try_to_wait(blocked_max: int | None) -> str:
        with pool.blocking(blocked_max):
            return "waited"

    first = pool.submit(wait)
    assert waiting.wait(WAIT_S)
    with pytest.raises(PoolBusy):
        pool.submit(try_to_wait, 1).result(WAIT_S)
    assert pool.submit(try_to_wait, 2).result(WAIT_S) == "waited"
    assert pool.submit(try_to_wait, None).result(WAIT_S) == "waited"
    gate.set()
    first.result(WAIT_S)
    assert pool.blocked == 0


def test_a_silent_waiter_is_found_by_its_time() -> None:
    """A task that waits without saying so lends its slot after the stall time; a fresh one does not."""
    now = [100.0]
    pool = LendingPool(running=1, threads_max=2, stall_ms=60_000, clock=lambda: now[0])
    gate, begun = threading.Event(), threading.Event()
    silent = pool.submit(hold, begun, gate)
    assert begun.wait(WAIT_S)
    queued = pool.submit(int)
    assert pool.lend_stalled(100.0 + 59.9) == 0
    assert not queued.done()
    assert pool.lend_stalled(100.0 + 60.0) == 1
    assert queued.result(WAIT_S) == 0
    assert pool.lend_stalled(100.0 + 61.0) == 0  # lent once
    gate.set()
    silent.result(WAIT_S)
    pool.shutdown()


def test_silent_waiters_are_found_without_being_asked() -> None:
    """The pool looks for them itself while tasks queue."""
    pool = LendingPool(running=1, threads_max=2, stall_ms=5)
    gate = threading.Event()
    silent = pool.submit(gate.wait, WAIT_S)
    assert pool.submit(int).result(WAIT_S) == 0
    assert not silent.done()
    gate.set()
    pool.shutdown()


def test_the_time_in_the_queue_is_told() -> None:
    """A task learns how long it was queued, from the pool's own clock."""
    now = [100.0]
    pool = LendingPool(running=1, threads_max=1, stall_ms=60_000, clock=lambda: now[0])
    gate, begun = threading.Event(), threading.Event()
    first = pool.submit(hold, begun, gate)
    assert begun.wait(WAIT_S)
    second = pool.submit(pool.queue_wait_s)
    now[0] = 100.25
    gate.set()
    first.result(WAIT_S)
    assert second.result(WAIT_S) == pytest.approx(0.25)
    assert pool.queue_wait_s() == 0.0  # not a thread of the pool
    pool.shutdown()


def test_blocking_elsewhere_does_nothing(pool: LendingPool) -> None:
    """A stream's thread is no thread of this pool: its waits lend nothing."""
    with pool.blocking(0):
        assert pool.blocked == 0


def test_nothing_is_lost_under_mixed_load() -> None:
    """2,000 tasks, every third waiting for another thread, all end; nobody is left waiting."""
    pool = LendingPool(running=2, threads_max=16)
    turn = threading.Semaphore(0)

    def task(number: int) -> int:
        if number % 3 == 0:
            with pool.blocking():
                assert turn.acquire(timeout=WAIT_S)
        else:
            turn.release()
        return number

    futures = [pool.submit(task, number) for number in range(2_000)]
    assert sum(future.result(WAIT_S) for future in futures) == sum(range(2_000))
    assert pool.blocked == 0
    assert pool.queued == 0
    pool.shutdown()


def test_shutdown_finishes_what_is_queued_and_takes_no_more() -> None:
    """After shutdown every accepted task has ended and every thread is gone, parked ones too."""
    pool = LendingPool(running=2, threads_max=4)
    barrier = threading.Barrier(3)

    def wait() -> None:
        with pool.blocking():
            barrier.wait(WAIT_S)

    futures = [pool.submit(wait) for _ in range(3)] + [pool.submit(int) for _ in range(50)]
    pool.shutdown(wait=True)
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError):
        pool.submit(int)


@pytest.mark.parametrize(("running", "threads_max"), [(0, 1), (3, 2)])
def test_impossible_sizes_are_refused(running: int, threads_max: int) -> None:
    """At least one runs, and the total covers the running ones."""
    with pytest.raises(ValueError, match="running"):
        LendingPool(running=running, threads_max=threads_max)
