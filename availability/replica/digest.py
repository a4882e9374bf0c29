"""The rolling digest: walk everything that memory holds, round and round, and compare it with the ledger.

A walk goes through the ledger's skus in the ledger's order, so that one that memory lacks is found, then through those
that only memory knows, then the policies. Each piece is compared at the version at which the ledger answered: it waits
until the log has brought memory there. What was computed from the figures is computed again. It never repairs: a
Disagreement makes `follow` read everything again. At most CPU_SHARE_MAX of a core is spent, at the price of a longer
walk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from availability.domain.version import Version
from availability.ledger.reader import Head, LedgerReader, Page, PolicyState
from availability.replica.bootstrap import compare, same_point
from availability.replica.errors import Disagreement
from availability.replica.figures import policy_figures
from availability.replica.settings import ReplicaSettings
from availability.replica.state import State

CPU_SHARE_MAX = 0.015
"""Of one core, of this process; Redis' own share is about a third of it."""


@dataclass(slots=True)
class DigestFigures:
    """What the digest has done so far. Times are monotonic seconds, None before the first."""

    skus: int = 0
    walks: int = 0
    disagreements: int = 0
    walked_at: float | None = None
    walk_s: float = 0.0
    """How long the last whole walk took."""


@dataclass(slots=True)
class _Walk:
    began_at: float
    index: int = 0
    seen: bytearray = field(default_factory=bytearray)
    rest: list[str] | None = None
    """Skus that the ledger did not name; None while it still names some."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A piece as the ledger has it, to be compared at its version."""

    answer: Page | PolicyState

    @property
    def head(self) -> Head:
        return self.answer.head

    @property
    def version(self) -> Version:
        return self.answer.head.version


class Digest:
    """One thread asks and compares; ``figures`` may be read from any."""

    def __init__(
        self, settings: ReplicaSettings, monotonic: Callable[[], float], cpu_s: Callable[[], float]
    ) -> None:
        self.figures = DigestFigures()
        self._rate = settings.digest_skus_per_s
        self._batch = settings.digest_batch_skus
        self._monotonic = monotonic
        self._cpu_s = cpu_s
        self._walk: _Walk | None = None
        self._next_at = 0.0

    def due(self) -> bool:
        """Whether it is time for the next piece."""
        return self._rate > 0 and self._monotonic() >= self._next_at

    def ask(self, reader: LedgerReader, state: State) -> Asked:
        """Read the next piece. Raises LedgerError."""
        began_s = self._cpu_s()
        walk = self._walk
        if walk is None:
            walk = self._walk = _Walk(self._monotonic())
        answer: Page | PolicyState
        if walk.rest is None:
            answer = reader.page(walk.index, self._batch)
        elif walk.rest:
            answer = reader.skus(walk.rest[-self._batch :])
        else:
            answer = reader.policies()
        self._rest(began_s)
        return Asked(answer)

    def compare(self, state: State, asked: Asked) -> None:
        """Compare a piece; memory is at its version. Raises Disagreement, or ForkSeen where histories differ."""
        began_s = self._cpu_s()
        try:
            if isinstance(asked.answer, Page):
                self._compare_skus(state, asked.answer)
            else:
                _compare_policies(state, asked.answer)
                self._walked()
        except Disagreement:
            self.figures.disagreements += 1
            raise
        finally:
            self._rest(began_s)

    def _compare_skus(self, state: State, page: Page) -> None:
        compare(state, page)
        numbers = [number for sku in page.skus if (number := state.numbers[sku.sku]) >= 0]
        wrong = state.wrong_answer(numbers)
        if wrong is not None:
            raise Disagreement(repr(wrong), state.version)
        self.figures.skus += len(page.skus)
        walk = self._walk
        if walk is None:
            return
        if walk.rest is not None:
            del walk.rest[-self._batch :]
            return
        if numbers:
            walk.seen.extend(bytes(max(0, max(numbers) + 1 - len(walk.seen))))
            for number in numbers:
                walk.seen[number] = 1
        walk.index = page.next_index
        if page.next_index < 0:
            unseen = np.ones(len(state.names), np.bool_)
            unseen[: len(walk.seen)] = np.frombuffer(walk.seen, np.uint8) == 0
            walk.rest = [state.names[number] for number in np.flatnonzero(unseen).tolist()]

    def _walked(self) -> None:
        now = self._monotonic()
        if self._walk is not None:
            self.figures.walk_s = now - self._walk.began_at
        self.figures.walks += 1
        self.figures.walked_at = now
        self._walk = None

    def _rest(self, began_s: float) -> None:
        """Put off the next piece, so that neither the rate nor the share of a core is passed."""
        pause_s = max((self._cpu_s() - began_s) / CPU_SHARE_MAX, self._batch / self._rate / 2)
        self._next_at = max(self._next_at, self._monotonic()) + pause_s


def _compare_policies(state: State, policies: PolicyState) -> None:
    same_point(state, policies.head)
    mine, theirs = state.policy_figures(), policy_figures(policies)
    for what in mine.keys() | theirs.keys():
        if mine.get(what) != theirs.get(what):
            raise Disagreement(f"the {what[0]} {what[1:]!r}", state.version)
