"""Fill a new memory from the ledger: head, policies, pages of skus, the log since the head, verify.

Every answer of the ledger names a point (version and chain). The replay must pass through each of them with
the same chain; otherwise a failover came in between and what was read belongs to a history that is gone.
Nothing here serves; ``follow`` decides when to bootstrap and hands the result to ``replica``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from random import Random

import msgspec

from availability.domain.version import Version
from availability.ledger.reader import Head, LedgerReader, Page
from availability.ledger.record import Entry, EpochBody, Kind, OverrideState, StopState, decode_body
from availability.replica.errors import (
    Disagreement,
    ForkSeen,
    LedgerNotServable,
    RecordsMissing,
    UnreadableRecord,
)
from availability.replica.figures import sku_figures
from availability.replica.order import checked
from availability.replica.settings import ReplicaSettings
from availability.replica.state import State

_SEQ_MAX = (1 << 53) - 1
_ENDINGS_MAX = 16
"""Past epochs whose end is looked up, so that a version lost in one of them is known to be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a bootstrap is. ``phase`` is skus, log, answers, verify or done."""

    phase: str
    skus: int
    version: Version


class Milestones:
    """Points of the ledger that were read and that the replay must pass."""

    def __init__(self, head: Head) -> None:
        self._ledger_id = head.ledger_id
        self._points: dict[Version, str] = {}
        self._passed: set[Version] = set()
        self.last = head.version
        self.add(head)

    def add(self, head: Head) -> None:
        """Remember one. Raises LedgerNotServable or ForkSeen when it cannot be of the same history."""
        if head.ledger_id != self._ledger_id:
            raise LedgerNotServable("the ledger was replaced while it was read")
        if head.version < self.last:
            raise ForkSeen(f"the ledger went back from {self.last} to {head.version} while it was read")
        self.last = head.version
        if self._points.setdefault(head.version, head.chain) != head.chain:
            raise ForkSeen(f"the ledger has two histories at {head.version}")

    def passed(self, version: Version, chain: str) -> None:
        """Tick off a point. Raises ForkSeen for another chain than was read there."""
        if self._points.get(version, chain) != chain:
            raise ForkSeen(f"the ledger has two histories at {version}")
        if version in self._points:
            self._passed.add(version)

    def done(self) -> None:
        """Raise ForkSeen when the log never came by one of the points."""
        missing = self._points.keys() - self._passed
        if missing:
            raise ForkSeen(f"the log does not contain {min(missing)}, which was read")


class Bootstrap:
    """One filling. ``run`` raises ResyncNeeded, LedgerNotServable or LedgerError."""

    def __init__(
        self,
        reader: LedgerReader,
        settings: ReplicaSettings,
        random_source: Random,
        *,
        progress: Callable[[Progress], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._random = random_source
        self._progress = progress
        self._stopped = stopped
        self.endings: dict[int, int] = {}
        """Epoch → its last seq, of ended epochs."""

    def run(self, head: Head, names_of: State | None) -> State:
        """Fill a new state that is at ``head`` or later."""
        state = State(self._settings, names_of)
        milestones = Milestones(head)
        state.ledger_id, state.version, state.chain = head.ledger_id, head.version, head.chain
        milestones.passed(state.version, state.chain)
        try:
            self._read_all(state, milestones)
        except (ValueError, OverflowError) as error:
            raise UnreadableRecord(head.version, f"{type(error).__name__}: {error}") from error
        self._report("log", state)
        self._replay(state, milestones, milestones.last)
        milestones.done()
        self._report("answers", state)
        state.materialise()
        self._report("verify", state)
        self._verify(state)
        self._read_endings(state.version.epoch)
        self._report("done", state)
        return state

    def _read_all(self, state: State, milestones: Milestones) -> None:
        policies = self._reader.policies()
        milestones.add(policies.head)
        state.load_policies(policies)
        overrides: list[OverrideState] = []
        stops: list[StopState] = []
        with closing(self._pages()) as pages:
            for page in pages:
                milestones.add(page.head)
                state.load_skus(page.skus)
                for sku in page.skus:
                    overrides += sku.overrides
                    stops += sku.stops
                self._report("skus", state)
        state.load_sku_policies(overrides, stops)

    def _pages(self) -> Generator[Page, None, None]:
        """Yield all pages, each while the ledger works at the next: half of a page's time is its, half ours."""
        count = self._settings.page_skus
        with ThreadPoolExecutor(1, thread_name_prefix="pages") as ahead:
            coming = ahead.submit(self._reader.page, 0, count)
            while True:
                if self._stopped():
                    raise LedgerNotServable("stopped")
                page = coming.result()
                if page.next_index < 0:
                    break
                coming = ahead.submit(self._reader.page, page.next_index, count)
                yield page
        yield page

    def _replay(self, state: State, milestones: Milestones, target: Version) -> None:
        """Apply the log up to ``target`` and no further; policies and pages are right from there on."""
        while state.version < target:
            entries = self._reader.read(state.version, self._settings.batch_records, 0)
            if not entries:
                raise RecordsMissing(f"the log ends at {state.version}, before {target}")
            entries = [entry for entry in entries if entry.version <= target]
            if not entries:
                raise ForkSeen(f"the log goes on after {state.version} without {target}, which was read")
            checked(state.version, state.chain, entries)
            for entry in entries:
                milestones.passed(entry.version, entry.chain)
            state.commit(state.prepare(entries))

    def _verify(self, state: State) -> None:
        names = sample(state, self._settings.verify_skus, self._random)
        if not names:
            return
        page = self._reader.skus(names)
        milestones = Milestones(page.head)
        if page.head.ledger_id != state.ledger_id or page.head.version < state.version:
            raise ForkSeen(
                f"the ledger went back from {state.version} to {page.head.version} while it was read"
            )
        milestones.passed(state.version, state.chain)
        self._replay(state, milestones, page.head.version)
        milestones.done()
        compare(state, page)

    def _read_endings(self, epoch: int) -> None:
        """Look up where earlier epochs ended, as far back as the log reaches."""
        for earlier in range(epoch - 1, max(-1, epoch - 1 - _ENDINGS_MAX), -1):
            found = self._reader.read(Version(earlier, _SEQ_MAX), 1, 0)
            ending = epoch_ending(found)
            if ending is None or ending.old_epoch != earlier:
                return
            self.endings[earlier] = ending.last_seq

    def _report(self, phase: str, state: State) -> None:
        self._progress(Progress(phase=phase, skus=len(state.names), version=state.version))


def epoch_ending(entries: Sequence[Entry]) -> EpochBody | None:
    """Return the body of the first entry if it begins an epoch."""
    if not entries:
        return None
    try:
        record = entries[0].record()
        body: EpochBody | None = decode_body(record) if record.kind == Kind.EPOCH else None
    except msgspec.DecodeError:
        return None  # an old record that nobody is asked to apply
    return body


def sample(state: State, count: int, random_source: Random) -> list[str]:
    """Draw skus to be read back."""
    names = state.names
    return [names[number] for number in random_source.sample(range(len(names)), min(count, len(names)))]


def same_point(state: State, head: Head) -> None:
    """Raise ForkSeen unless memory is at a point of the ledger's own history."""
    if (state.version, state.chain) != (head.version, head.chain):
        raise ForkSeen(f"the ledger has two histories at {state.version}")


def compare(state: State, page: Page) -> None:
    """Raise Disagreement unless memory equals the page; both are at the same version."""
    same_point(state, page.head)
    for sku in page.skus:
        if state.figures(sku.sku) != sku_figures(sku):
            raise Disagreement(repr(sku.sku), state.version)
