"""How hard a shop is worked: concurrency and items by AIMD, a ceiling, a circuit breaker, a budget of retries. Pure.

Time and chance are arguments. One ``Pace`` belongs to one shop, so a slow one never delays another. Measured at a real
shop, a call costs as much as two items, an item the same in a batch of 10 as in one of 100, and a second connection
doubles the rate: so a call takes as many items as keep it short, never fewer than where the call itself costs more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from publisher.settings import PaceSettings
from publisher.storefront import FailureKind

SUCCESSES_PER_STEP = 4
"""Full calls on time, times the present concurrency, before one more call may be under way."""
BURST_S = 1.0
"""The ceiling's bucket holds what may be sent in so long."""
ROUNDING = 1e-9


class Breaker(Enum):
    """CLOSED: calls pass. OPEN: none. HALF_OPEN: one, of one item, decides."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What may be sent now: up to ``items``, or nothing for ``wait_s``. ``probe``: a half-open breaker's one call."""

    items: int
    wait_s: float = 0.0
    probe: bool = False


class Pace:
    """See the module. ``chance`` returns numbers from 0 to 1."""

    def __init__(self, settings: PaceSettings, now: float, chance: Callable[[], float]) -> None:
        self._settings = settings
        self._chance = chance
        self._concurrency = float(
            settings.concurrency_max
        )  # it is the operator's word: less only after trouble
        self._items = float(settings.items_start)
        self._tokens = settings.items_per_s_max * BURST_S
        self._filled_at = now
        self._failures = 0
        self._pause_s = settings.open_ms / 1000
        self._open_until = 0.0
        self._retries = float(settings.retries_burst)
        self.breaker = Breaker.CLOSED

    @property
    def concurrency(self) -> int:
        """Return how many calls may be under way."""
        return 1 if self.breaker is not Breaker.CLOSED else int(self._concurrency)

    @property
    def items(self) -> int:
        """Return how many items a call may have."""
        return 1 if self.breaker is not Breaker.CLOSED else max(1, int(self._items))

    @property
    def open_until(self) -> float:
        """Return when an open breaker lets a call pass; 0 where it is closed."""
        return self._open_until if self.breaker is Breaker.OPEN else 0.0

    @property
    def rate_limit(self) -> float:
        """Return the ceiling, items a second."""
        return 0.0 if self.breaker is Breaker.OPEN else self._settings.items_per_s_max

    def permit(self, now: float, under_way: int, waiting: int) -> Permit:
        """Say what may be sent now, with so many calls under way and items waiting. Nothing is taken before ``sent``.

        What waits is shared out among the calls that are free, so that calls stay short while there is little to do.
        ``wait_s`` is 0 where only the end of a call under way helps.
        """
        if self.breaker is Breaker.OPEN:
            if now < self._open_until:
                return Permit(items=0, wait_s=self._open_until - now)
            self.breaker = Breaker.HALF_OPEN
        if under_way >= self.concurrency:
            return Permit(items=0)
        self._fill(now)
        if self._tokens < 1.0 - ROUNDING:
            return Permit(items=0, wait_s=(1.0 - self._tokens) / self._settings.items_per_s_max)
        free = self.concurrency - under_way
        shared = -(-max(1, waiting) // free)
        return Permit(
            items=max(1, min(self.items, int(self._tokens), shared)),
            probe=self.breaker is Breaker.HALF_OPEN,
        )

    def sent(self, now: float, items: int) -> None:
        """Count items against the ceiling."""
        self._fill(now)
        self._tokens -= items

    def succeeded(self, now: float, items: int, elapsed_s: float, *, full: bool) -> None:
        """Learn from an answer in time. ``full``: more waited than went, so more may be tried."""
        settings = self._settings
        self._failures = 0
        self._retries = min(float(settings.retries_burst), self._retries + items * settings.retry_share)
        if self.breaker is Breaker.HALF_OPEN:
            self._close()
            return
        target_s = settings.target_ms / 1000
        if elapsed_s > settings.slow_ms / 1000:
            self._halve()
        elif elapsed_s > target_s:
            floor = min(settings.items_start, self._items)
            at_floor = self._items <= settings.items_start
            self._items = max(floor, self._items * max(0.5, target_s / elapsed_s))
            if at_floor and elapsed_s > 2 * target_s:  # fewer items do not help: fewer calls at once
                self._concurrency = max(1.0, self._concurrency / 2)
        elif full:
            self._items = min(float(settings.items_max), self._items + 1.0)
            step = 1.0 / (SUCCESSES_PER_STEP * self._concurrency)
            self._concurrency = min(float(settings.concurrency_max), self._concurrency + step)

    def failed(self, now: float, kind: FailureKind, retry_after_s: float = 0.0) -> None:
        """Learn from a call that failed as a whole."""
        settings = self._settings
        self._halve()
        if kind is FailureKind.TOO_LARGE:  # the shop is well, the call was too long
            if self.breaker is Breaker.HALF_OPEN:
                self._close()
            return
        self._failures += 1
        if self.breaker is Breaker.CLOSED and self._failures < settings.failures_open and retry_after_s <= 0:
            return
        if self.breaker is Breaker.OPEN:  # others that were under way when it opened
            self._open_until = max(self._open_until, now + retry_after_s)
            return
        pause_s = self._pause_s * (0.5 + self._chance() / 2)
        self._pause_s = min(self._pause_s * 2, settings.open_ms_max / 1000)
        self._open_until = now + max(pause_s, retry_after_s)
        self.breaker = Breaker.OPEN

    def _close(self) -> None:
        self.breaker, self._pause_s, self._open_until = Breaker.CLOSED, self._settings.open_ms / 1000, 0.0

    def retry_in_s(self, attempt: int) -> float:
        """Take one retry of the budget and return its pause: exponential, jittered; the longest without budget.

        ``attempt``: 1 for the first retry of an item.
        """
        settings = self._settings
        longest_s = settings.retry_ms_max / 1000
        step_s = min(longest_s, settings.retry_ms / 1000 * 2.0 ** min(attempt - 1, 30))
        if self._retries < 1.0:
            step_s = longest_s
        else:
            self._retries -= 1.0
        return step_s * (0.5 + self._chance() / 2)

    def _halve(self) -> None:
        self._concurrency = max(1.0, self._concurrency / 2)
        self._items = max(1.0, self._items / 2)

    def _fill(self, now: float) -> None:
        rate = self._settings.items_per_s_max
        self._tokens = min(max(1.0, rate * BURST_S), self._tokens + max(0.0, now - self._filled_at) * rate)
        self._filled_at = now
