"""Many names to their numbers at once, by their hashes in arrays.

A dictionary fetches each name's entry, key and value from a place of its own in memory, one after the other: a thousand
random skus of 250,000 took 1.26 ms here, and about a fifth of that this way, where the processor fetches them side by
side. A name's hash names a bucket, which is one line of the processor's cache: a look at all of its eight places is one
comparison, so no name has to be looked for further on. Names that find their bucket full stand in a dictionary.

Names are compared by Python's own 64-bit hash (SipHash, with a key of the process): two known names with one hash are
seen when the second comes, and the caller's dictionary answers from then on; that a name nobody knows is taken for a
known one has a chance of 250,000 in 2**64.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from availability.domain.formula import Ints

LEAST = 128
"""Buckets of an empty table."""
WIDTH_BITS = 3
WIDTH = 1 << WIDTH_BITS
"""Places of a bucket; at most half of all places are used, so that few buckets are full."""


@dataclass(frozen=True, slots=True)
class _Buckets:
    mask: int
    hashes: npt.NDArray[np.int64]
    """Buckets × WIDTH; a free place holds what no name of that bucket can have."""
    numbers: npt.NDArray[np.int32]
    """One a place, -1 where it is free."""
    crowded: dict[int, int]
    """By hash, of names whose bucket is full."""


class NameTable:
    """Numbers of names, which are their places in a list that only grows. Readers need no lock."""

    def __init__(self) -> None:
        self._buckets = _empty(LEAST)
        self._covered = 0
        self._clashed = False
        self._lock = threading.Lock()

    def cover(self, names: Sequence[str]) -> bool:
        """Take in what the list has gained; False where two names clash, and the table is of no use."""
        if self._covered < len(names):
            with self._lock:
                self._take(names, len(names))
        return not self._clashed

    def many(self, wanted: Sequence[str]) -> Ints:
        """Return each name's number, -1 where it has none."""
        buckets = self._buckets
        hashes = _hashes(wanted)
        at = hashes & buckets.mask
        hits = np.flatnonzero(buckets.hashes.take(at, axis=0) == hashes[:, None])
        if hits.size == hashes.size:  # each has its one place, so the hits are in the order of the names
            return buckets.numbers.take((at << WIDTH_BITS) | (hits & (WIDTH - 1))).astype(np.int64)
        found = np.full(hashes.size, -1, np.int64)
        rows = hits >> WIDTH_BITS
        found[rows] = buckets.numbers[(at[rows] << WIDTH_BITS) | (hits & (WIDTH - 1))]
        crowded = buckets.crowded
        if crowded:
            rows = np.flatnonzero(found < 0)
            found[rows] = [crowded.get(value, -1) for value in hashes[rows].tolist()]
        return found

    def _take(self, names: Sequence[str], count: int) -> None:
        first = self._covered
        if self._clashed or first >= count:
            return
        size = self._buckets.mask + 1
        if count * 2 > size * WIDTH:
            while count * 2 > size * WIDTH:
                size *= 2
            buckets = _empty(size)
            self._clashed = not _place(buckets, _hashes(names[:count]), 0)
            self._buckets = buckets
        else:
            self._clashed = not _place(self._buckets, _hashes(names[first:count]), first)
        self._covered = count


def _empty(size: int) -> _Buckets:
    nobodys = ~np.arange(size, dtype=np.int64)  # its low bits name another bucket
    return _Buckets(
        mask=size - 1,
        hashes=np.repeat(nobodys, WIDTH).reshape(size, WIDTH),
        numbers=np.full(size * WIDTH, -1, np.int32),
        crowded={},
    )


def _hashes(names: Sequence[str]) -> Ints:
    return np.fromiter(map(hash, names), np.int64, len(names))


def _place(buckets: _Buckets, hashes: Ints, first: int) -> bool:
    """Place names in the order of their buckets, after those that are there; False where two have one hash."""
    at = hashes & buckets.mask
    there = buckets.hashes[at]
    known = (there == hashes[:, None]).any() or not buckets.crowded.keys().isdisjoint(hashes.tolist())
    if known or np.unique(hashes).size < hashes.size:
        return False
    order = np.argsort(at, kind="stable")
    sorted_at = at[order]
    used = np.count_nonzero(buckets.numbers.reshape(-1, WIDTH)[sorted_at] >= 0, axis=1)
    place = used + np.arange(at.size) - np.searchsorted(sorted_at, sorted_at)
    fits = place < WIDTH
    chosen, slots = order[fits], (sorted_at[fits] << WIDTH_BITS) + place[fits]
    buckets.numbers[slots] = chosen + first  # before the hashes: a reader who finds one needs its number
    buckets.hashes.reshape(-1)[slots] = hashes[chosen]
    buckets.crowded.update((int(hashes[name]), int(name) + first) for name in order[~fits])
    return True
