"""An answer that the ledger still owes. A transport may wait for it, or be told when it is there.

Waiting costs a thread per call, and waking it costs more than the call itself; being told costs neither. Handlers of
writes return this instead of a message. Who tells: the commit queue's thread, so what is told must only hand over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from availability.ledger.commit_queue import Pending
from availability.service.ledger_calls import ledger_failures

T = TypeVar("T")


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
