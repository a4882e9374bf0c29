"""Clocks of the double: real time, real time made faster, or time that stands until it is moved."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]
"""Seconds since 1970, UTC."""


class MovableClock:
    """Time that a test moves."""

    def __init__(self, start_s: float = 1_795_248_000.0) -> None:
        self._now_s = start_s

    def __call__(self) -> float:
        """Return the time."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises ValueError for a negative time."""
        if seconds < 0:
            raise ValueError("a clock only goes forward")
        self._now_s += seconds


class FastClock:
    """Real time, ``factor`` times as fast from the moment of its creation."""

    def __init__(self, factor: float, *, monotonic: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self._factor = factor
        self._monotonic = monotonic
        self._began = monotonic()
        self._start_s = wall()

    def __call__(self) -> float:
        """Return the time."""
        return self._start_s + (self._monotonic() - self._began) * self._factor


def stamp(seconds: float) -> str:
    """Return a time as the shop writes it: no zone, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_stamp(text: str) -> float:
    """Return the seconds of an ISO time; without a zone it is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
