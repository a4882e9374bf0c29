"""What a policy change would move: the replica's own ``prepare`` on a shadow of its memory, never committed.

The shadow shares the arrays and copies what ``prepare`` may grow, so it runs on any thread beside the one writer.
Rows are copied under the readers' lock, a chunk at a time. What moved in the meantime is worked out again at the
end, all at once. Nothing here decides a change: its record comes from the ledger, which decided it and wrote
nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from heapq import nsmallest

import msgspec
import numpy as np

from availability.domain.formula import Ints
from availability.domain.version import Version
from availability.ledger.record import Entry, Kind, PolicyBody, PositionChange, Record
from availability.replica.columns import STATE_BITS, Column, Plan, Positions, Rows, contains
from availability.replica.errors import MemoryReplaced
from availability.replica.fences import FencesOfSku
from availability.replica.policies import Moved, Policies
from availability.replica.state import Numbers, Prepared, State, Update

ATTEMPTS_MAX = 3
MOVED_MEANWHILE_MAX = 10_000
"""Sellables that are worked out again under the readers' lock: some milliseconds."""

Guard = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One sellable that would move."""

    channel: str
    sku: str
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """``moves`` are the largest first, of equal ones by channel and sku; the numbers count all of them."""

    version: Version
    moved_skus: int
    moved_sellables: int
    moves: tuple[Move, ...]


def preview(
    state: Callable[[], State],
    lock: AbstractContextManager[object],
    body: PolicyBody,
    positions: Sequence[PositionChange],
    moves_max: int,
    check: Callable[[], None],
) -> Preview:
    """Work out what a change moves. ``check`` is called between chunks and raises to stop.

    Raises MemoryReplaced where memory changes faster than it can be looked through.
    """
    for _ in range(ATTEMPTS_MAX):
        with lock:
            live = state()
            counter, version = live.counter, live.version
            shadow = Shadow(live, lambda: lock, check)
        parts = _parts(shadow, shadow.prepare([_entry(version, body, positions)]))
        with lock:
            if state() is not live:
                continue
            moved = live.moved_since(counter)
            if moved.size > MOVED_MEANWHILE_MAX:
                continue
            names = shadow.name_of
            if live.counter != counter:
                again = Shadow(live, nullcontext, check, only=moved)
                fresh = _parts(again, again.prepare([_entry(live.version, body, positions)]))
                covered = np.sort(np.fromiter(again.named.union(moved.tolist()), np.int64))
                parts = [rest for part in parts if (rest := part.without(covered, shadow.known)).skus.size]
                parts, names = [*parts, *fresh], again.name_of
            return _told(parts, names, version, moves_max)
    raise MemoryReplaced("memory changes faster than a preview is made; ask again")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Sellables that move, of channels that answer alike."""

    channels: Sequence[str]
    skus: Ints
    before: Ints
    after: Ints

    def without(self, skus: Ints, known: int) -> _Part:
        """Return the rest, without some skus (sorted) and those that only the change names."""
        keep = ~contains(skus, self.skus) & (self.skus < known)
        return _Part(
            channels=self.channels, skus=self.skus[keep], before=self.before[keep], after=self.after[keep]
        )


def _parts(shadow: Shadow, prepared: Prepared) -> list[_Part]:
    channels: dict[int, list[str]] = {}
    for name, column in {**shadow.columns, **prepared.opened}.items():
        channels.setdefault(id(column), []).append(name)
    parts = []
    for update in prepared.updates:
        named = channels.get(id(update.column))
        before, after = update.column.packed[update.skus] >> STATE_BITS, update.packed >> STATE_BITS
        differs = before != after
        if named and differs.any():
            parts.append(
                _Part(
                    channels=named,
                    skus=update.skus[differs],
                    before=before[differs],
                    after=after[differs],
                )
            )
    return parts


def _entry(version: Version, body: PolicyBody, positions: Sequence[PositionChange]) -> Entry:
    raw = msgspec.Raw(msgspec.msgpack.encode(body))
    record = Record(int(Kind.POLICY), 0, "", "", "", list(positions), raw)
    return Entry(version, "", msgspec.msgpack.encode(record))


