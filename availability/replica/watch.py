"""Watchers: first the current values of a channel, then the latest value of whatever changed since.

A watcher holds no queue of events: it remembers up to which apply counter it is complete, and the columns
remember when each sku changed last. However slow its consumer is, it costs at most one number per watched
sku, and no thread. ``replica`` wakes it and lends it the lock; delivery to storefronts is the publisher's
business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import Ints
from availability.domain.version import ZERO, Version
from availability.replica.columns import STATE_BITS, STATE_MASK, UNKNOWN, Column

if TYPE_CHECKING:
    from availability.replica.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Values of at most watch_chunk_skus skus, each (sku, sellable, state), as they are now.

    ``version``: the watcher has been given everything up to here; pass it as ``resume``. 0-0 until the first
    pass is complete (resuming from it starts over).
    """

    changes: list[tuple[str, int, int]]
    initial: bool
    version: Version
    crossings: list[tuple[str, int, int]]
    """(sku, ThresholdKind number, sellable) of skus that crossed a threshold: each crossing, or the latest, once."""
    correlation_ids: list[str]
    """In the order of changes: of the latest event that moved the sku, "" where it had none; empty: none had one."""


class Watcher:
    """One consumer's view of one channel. ``next`` is for one thread at a time; ``close`` for any."""

    def __init__(
        self,
        registry: Registry,
        channel: str,
        skus: Iterable[str] | None,
        chunk_skus: int,
        wake: Callable[[], None] | None,
    ) -> None:
        self._registry = registry
        self.channel = channel
        self.skus = None if skus is None else list(dict.fromkeys(skus))
        self._chunk = chunk_skus
        self._wake = wake
        self._event = threading.Event()
        self._closed = False
        self._numbers: Ints = np.empty(0, np.int64)
        self._numbered_at = -1
        self._cursor = 0
        self._version = ZERO
        self._initial = True
        self._resumed = False
        self._queue: Ints | list[str] | None = None
        self._sent = 0
        self._goal = (0, ZERO)

    def next(self, timeout_s: float) -> Batch | None:
        """Return the next batch, None after the timeout or a close.

        The first batches have ``initial`` set; there is at least one, possibly empty. Raises ServiceError
        UNKNOWN_CHANNEL when the channel is gone (its declaration was lost in a failover).
        """
        batch = self._take()
        if batch is None and not self._closed and self._event.wait(timeout_s):
            batch = self._take()
        return batch

    def close(self) -> None:
        """Stop watching; a waiting ``next`` returns None."""
        self._closed = True
        self._registry.remove(self)
        self.signal()

    def signal(self) -> None:
        """Say that there may be something; called by the replica's writer."""
        self._event.set()
        if self._wake is not None:
            self._wake()

    def start(self, state: State, resume: Version | None) -> None:
        """Begin after ``resume`` where memory can place it, with everything otherwise. Under the lock."""
        column = state.columns[self.channel]
        counter = None if resume is None else state.counter_at(resume)
        if counter is not None and resume is not None:
            self._cursor, self._version, self._resumed = counter, resume, True
            self._queue = self._changed(state, column)
        else:
            self.restart(state)
        self._goal = (state.counter, state.version)

    def restart(self, state: State) -> None:
        """Give everything again. Under the lock."""
        column = state.columns.get(self.channel)
        self._initial, self._version, self._sent, self._resumed = True, ZERO, 0, False
        if self.skus is not None:
            self._queue = self.skus
        else:
            packed = column.packed[: len(state.names)] if column is not None else np.empty(0, np.int64)
            self._queue = np.flatnonzero(packed != UNKNOWN)
        self._goal = (state.counter, state.version)
        self._event.set()

    def _take(self) -> Batch | None:
        with self._registry.lock:
            state = self._registry.state()
            self._event.clear()
            if self._closed:
                return None
            column = state.columns.get(self.channel)
            if column is None:
                raise ServiceError(
                    Reason.UNKNOWN_CHANNEL, "the channel is no longer declared", channel=self.channel
                )
            if self._queue is None:
                queue = self._changed(state, column)
                if not queue.size:
                    self._cursor, self._version = state.counter, state.version
                    return None
                self._queue, self._sent, self._goal = queue, 0, (state.counter, state.version)
            return self._chunked(state, column, self._queue)

    def _chunked(self, state: State, column: Column, queue: Ints | list[str]) -> Batch:
        part = queue[self._sent : self._sent + self._chunk]
        self._sent += self._chunk
        initial, cursor, goal = self._initial, self._cursor, self._goal[0]
        if self._sent >= len(queue):
            (self._cursor, self._version), self._queue, self._initial = self._goal, None, False
        if isinstance(part, list):
            names = part
            numbers = np.array([state.numbers.get(name, -1) for name in part], np.int64)
        else:
            names = [state.names[number] for number in part.tolist()]
            numbers = part
        packed = column.packed[numbers]
        values = zip(names, (packed >> STATE_BITS).tolist(), (packed & STATE_MASK).tolist(), strict=True)
        crossings: list[tuple[str, int, int]] = []
        if not initial or self._resumed:  # what is told anew from the beginning tells its states only
            crossed = column.crossed[numbers]
            # One that crossed after the goal is told with the next queue, which has it again.
            for at in np.flatnonzero((crossed > cursor) & (crossed <= goal)).tolist():
                number = numbers[at]
                crossings.append((names[at], int(column.stages[number]), int(packed[at]) >> STATE_BITS))
        known = state.correlations
        ids = [known.get(name, "") for name in names] if known and not initial else []
        return Batch(
            changes=list(values),
            initial=initial,
            version=self._version,
            crossings=crossings,
            correlation_ids=ids if any(ids) else [],
        )

    def _changed(self, state: State, column: Column) -> Ints:
        if self.skus is None:
            return column.since(self._cursor)
        if self._numbered_at != len(state.names) and self._numbers.size < len(self.skus):
            found = [state.numbers[sku] for sku in self.skus if sku in state.numbers]
            self._numbers = np.array(found, np.int64)
        self._numbered_at = len(state.names)
        return self._numbers[column.changed[self._numbers] > self._cursor]


