"""Upkeep that every server does: ends due holds, moves the ledger's clock, trims the log.

Any server's sweep serves all; more of them do no harm. One thread, which only submits calls to the commit queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from availability.ledger.errors import LedgerError
from availability.ledger.ledger import Ledger

_LOG = structlog.get_logger(__name__)

CALL_TIMEOUT_S = 2.0
TRIM_INTERVAL_S = 5.0


class Upkeep:
    """Sweeps at an interval until stopped. ``on_expired`` gets the number of holds ended by each sweep."""

    def __init__(
        self, ledger: Ledger, *, interval_ms: int, due_per_sweep: int, on_expired: Callable[[int], None]
    ) -> None:
        self._ledger = ledger
        self._interval_s = interval_ms / 1000
        self._due_per_sweep = due_per_sweep
        self._on_expired = on_expired
        self._stopped = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def sweep_all(self) -> None:
        """Sweep until nothing is due: before a server serves. Raises LedgerError."""
        while self._sweep() >= self._due_per_sweep:
            pass

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the call under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CALL_TIMEOUT_S + 1)

    def _sweep(self) -> int:
        reply = self._ledger.sweep(time.monotonic() + CALL_TIMEOUT_S)
        if reply.expired:
            self._on_expired(reply.expired)
        return reply.expired

    def _run(self) -> None:
        trim_at = time.monotonic()
        while not self._stopped.is_set():
            try:
                expired = self._sweep()
                if time.monotonic() >= trim_at:
                    trim_at = time.monotonic() + TRIM_INTERVAL_S
                    self._ledger.trim(time.monotonic() + CALL_TIMEOUT_S)
                if self._failing:
                    self._failing = False
                    _LOG.info("sweeps work again")
            except LedgerError as error:
                expired = 0
                if not self._failing:
                    self._failing = True
                    _LOG.warning("sweep failed, holds wait", error=str(error))
            if expired < self._due_per_sweep:
                self._stopped.wait(self._interval_s)
