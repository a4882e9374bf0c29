"""The database as asynchronous code sees it: one call at a time per shop, on a thread, in the order they were made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import structlog

from availability.history.database import DatabaseUnreachable

_LOG = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

PAUSE_S = 0.2
PAUSE_MAX_S = 5.0


class Records:
    """One thread for one shop's rows."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"records {channel}")

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one call. Raises what it raises, HistoryError above all."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def insist(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one call, again and again while the database is away: what has happened must be noted."""
        pause_s = PAUSE_S
        while True:
            try:
                return await self.call(function, *args, **kwargs)
            except DatabaseUnreachable as error:
                _LOG.warning("the database is away; its notes wait", channel=self._channel, reason=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def close(self) -> None:
        """End the thread after what was begun."""
        self._thread.shutdown(wait=True)
