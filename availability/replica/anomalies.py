"""What is wrong with positions, seen in memory: more promised than there is, below nothing, promised at offline nodes.

A scan looks at what moved since the last one; at everything when it begins, after a resync and when nodes change. It
copies rows in pieces under the readers' lock, so that none of them waits long. One thread scans. What becomes of it:
``availability.service.inspector``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from availability.domain import formula
from availability.domain.formula import Flags, Ints
from availability.domain.version import Version
from availability.replica.columns import COMMITTED, ON_HAND, QUARANTINED, RESERVED, Rows
from availability.replica.compute import safety_stocks
from availability.replica.policies import Nodes, Policies
from availability.replica.replica import Replica
from availability.replica.state import State

OFFLINE = 2
"""Of availability.v1 NodeState."""
PIECE_SKUS = 1 << 13
"""Skus whose positions are copied at once: below a millisecond of lock."""
TOUCHED_MAX = 1 << 18
"""Moved skus beyond which a look at everything costs no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """What is wrong with one sku, in base units; (node, units) by node number."""

    sku: str
    deficit: int
    """Units promised beyond what all nodes together can give."""
    short: tuple[tuple[str, int], ...]
    """Nodes that promised more than they can give, covered elsewhere or not."""
    negative: tuple[tuple[str, int], ...]
    """Nodes whose on_hand is below 0, and what it is."""
    offline: tuple[tuple[str, int], ...]
    """Offline nodes with promises, and how many units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """``moved``: skus to look at again (None: all); ``uncovered``: skus of which an order fact told so since."""

    version: Version
    moved: frozenset[str] | None
    uncovered: frozenset[str]


class Anomalies:
    """Keeps what is wrong by sku. ``scan`` brings it up to date."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._state: State | None = None
        self._offline: Flags = np.empty(0, np.bool_)
        self._safety: Ints = np.empty(0, np.int64)
        self.found: dict[str, Wrong] = {}

    def scan(self) -> Scan:
        """Look at what moved. Call it while the replica is ready."""
        replica = self._replica
        with replica._lock:
            state = replica._state
            policies, version, count = state.policies, state.version, len(state.names)
            touched, state.touched = state.touched, []
            uncovered, state.uncovered = frozenset(state.uncovered), set()
        whole = touched is None or state is not self._state or self._nodes_differ(policies.nodes)
        self._state = state
        if whole or touched is None or sum(piece.size for piece in touched) > TOUCHED_MAX:
            self._offline, self._safety = _offline(policies.nodes), policies.nodes.safety_stock
            self.found = {}
            for first in range(0, count, PIECE_SKUS):
                self._look(state, policies, np.arange(first, min(count, first + PIECE_SKUS)))
            return Scan(version=version, moved=None, uncovered=uncovered)
        if not touched:
            return Scan(version=version, moved=frozenset(), uncovered=uncovered)
        skus = np.unique(np.concatenate(touched))
        moved = frozenset(state.names[number] for number in skus.tolist())
        for sku in moved & self.found.keys() if len(self.found) < len(moved) else moved:
            self.found.pop(sku, None)
        for first in range(0, skus.size, PIECE_SKUS):
            self._look(state, policies, skus[first : first + PIECE_SKUS])
        return Scan(version=version, moved=moved, uncovered=uncovered)

    def _nodes_differ(self, nodes: Nodes) -> bool:
        """Whether a node that was looked at went on- or offline or keeps another safety stock. New ones moved."""
        offline, known = _offline(nodes), self._offline.size
        same = np.array_equal(offline[:known], self._offline) and not offline[known:].any()
        return not (same and np.array_equal(nodes.safety_stock[:known], self._safety))

    def _look(self, state: State, policies: Policies, skus: Ints) -> None:
        with self._replica._lock:
            rows = state.positions.rows(skus)
        nodes = policies.nodes
        if rows.nodes.size and int(rows.nodes.max()) >= len(nodes.names):
            keep = rows.nodes < len(
                nodes.names
            )  # a node that came since: its skus have moved, the next scan sees it
            rows = _kept(rows, keep)
        values = rows.values
        gives = formula.give(
            values[:, ON_HAND], values[:, QUARANTINED], safety_stocks(values, nodes, rows.nodes)
        )
        promised = values[:, RESERVED] + values[:, COMMITTED]
        nets = gives - promised
        negative = values[:, ON_HAND] < 0
        offline = _offline(nodes)[rows.nodes] & (promised > 0)
        hits = np.flatnonzero((nets < 0) | negative | offline)
        if not hits.size:
            return
        sums = formula.sums(nets, rows.offsets)
        owners = np.searchsorted(rows.offsets, hits, side="right") - 1
        by_owner: dict[int, list[int]] = {}
        for owner, hit in zip(owners.tolist(), hits.tolist(), strict=True):
            by_owner.setdefault(owner, []).append(hit)

        def at(chosen: Iterable[int], numbers: Ints) -> tuple[tuple[str, int], ...]:
            return tuple((nodes.names[rows.nodes[row]], int(numbers[row])) for row in chosen)

        for owner, own in by_owner.items():
            sku = state.names[int(rows.skus[owner])]
            self.found[sku] = Wrong(
                sku=sku,
                deficit=max(0, -int(sums[owner])),
                short=at((row for row in own if nets[row] < 0), -nets),
                negative=at((row for row in own if negative[row]), values[:, ON_HAND]),
                offline=at((row for row in own if offline[row]), promised),
            )


def _offline(nodes: Nodes) -> Flags:
    return np.array([node is not None and node.state == OFFLINE for node in nodes.states], np.bool_)


def _kept(rows: Rows, keep: Flags) -> Rows:
    running = np.concatenate(([0], np.cumsum(keep)))
    return Rows(
        skus=rows.skus, offsets=running[rows.offsets], nodes=rows.nodes[keep], values=rows.values[keep]
    )
