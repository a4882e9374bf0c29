"""What a handler knows of its call besides the message: who asks, until when, and how to wait politely.

No transport's types here: a second transport makes the same object from its own. Where it is made for gRPC:
`grpc_unary`, for streams `grpc_pipeline`. How waiting works: `pool`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from availability.service.auth import Principal


def _never() -> bool:
    return False


def _not_told(_: Callable[[], None]) -> bool:
    return True


class CallContext:
    """One call. `deadline` is on time.monotonic()'s clock, in seconds; infinite for a stream without one.

    Not a dataclass: a frozen one costs a microsecond more on every call.
    """

    __slots__ = (
        "_blocking",
        "_is_cancelled",
        "_on_end",
        "correlation_id",
        "deadline",
        "principal",
        "queue_wait_ms",
    )

    def __init__(
        self,
        principal: Principal,
        deadline: float,
        correlation_id: str = "",
        queue_wait_ms: float = 0.0,
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
        is_cancelled: Callable[[], bool] = _never,
        on_end: Callable[[Callable[[], None]], bool] = _not_told,
    ) -> None:
        self.principal = principal
        self.deadline = deadline
        self.correlation_id = correlation_id  # "" where the caller sent none
        self.queue_wait_ms = queue_wait_ms
        self._blocking = blocking
        self._is_cancelled = is_cancelled
        self._on_end = on_end

    def blocking(self) -> AbstractContextManager[None]:
        """Enter this around every wait for the ledger, the replica or anything else but the processor.

        OVERLOADED (as PoolBusy) where too many calls of this kind wait already.
        """
        return self._blocking()

    def cancelled(self) -> bool:
        """Say whether nobody waits for the answer: the caller left, or, for a stream, the server drains."""
        return self._is_cancelled()

    def on_end(self, callback: Callable[[], None]) -> bool:
        """Call `callback` when the call ends for any reason; False where it has ended already."""
        return self._on_end(callback)

    def remaining_s(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())
