"""The threads behind the synchronous gRPC server: few run, many may wait.

Two running threads cost the least CPU per call; more only fight over the interpreter. But a write waits for
the ledger and a strong read for the replica, and two waiters would stop everybody. So a handler that is about
to wait enters `LendingPool.blocking()`: its slot is lent to another thread until it returns. A task that
waits without saying so is noticed after `stall_ms` and its slot is lent too.

It knows nothing of gRPC, and may not decide who is refused: that is `admission`. gRPC asks of a pool
`submit`, and of what that returns `add_done_callback`. Streams do not belong here; `grpc_pipeline` gives them
pools of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

_LOGGER = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

STALL_MS_DEFAULT = 50
"""A task that runs this long while others queue is taken for a waiter: a read takes well under 1 ms."""


class PoolBusy(Exception):
    """As many calls wait as this kind of call may let wait; nothing was begun."""


class LendingPool(Executor):
    """Run tasks on `running` threads, plus one for each of them that waits, up to `threads_max` in all."""

    def __init__(
        self,
        *,
        running: int,
        threads_max: int,
        stall_ms: int = STALL_MS_DEFAULT,
        name: str = "call",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not 1 <= running <= threads_max:
            raise ValueError(
                f"running ({running}) must be at least 1 and at most threads_max ({threads_max})"
            )
        self.running = running
        self.threads_max = threads_max
        self._stall_s = stall_ms / 1000
        self._name = name
        self._clock = clock
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._local = threading.local()
        self._lock = threading.Lock()  # guards everything below
        self._active = 0  # threads that take tasks or run them; not those that wait or are parked
        self._blocked = 0
        self._parked: list[_Worker] = []  # the last one parked is woken first: its stack is still warm
        self._workers: list[_Worker] = []
        self._closed = False
        self._closing = threading.Event()
        with self._lock:
            for _ in range(running):
                self._spawn()
        self._watcher = threading.Thread(target=self._watch_stalls, name=f"{name}-stalls", daemon=True)
        self._watcher.start()

    # --- For gRPC -------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a task; the future knows result, exception, done, cancel and add_done_callback.

        `concurrent.futures.wait` and `as_completed` are not for it: they need a lock per task.
        """
        if self._closed:
            raise RuntimeError("the pool is shut down")
        task: _Task = _Task(fn, args, kwargs, self._clock())
        self._queue.put(task)
        # Read without the lock: whoever starts to wait looks at the queue after it has given up its slot,
        # so one of the two sees the other.
        if self._active < self.running:
            self._lend()
        return task

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, finish (or cancel) those queued, end the threads. Stop the server first."""
        if cancel_futures:
            self._closed = True
            self._cancel_queued()  # not under the lock: it runs callbacks of others
        with self._lock:
            if not self._closing.is_set():
                self._closed = True
                for worker in self._parked:
                    worker.wake.release()
                self._active += len(self._parked)
                self._parked.clear()
                self._queue.put(None)  # each thread that finds it hands it on and ends
                self._closing.set()
        while wait:
            with self._lock:
                alive = [w.thread for w in self._workers if w.thread is not threading.current_thread()]
            if not alive:
                return
            alive[0].join()

    # --- For handlers ---------------------------------------------------------------------------------------

    def blocking(self, blocked_max: int | None = None) -> Blocking:
        """Lend this thread's slot while the body waits; PoolBusy where `blocked_max` calls wait already.

        Without a limit it always lets wait; when every thread does, the slot is kept, and the pool is as slow
        as what it waits for. On a thread of another pool it does nothing.
        """
        return Blocking(self, getattr(self._local, "worker", None), blocked_max)

    def queue_wait_s(self) -> float:
        """Return how long the task of this thread was queued, in seconds; 0.0 on a thread of another pool."""
        worker: _Worker | None = getattr(self._local, "worker", None)
        return worker.queue_wait_s if worker is not None else 0.0

    # --- For gauges -----------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Tasks that no thread has taken yet."""
        return self._queue.qsize()

    @property
    def blocked(self) -> int:
        """Tasks inside `blocking()`."""
        return self._blocked

    @property
    def threads(self) -> int:
        """Threads that exist, parked ones included."""
        return len(self._workers)

    # --- Inside ---------------------------------------------------------------------------------------------

    def _enter_blocking(self, worker: _Worker, blocked_max: int | None) -> None:
        with self._lock:
            if blocked_max is not None and self._blocked >= blocked_max:
                raise PoolBusy(f"{self._blocked} calls wait already, at most {blocked_max} of this kind may")
            self._blocked += 1
            if not worker.lent:
                worker.lent = True
                self._active -= 1
            if self._active < self.running and not self._queue.empty():
                self._add_active()

    def _leave_blocking(self, worker: _Worker) -> None:
        # It goes on at once, beyond `running` for a moment: what has waited is nearly done and holds most.
        # The next thread that ends its task parks instead.
        with self._lock:
            self._blocked -= 1
            self._take_back(worker)

    def _take_back(self, worker: _Worker) -> None:
        if worker.lent:
            worker.lent = False
            self._active += 1

    def _lend(self) -> None:
        with self._lock:
            if self._active < self.running and not self._closed:
                self._add_active()

    def _add_active(self) -> None:
        if self._parked:
            self._active += 1
            self._parked.pop().wake.release()
        elif len(self._workers) < self.threads_max:
            self._spawn()

    def _spawn(self) -> None:
        worker = _Worker()
        worker.thread = threading.Thread(
            target=self._work, args=(worker,), name=f"{self._name}-{len(self._workers)}", daemon=True
        )
        self._workers.append(worker)
        self._active += 1
        worker.thread.start()

    def _work(self, worker: _Worker) -> None:
        self._local.worker = worker
        clock, get = self._clock, self._queue.get
        while True:
            task = get()
            if task is None:
                with self._lock:
                    self._workers.remove(worker)
                self._queue.put(None)
                return
            now = worker.since = clock()
            worker.queue_wait_s = now - task.queued_at
            task.run()
            del task  # a call's objects must not live until the next call
            worker.since = 0.0
            if worker.lent or self._active > self.running:
                self._rest(worker)

    def _rest(self, worker: _Worker) -> None:
        with self._lock:
            self._take_back(worker)
            if self._active <= self.running or self._closed:
                return
            self._active -= 1
            self._parked.append(worker)
        worker.wake.acquire()

    def _watch_stalls(self) -> None:
        while not self._closing.wait(self._stall_s):
            if not self._queue.empty():
                self.lend_stalled(self._clock())

    def lend_stalled(self, now: float) -> int:
        """Lend the slots of tasks that run since before `now - stall`; return how many. A thread calls it."""
        with self._lock:
            if self._closed:
                return 0
            stalled = [
                worker
                for worker in self._workers
                if not worker.lent and worker.since and now - worker.since >= self._stall_s
            ]
            for worker in stalled:
                worker.lent = True
                self._active -= 1
                self._add_active()
        return len(stalled)

    def _cancel_queued(self) -> None:
        with suppress(Empty):
            while True:
                task = self._queue.get_nowait()
                if task is not None:
                    task.cancel()