class _Peek(Positions):
    """The live positions, read under the lock; what a plan may grow is copied."""

    def __init__(self, live: Positions, guard: Guard, check: Callable[[], None]) -> None:
        self.__dict__.update(live.__dict__)
        self._start, self._length, self._room = live._start.copy(), live._length.copy(), live._room.copy()
        self._guard = guard
        self._check = check

    def rows(self, skus: Ints) -> Rows:
        with self._guard():
            return super().rows(skus)

    def plan(self, skus: Ints, nodes: Ints, values: Ints) -> Plan:
        with self._guard():
            return super().plan(skus, nodes, values)

    def chunks(self, skus: int, rows_max: int) -> Iterator[Ints]:
        for chunk in super().chunks(skus, rows_max):
            self._check()
            yield chunk


class _Overlay(Numbers):
    """Numbers of the live memory, and of skus that only the change names."""

    def __init__(self, live: Numbers) -> None:
        super().__init__()
        self._live = live

    def __missing__(self, sku: str) -> int:
        return self._live[sku]

    def get(self, sku: str, default: int | None = None) -> int | None:  # type: ignore[override]  # one signature of dict's
        found = self[sku]
        return default if found < 0 else found


class _Names(list[str]):
    """Only the length of the live names, and those that only the change names."""

    def __init__(self, live: int) -> None:
        super().__init__()
        self._live = live

    def __len__(self) -> int:
        return self._live + super().__len__()


class Shadow(State):
    """A state to prepare on and throw away. Make it under the readers' lock.

    ``only``: sku numbers to which it keeps, besides those that the change names.
    """

    def __init__(
        self, live: State, guard: Guard, check: Callable[[], None], only: Ints | None = None
    ) -> None:
        self.__dict__.update(live.__dict__)
        self.known = len(live.names)
        self.named: set[int] = set()
        self._only = only
        self._live_names = live.names
        self.names = _Names(self.known)
        self.numbers = _Overlay(live.numbers)
        self.positions = _Peek(live.positions, guard, check)
        self.fences = copy.copy(live.fences)
        self.fences.by_sku = dict(live.fences.by_sku)
        self.own = {name: copy.copy(column) for name, column in live.own.items()}
        self.shared = copy.copy(live.shared)
        shared = self.shared
        self.columns = {name: self.own.get(name, shared or column) for name, column in live.columns.items()}

    def name_of(self, number: int) -> str:
        """Return a sku's name."""
        if number < self.known:
            return self._live_names[number]
        return self.names[number - self.known]

    def _recomputed(
        self,
        moved: Moved,
        policies: Policies,
        plan: Plan | None,
        fences: Mapping[int, FencesOfSku],
        opened: dict[str, Column] | None = None,
    ) -> list[Update]:
        self.named = moved.skus
        if self._only is not None:
            moved = Moved(skus=moved.skus.union(self._only.tolist()))
        return super()._recomputed(moved, policies, plan, fences, opened)


def _told(parts: Sequence[_Part], name_of: Callable[[int], str], version: Version, moves_max: int) -> Preview:
    skus = np.concatenate([part.skus for part in parts]) if parts else np.empty(0, np.int64)
    sellables = sum(part.skus.size * len(part.channels) for part in parts)
    largest: list[Move] = []
    for part in parts:
        size = np.abs(part.after - part.before)
        if size.size > moves_max:  # all as large as the last that may be told: which of equal ones is by name
            least = np.partition(size, size.size - moves_max)[size.size - moves_max]
            chosen = np.flatnonzero(size >= least)
        else:
            chosen = np.arange(size.size)
        for channel in part.channels:
            rows = zip(
                part.skus[chosen].tolist(),
                part.before[chosen].tolist(),
                part.after[chosen].tolist(),
                strict=True,
            )
            moves = [Move(channel=channel, sku=name_of(sku), before=old, after=new) for sku, old, new in rows]
            largest = nsmallest(moves_max, [*largest, *moves], key=_order)
    return Preview(
        version=version,
        moved_skus=int(np.unique(skus).size),
        moved_sellables=sellables,
        moves=tuple(largest),
    )


def _order(move: Move) -> tuple[int, bytes, bytes]:
    return -abs(move.after - move.before), move.channel.encode(), move.sku.encode()