class Registry:
    """Who watches what. Everything but ``remove`` is called with the lock held."""

    def __init__(self, lock: threading.Lock, state: Callable[[], State]) -> None:
        self.lock = lock
        self.state = state
        self._whole: dict[str, set[Watcher]] = {}
        self._by_sku: dict[str, dict[str, set[Watcher]]] = {}

    def add(self, watcher: Watcher) -> None:
        if watcher.skus is None:
            self._whole.setdefault(watcher.channel, set()).add(watcher)
            return
        by_sku = self._by_sku.setdefault(watcher.channel, {})
        for sku in watcher.skus:
            by_sku.setdefault(sku, set()).add(watcher)

    def remove(self, watcher: Watcher) -> None:
        with self.lock:
            whole = self._whole.get(watcher.channel, set())
            whole.discard(watcher)
            if not whole:
                self._whole.pop(watcher.channel, None)
            by_sku = self._by_sku.get(watcher.channel, {})
            for sku in watcher.skus or ():
                watchers = by_sku.get(sku, set())
                watchers.discard(watcher)
                if not watchers:
                    by_sku.pop(sku, None)
            if not by_sku:
                self._by_sku.pop(watcher.channel, None)

    def wake(self, state: State, moved: list[tuple[Column, Ints]]) -> None:
        """Signal those whose skus moved."""
        for channel, watchers in self._whole.items():
            column = state.columns.get(channel)
            if any(at is column for at, _ in moved):
                for watcher in watchers:
                    watcher.signal()
        for channel, by_sku in self._by_sku.items():
            column = state.columns.get(channel)
            for at, skus in moved:
                if at is column:
                    for watcher in _watching(by_sku, state.names, skus):
                        watcher.signal()

    def wake_all(self, state: State, restarted: set[str]) -> None:
        """Signal everybody after memory was replaced; those of some channels start over."""
        for watcher in self._everybody():
            if watcher.channel in restarted:
                watcher.restart(state)
            watcher.signal()

    def _everybody(self) -> set[Watcher]:
        everybody = {watcher for watchers in self._whole.values() for watcher in watchers}
        for by_sku in self._by_sku.values():
            everybody.update(watcher for watchers in by_sku.values() for watcher in watchers)
        return everybody


def _watching(by_sku: dict[str, set[Watcher]], names: list[str], skus: Ints) -> set[Watcher]:
    found: set[Watcher] = set()
    if len(by_sku) < skus.size:
        # Cheaper to wake everybody who may be meant than to name each sku: waking says "may be" only.
        return found.union(*by_sku.values())
    for number in skus.tolist():
        found.update(by_sku.get(names[number], ()))
    return found
