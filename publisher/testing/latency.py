"""How long a shop takes, as measured on a real one, and what several connections get out of it.

A machine has so many ``cores``; calls at the same time share them. With the defaults a batch of 100 takes 3.0 s alone,
a second connection doubles the rate, and more add nothing: the shop stores about 67 products a second and no more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from publisher.testing.wire import Step, Work

SLEEP_LEAST_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of one core for each kind of work, times ``factor``. ``Latency(factor=0)`` answers at once."""

    request_s: float = 0.060
    write_item_s: float = 0.0295
    read_item_s: float = 0.0022
    cores: float = 2.0
    factor: float = 1.0

    def seconds(self, step: Step) -> float:
        """Return what a step takes on a core of its own."""
        each = {
            Work.REQUEST: self.request_s,
            Work.WRITE_ITEM: self.write_item_s,
            Work.READ_ITEM: self.read_item_s,
            Work.WAIT: 1.0,
        }[step.work]
        return each * step.count * self.factor


class Machine:
    """Lets time pass for the steps of calls that run at the same time. Belongs to one event loop."""

    def __init__(self, latency: Latency) -> None:
        self.latency = latency
        self._busy = 0

    async def spend(self, step: Step, debt_s: float) -> float:
        """Let a step's time pass and return what is left over of it (short times are gathered).

        ``debt_s`` is what the call's earlier steps left over; it may be negative when a sleep took too long.
        """
        seconds = self.latency.seconds(step)
        if step.work is not Work.WAIT:
            seconds *= max(1.0, self._busy / self.latency.cores)
        owed = debt_s + seconds
        if owed < SLEEP_LEAST_S:
            return owed
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.sleep(owed)
        return owed - (loop.time() - before)

    def enter(self) -> None:
        """Note that a call has begun."""
        self._busy += 1

    def leave(self) -> None:
        """Note that a call is over."""
        self._busy -= 1
