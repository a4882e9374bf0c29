"""How often a token may call: a token bucket each. Pure: the clock is handed in.

Commits, releases, extensions and everything that sources tell are never held back here: which classes are, is
`LIMITED`. Who asks: `grpc_pipeline`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from availability.service.admission import CallClass, Overload

LIMITED = frozenset({CallClass.READ, CallClass.RESERVE, CallClass.ADMIN})
RETRY_AFTER_MS_MAX = 60_000


class Bucket:
    """``calls_per_s`` calls a second on average, ``burst`` at once. Thread-safe."""

    __slots__ = ("_at", "_burst", "_clock", "_left", "_lock", "calls_per_s")

    def __init__(self, calls_per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self.calls_per_s = calls_per_s
        self._burst = max(1.0, burst)
        self._left = self._burst
        self._clock = clock
        self._at = clock()
        self._lock = threading.Lock()

    def take(self) -> Overload | None:
        """Take one call out; where there is none left, say when there will be."""
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._at) * self.calls_per_s)
            self._at = now
            if self._left >= 1.0:
                self._left -= 1.0
                return None
            wait_ms = (1.0 - self._left) / self.calls_per_s * 1000
        # Steps of two: few different answers, which are kept encoded.
        after_ms = 1
        while after_ms < wait_ms and after_ms < RETRY_AFTER_MS_MAX:
            after_ms *= 2
        return Overload(cause="this token calls more often than it may", retry_after_ms=after_ms)