class Blocking:
    """The body of a wait: its thread's slot is lent meanwhile."""

    __slots__ = ("_blocked_max", "_pool", "_worker")

    def __init__(self, pool: LendingPool, worker: _Worker | None, blocked_max: int | None) -> None:
        self._pool = pool
        self._worker = worker
        self._blocked_max = blocked_max

    def __enter__(self) -> None:
        if self._worker is not None:
            self._pool._enter_blocking(self._worker, self._blocked_max)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._pool._leave_blocking(self._worker)


class _Worker:
    __slots__ = ("lent", "queue_wait_s", "since", "thread", "wake")

    thread: threading.Thread

    def __init__(self) -> None:
        self.since = 0.0  # when the task began, 0 while there is none
        self.queue_wait_s = 0.0
        self.lent = False  # its slot is somebody else's: it waits, or was found to
        self.wake = threading.Lock()
        self.wake.acquire()


class _Task(Future[Any]):  # Any: a queue of tasks of every type
    """A future without a condition variable: appends and pops of a list are atomic, and that is enough."""

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], queued_at: float
    ) -> None:
        # Not super().__init__(): the lock and the condition that it makes are what this class saves.
        self.queued_at = queued_at
        self._call = (fn, args, kwargs)
        self._turn = [True]  # whoever pops it runs the task or cancels it
        self._callbacks: list[Callable[[Future[Any]], object]] = []
        self._done = False
        self._was_cancelled = False
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run it once, unless it was cancelled."""
        try:
            self._turn.pop()
        except IndexError:
            return
        fn, args, kwargs = self._call
        try:
            self._value = fn(*args, **kwargs)
        except BaseException as error:  # a thread of a pool ends for nobody's SystemExit
            self._error = error
        del fn, args, kwargs, self._call
        self._finish()

    def cancel(self) -> bool:
        """Cancel it, where no thread has begun it."""
        try:
            self._turn.pop()
        except IndexError:
            return self._was_cancelled
        self._was_cancelled = True
        self._error = CancelledError()
        self._finish()
        return True

    def cancelled(self) -> bool:
        """Say whether it was cancelled before a thread took it."""
        return self._was_cancelled

    def running(self) -> bool:
        """Say whether a thread is at it."""
        return not self._turn and not self._done

    def done(self) -> bool:
        """Say whether it ended, one way or another."""
        return self._done

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn` with this future once it is done, on whichever thread that is."""
        self._callbacks.append(fn)
        if self._done:
            self._call_back()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end and return the error, or None."""
        if not self._done:
            ended = threading.Event()
            self.add_done_callback(lambda _: ended.set())
            if not ended.wait(timeout):
                raise TimeoutError
        if self._was_cancelled:
            raise CancelledError
        return self._error

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the value, or raise the error."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._value

    def _finish(self) -> None:
        self._done = True
        self._call_back()

    def _call_back(self) -> None:
        # Two threads may be here; each callback is popped by one of them.
        while self._callbacks:
            try:
                fn = self._callbacks.pop(0)
            except IndexError:
                return
            try:
                fn(self)
            except Exception:
                _LOGGER.exception("a callback of a finished task failed")
