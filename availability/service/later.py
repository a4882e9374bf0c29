"""An answer that the ledger still owes. A transport may wait for it, or be told when it is there.

Waiting costs a thread per call, and waking it costs more than the call itself; being told costs neither. Handlers of
writes return this instead of a message. Who tells: the commit queue's thread, so what is told must only hand over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

import structlog

from availability.ledger.commit_queue import Pending
from availability.service.ledger_calls import ledger_failures

T = TypeVar("T")

ANSWERS_MAX = 32
"""Answers that one task of the pool gives before another gets the thread."""
_LOG = structlog.get_logger(__name__)


class Later(Generic[T]):
    """One owed answer: a ledger call under way, and how its reply becomes the response message."""

    __slots__ = ("_finish", "_pending")

    def __init__(self, pending: Pending, finish: Callable[[bytes], T]) -> None:
        self._pending = pending
        self._finish = finish

    def on_done(self, told: Callable[[], object]) -> None:
        """Call ``told`` once, when ``result`` would not wait any more; at once where that is so already."""
        self._pending.on_done(told)

    def result(self) -> T:
        """Wait where it is needed, and return the response. Raises ServiceError."""
        with ledger_failures():
            reply = self._pending.wait()
        return self._finish(reply)


class Answers:
    """What is answered together: a group's answers come at once, and one task of a pool gives them all.

    A task for each would wake a thread for each, which costs more than an answer.
    """

    def __init__(self, pool: Executor) -> None:
        self._submit = pool.submit
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = (
            deque()
        )  # Any: each with its own type of answer
        self._under_way = False

    def put(self, answer: Callable[[T], None], owed: T) -> None:
        """Have ``answer(owed)`` called on a thread of the pool, soon. Any thread may call it."""
        self._waiting.append((answer, owed))
        # Without a lock: the task says that it ends before it looks for the last time, so one of the two sees the
        # other, and at worst there are two tasks.
        if not self._under_way:
            self._under_way = True
            self._submit(self._give)

    def _give(self) -> None:
        for _ in range(ANSWERS_MAX):
            try:
                answer, owed = self._waiting.popleft()
            except IndexError:
                self._under_way = False
                if self._waiting:
                    break
                return
            try:
                answer(owed)
            except Exception:
                _LOG.exception("an answer could not be given")
        self._under_way = True
        self._submit(self._give)
