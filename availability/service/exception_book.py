"""The ledger's exceptions in this server's memory, brought up to date by asking what changed; woken watchers.

The ledger decides what is true: a refresh costs one read, and every server that refreshes tells the same. One book a
server. Who fills the ledger: ``inspector``; who answers from here: ``exception_handlers``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

from msgspec.structs import replace

from availability.domain.exceptions import ExceptionState as Life
from availability.domain.version import ZERO, Version
from availability.ledger import calls
from availability.ledger.exceptions import point
from availability.ledger.record import ExceptionState


class ReadsExceptions(Protocol):
    """What the book needs of the ledger. Raises LedgerError."""

    def exceptions(self, after: Version, seen_since_ms: int) -> calls.ExceptionsReply: ...


class ExceptionBook:
    """Exceptions by id. Any thread may call."""

    def __init__(self, ledger: ReadsExceptions) -> None:
        self._ledger = ledger
        self._refreshing = threading.Lock()
        self._changed = threading.Condition()
        self._states: dict[str, ExceptionState] = {}
        self._points: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._seen_since = 0
        self.version = ZERO
        """Everything up to here is in the book."""
        self.clock_ms = 0
        self.floor = 0
        """Point up to which resolved ones are forgotten."""
        self.generation = 0
        """Counts the times that the book began anew, after a failover: what was told before may not have happened."""

    def refresh(self) -> None:
        """Ask the ledger what changed. Raises LedgerError."""
        with self._refreshing:
            more = True
            while more:
                reply = self._ledger.exceptions(self.version, self._seen_since)
                forked = reply.head.epoch != self.version.epoch or reply.head.version < self.version
                if forked and self.version != ZERO:
                    self._begin_anew()
                    reply = self._ledger.exceptions(ZERO, 0)
                more = reply.more
                self._take(reply)

    def _begin_anew(self) -> None:
        with self._changed:
            self._states, self._points, self._seen = {}, {}, {}
            self._seen_since = self.floor = 0
            self.version = ZERO
            self.generation += 1

    def _take(self, reply: calls.ExceptionsReply) -> None:
        with self._changed:
            for state in reply.states:
                self._states[state.exception_id] = state
                self._points[state.exception_id] = point(Version.parse(state.version))
            pairs = iter(reply.seen)
            for name, clock in zip(pairs, pairs, strict=True):
                assert isinstance(name, str)
                assert isinstance(clock, int)
                self._seen[name] = clock
                self._seen_since = max(self._seen_since, clock)
            if reply.floor > self.floor:
                self.floor = reply.floor
                for name in [n for n, s in self._states.items() if s.state == Life.RESOLVED]:
                    if self._points[name] <= reply.floor:
                        del self._states[name], self._points[name]
                        self._seen.pop(name, None)
            self.clock_ms = reply.clock_ms
            self.version = Version.parse(reply.states[-1].version) if reply.more else reply.head.version
            if reply.states:
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait until something changed, or the timeout."""
        with self._changed:
            self._changed.wait(timeout_s)

    def get(self, exception_id: str) -> ExceptionState | None:
        """Return one as it is now, with when it was last seen."""
        with self._changed:
            state = self._states.get(exception_id)
            return None if state is None else self._shown(state)

    def all(self, *, after: int = -1) -> list[ExceptionState]:
        """Return those that changed after a point, in the order of their changes."""
        with self._changed:
            names = [name for name, at in self._points.items() if at > after]
            names.sort(key=lambda name: (self._points[name], name))
            return [self._shown(self._states[name]) for name in names]

    def open(self) -> dict[str, ExceptionState]:
        """Return those that are not resolved, without when they were last seen."""
        with self._changed:
            return {name: state for name, state in self._states.items() if state.state != Life.RESOLVED}

    def last_seen_ms(self, exception_id: str) -> int:
        """Return the ledger clock at which one was last noted as seen; 0 where it is not known."""
        with self._changed:
            return self._seen.get(exception_id, 0)

    def _shown(self, state: ExceptionState) -> ExceptionState:
        seen = self._seen.get(state.exception_id, 0)
        if state.state == Life.RESOLVED or seen <= state.last_seen_ms:
            return state
        return replace(state, last_seen_ms=seen)


def counted(states: Iterable[ExceptionState]) -> dict[tuple[int, int], int]:
    """Count by (category, severity)."""
    counts: dict[tuple[int, int], int] = {}
    for state in states:
        key = state.category, state.severity
        counts[key] = counts.get(key, 0) + 1
    return counts
