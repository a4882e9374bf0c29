"""The replica: a shard's availability in memory, kept equal to the ledger, answered without I/O.

Readers call from any thread; one thread follows the log (or a test calls ``step``). New values are worked out
without the lock and written under it, so every answer is from one version and never goes back, except after a
failover that lost what was read: then nothing is served until memory was read again. It never writes to the
ledger. What makes it start over: ``follow``; sums: ``compute``; terms: ``explain``; watchers: ``watch``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain
from random import Random

import msgspec
import numpy as np

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import Ints
from availability.domain.limits import EXPLODED_LINES_MAX
from availability.domain.version import Version
from availability.ledger.reader import LedgerReader
from availability.ledger.record import (
    ChannelState,
    FeedState,
    FenceState,
    KitState,
    NodeState,
    OverrideState,
    PolicyBody,
    PositionChange,
    StopState,
)
from availability.replica.bootstrap import Progress
from availability.replica.columns import SAFETY_STOCK, STATE_BITS, STATE_MASK, Column
from availability.replica.digest import Digest, DigestFigures
from availability.replica.errors import MemoryReplaced
from availability.replica.explain import NodeValue, Sheet, Terms, kit_terms
from availability.replica.follow import Follower, Fork
from availability.replica.policies import Policies, default_channel
from availability.replica.preview import Preview, preview
from availability.replica.settings import ReplicaSettings
from availability.replica.state import Prepared, State
from availability.replica.watch import Registry, Watcher

FRESHNESS_NEVER_MS = 1 << 40
"""Freshness before the first proof."""

_ENDINGS_MAX = 64
_SCANNED_ROWS = 1 << 14
"""Positions looked at under the lock at a time."""


class Value(msgspec.Struct, frozen=True, gc=False):
    """What a channel can sell of a sku now, with the AvailabilityState number and the version of both."""

    sellable: int
    state: int
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySnapshot:
    """All policies at one version, by bytewise name; ``stops`` are all that are in force."""

    version: Version
    channels: tuple[ChannelState, ...]
    auto_created: tuple[str, ...]
    nodes: tuple[NodeState, ...]
    stops: tuple[StopState, ...]
    kits: tuple[KitState, ...] = ()
    feeds: tuple[FeedState, ...] = ()
    fences: tuple[FenceState, ...] = ()


class BasketLine(msgspec.Struct, frozen=True, gc=False):
    """What a channel can sell of one sku of a basket, and whether it covers the whole basket's need of it."""

    sku: str
    sellable: int
    sufficient: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is in memory; ``array_bytes`` without names and policies."""

    skus: int
    positions: int
    channels: int
    array_bytes: int
    resyncs: int


class Replica:
    """See the module. All methods but ``step`` may be called from any thread; the reader is used by one."""

    def __init__(
        self,
        reader: LedgerReader,
        settings: ReplicaSettings,
        monotonic: Callable[[], float],
        random_source: Random,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_fork: Callable[[Fork], None] | None = None,
        on_resync: Callable[[str], None] | None = None,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """Connect nothing yet. Callbacks run on the following thread: keep them short, let none raise.

        ``cpu_s`` tells the processor time of the calling thread; the digest is measured by it.
        """
        self._settings = settings
        self._monotonic = monotonic
        self._on_fork = on_fork
        self._on_resync = on_resync
        self._lock = threading.Lock()
        self._advanced = threading.Condition(self._lock)
        self._state = State(settings)
        self._registry = Registry(self._lock, lambda: self._state)
        self._endings: dict[int, int] = {}
        self._proved_at: float | None = None
        self._reason = "the replica has not read the ledger yet"
        self._resyncs = 0
        self._stop = threading.Event()
        self._hurry = threading.Event()  # somebody waits: no pause now
        self._thread: threading.Thread | None = None
        self._digest = Digest(settings, monotonic, cpu_s)
        self._follower = Follower(
            reader,
            settings,
            _Sink(self),
            monotonic,
            random_source,
            self._digest,
            progress=on_progress or _nothing,
            stopped=self._stop.is_set,
        )

    # --- Life --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the following thread; ``ready`` tells when it serves."""
        if self._thread is not None:
            raise RuntimeError("already started")
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop following; memory goes on answering and its age grows."""
        self._stop.set()
        self._hurry.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def step(self) -> float:
        """Do one piece of the following thread's work; return the seconds it wants to pause. For tests."""
        pause = self._follower.step()
        state = self._state
        compact = state.positions.compacted()
        if compact is not None:
            with self._lock:
                state.positions = compact
        return pause

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = self.step()
            if pause and self._hurry.wait(pause):
                self._hurry.clear()

    @property
    def version(self) -> Version:
        """Version of the answers."""
        return self._state.version

    @property
    def ledger_id(self) -> str:
        return self._state.ledger_id

    @property
    def ready(self) -> bool:
        """Whether answers may be served, as far as this memory goes; their age is ``freshness_ms``."""
        return not self._reason

    @property
    def not_ready_reason(self) -> str:
        """Return why not, in a sentence; empty when ready."""
        return self._reason

    @property
    def digest(self) -> DigestFigures:
        """What the rolling digest has compared so far."""
        return self._digest.figures

    def digest_age_s(self) -> float:
        """Return the seconds since everything had been compared once; infinite before."""
        walked_at = self._digest.figures.walked_at
        return float("inf") if walked_at is None else self._monotonic() - walked_at

    def freshness_ms(self) -> int:
        """Return the age of the last proof that memory held the whole log."""
        proved_at = self._proved_at
        if proved_at is None:
            return FRESHNESS_NEVER_MS
        return max(0, int((self._monotonic() - proved_at) * 1000))

    # --- Answers -----------------------------------------------------------------------------------------

    def get(self, channel: str, sku: str) -> Value:
        """Return one answer. Raises ServiceError UNKNOWN_CHANNEL."""
        with self._lock:
            state = self._state
            column = state.columns.get(channel) or self._open(state, channel)
            packed = column.view[state.numbers[sku]]
            return Value(packed >> STATE_BITS, packed & STATE_MASK, state.version)

    def batch(self, channel: str, skus: Sequence[str]) -> tuple[Ints, Ints, Version]:
        """Return sellable quantities and AvailabilityState numbers in request order, all at the one version.

        Raises ServiceError UNKNOWN_CHANNEL. An unknown sku is 0 and UNKNOWN_SKU.
        """
        state = self._state
        numbers = _numbers(state, skus)
        with self._lock:
            # Should memory have been replaced meanwhile: sku numbers survive that.
            state = self._state
            column = state.columns.get(channel) or self._open(state, channel)
            packed = column.packed.take(numbers, mode="wrap")
            version = state.version
        return packed >> STATE_BITS, packed & STATE_MASK, version

    def nodes(self, channel: str, sku: str) -> list[NodeValue]:
        """Return the channel's nodes in sourcing order, none for a kit. Raises ServiceError UNKNOWN_CHANNEL."""
        kit, sheets, _, _ = self._laid_open(channel, sku)
        return [] if kit is not None else sheets[0].node_values()

    def terms(self, channel: str, sku: str) -> Terms:
        """Return every term of one answer, all at one version. Raises ServiceError UNKNOWN_CHANNEL."""
        kit, sheets, policies, version = self._laid_open(channel, sku)
        if kit is None:
            return sheets[0].terms(channel, sku, version)
        return kit_terms(channel, kit, self._state.numbers[sku], sheets, policies, version)

    def basket(self, channel: str, wanted: Sequence[tuple[str, int]]) -> tuple[list[BasketLine], Version]:
        """Judge what somebody wants of several skus (each named once) together, as a reservation would.

        Kits are exploded and what they need of a sku is added to what others need of it. Raises ServiceError
        UNKNOWN_CHANNEL, BATCH_TOO_LARGE for kits with more than EXPLODED_LINES_MAX parts together.
        """
        with self._lock:
            state = self._state
            column = state.columns.get(channel) or self._open(state, channel)
            policies, version = state.policies, state.version
            kits = [state.kit(sku) for sku, _ in wanted] if policies.kits.by_sku else [None] * len(wanted)
            needs = [
                [(sku, 1)] if kit is None else kit.flat for (sku, _), kit in zip(wanted, kits, strict=True)
            ]
            exploded = sum(map(len, needs)) if any(kits) else 0
            if exploded > EXPLODED_LINES_MAX:
                raise ServiceError(
                    Reason.BATCH_TOO_LARGE,
                    "the kits of this request have too many components together",
                    limit=str(EXPLODED_LINES_MAX),
                )
            named = {sku for sku, _ in wanted}.union(part for need in needs for part, _ in need)
            packed = {sku: column.view[state.numbers[sku]] for sku in named}
            numbers = {sku: state.numbers[sku] for sku in named}
        total: Counter[str] = Counter()
        for (_, quantity), need in zip(wanted, needs, strict=True):
            for part, units in need:
                total[part] += quantity * units
        own = policies.channel(channel)
        covered = {
            part: units <= packed[part] >> STATE_BITS and own.has_node(numbers[part])
            for part, units in total.items()
        }
        lines = []
        for (sku, _), need in zip(wanted, needs, strict=True):
            sellable = packed[sku] >> STATE_BITS
            sufficient = sellable > 0 and all(covered[part] for part, _ in need)
            lines.append(BasketLine(sku, sellable, sufficient))
        return lines, version

    def watch(
        self,
        channel: str,
        skus: Iterable[str] | None,
        resume: Version | None = None,
        *,
        wake: Callable[[], None] | None = None,
    ) -> Watcher:
        """Watch some skus of a channel, or (None) all. Close the watcher after use.

        ``resume``: only what changed after this version, where memory reaches back so far; everything
        otherwise, also for a version that is still ahead (``wait_for`` it first). ``wake`` is called on the
        following thread, with the lock held, when there may be something: it must do no more than set a flag.
        Raises ServiceError UNKNOWN_CHANNEL.
        """
        watcher = Watcher(self._registry, channel, skus, self._settings.watch_chunk_skus, wake)
        with self._lock:
            state = self._state
            if channel not in state.columns:
                self._open(state, channel)
            watcher.start(state, None if resume is None or self._is_lost(resume) else resume)
            self._registry.add(watcher)
        return watcher

    def wait_for(self, version: Version, deadline_monotonic: float) -> bool:
        """Wait until answers are at ``version`` or later; False at the deadline (monotonic seconds).

        Raises ServiceError VERSION_LOST when the version's epoch ended before it (lost in a failover). Epochs
        that ended before what the log still tells are taken as reached.
        """
        with self._advanced:
            while True:
                if self._is_lost(version):
                    raise ServiceError(
                        Reason.VERSION_LOST, "this version was lost in a failover", version=str(version)
                    )
                if self._state.known_since is not None and self._state.version[:2] >= version[:2]:
                    return True
                left = deadline_monotonic - self._monotonic()
                if left <= 0:
                    return False
                self._hurry.set()
                self._advanced.wait(left)

    def preview(
        self,
        body: PolicyBody,
        positions: Sequence[PositionChange],
        *,
        moves_max: int,
        deadline_monotonic: float,
    ) -> Preview:
        """Return what a policy change would move, as the ledger would log it. Changes nothing; any thread.

        Raises ServiceError DEADLINE_EXCEEDED, and OVERLOADED where memory changes faster than it can be looked
        through.
        """

        def check() -> None:
            if self._monotonic() >= deadline_monotonic:
                raise ServiceError(Reason.DEADLINE_EXCEEDED, "the preview was not ready in time")

        try:
            return preview(lambda: self._state, self._lock, body, positions, moves_max, check)
        except MemoryReplaced as error:
            raise ServiceError(Reason.OVERLOADED, str(error)) from error

    # --- What is set -------------------------------------------------------------------------------------

    def policies(self) -> PolicySnapshot:
        """Return everything that is set as a whole, at one version."""
        with self._lock:
            state = self._state
            policies, version, columns = state.policies, state.version, list(state.columns)
            fences = list(state.fences.by_sku.values())
        channels = sorted(policies.channels.values(), key=lambda channel: channel.state.channel.encode())
        stops = [stop for channel in channels if (stop := channel.stop) is not None]
        stops += [stop for channel in channels for stop in channel.stops.by_sku.values()]
        stops += policies.stops.by_sku.values()
        declared = {channel.state.channel for channel in channels if channel.declared}
        nodes = [node for node in policies.nodes.states if node is not None]
        return PolicySnapshot(
            version=version,
            channels=tuple(channel.state for channel in channels if channel.declared),
            auto_created=tuple(sorted((name for name in columns if name not in declared), key=str.encode)),
            nodes=tuple(sorted(nodes, key=lambda node: node.node.encode())),
            stops=tuple(sorted(stops, key=lambda stop: (stop.channel.encode(), stop.sku.encode()))),
            kits=tuple(sorted(policies.kits.by_sku.values(), key=lambda kit: kit.kit_sku.encode())),
            feeds=tuple(
                sorted(policies.nodes.feeds.values(), key=lambda f: (f.source.encode(), f.node.encode()))
            ),
            fences=tuple(
                sorted(chain(*fences), key=lambda fence: (fence.channel.encode(), fence.sku.encode()))
            ),
        )

    def safety_stocks(self) -> list[tuple[str, str, int]]:
        """Return the positions with a safety stock of their own as (sku, node, units), by bytewise names.

        Read a piece at a time, so that answers do not wait; the pieces may be of successive versions.
        """
        found = []
        skus = self._state.positions.chunks(len(self._state.names), _SCANNED_ROWS)
        for part in skus:
            with self._lock:
                state = self._state
                rows = state.positions.rows(part)
                names = state.policies.nodes.names
            own = np.flatnonzero(rows.values[:, SAFETY_STOCK] >= 0)
            numbers = part[np.searchsorted(rows.offsets, own, side="right") - 1]
            found += [
                (state.names[sku], names[node], units)
                for sku, node, units in zip(
                    numbers.tolist(),
                    rows.nodes[own].tolist(),
                    rows.values[own, SAFETY_STOCK].tolist(),
                    strict=True,
                )
            ]
        return sorted(found, key=lambda one: (one[0].encode(), one[1].encode()))

    def channel_policy(self, channel: str) -> ChannelState:
        """Return a channel's policy, the default one where it was auto-created. Raises UNKNOWN_CHANNEL."""
        with self._lock:
            state = self._state
            if channel not in state.columns:
                self._open(state, channel)
            found = state.policies.channels.get(channel)
        return found.state if found is not None else default_channel(channel)

    def overrides(self, channel: str, after_sku: str, count: int) -> list[OverrideState]:
        """Return up to ``count`` of a channel's overrides, by bytewise sku after ``after_sku``."""
        with self._lock:
            policies = self._state.policies
        found = policies.channels.get(channel)
        if found is None:
            return []
        after = after_sku.encode()
        rest = (override for override in found.overrides.by_sku.values() if override.sku.encode() > after)
        return nsmallest(count, rest, key=lambda override: override.sku.encode())

    def counts(self) -> Counts:
        """Return how much is in memory."""
        with self._lock:
            state = self._state
            return Counts(
                skus=len(state.names),
                positions=state.positions.count,
                channels=len(state.columns),
                array_bytes=state.nbytes,
                resyncs=self._resyncs,
            )

    # --- Inside ------------------------------------------------------------------------------------------

    def _open(self, state: State, channel: str) -> Column:
        """Open a channel that nobody declared, or say that there is none. Under the lock."""
        if state.shared is None:
            if state.known_since is None:
                raise ServiceError(Reason.LEDGER_NOT_READY, self._reason)
            raise ServiceError(Reason.UNKNOWN_CHANNEL, "no such channel", channel=channel)
        if len(state.columns) - len(state.own) >= self._settings.channels_max:
            raise ServiceError(
                Reason.UNKNOWN_CHANNEL, "no such channel, and no more are opened by name", channel=channel
            )
        state.open_shared([channel])
        return state.shared

    def _laid_open(self, channel: str, sku: str) -> tuple[KitState | None, list[Sheet], Policies, Version]:
        """Lay a plain sku open, or the plain skus of a kit, all at one version."""
        with self._lock:
            state = self._state
            if channel not in state.columns:
                self._open(state, channel)
            policies, version, kit = state.policies, state.version, state.kit(sku)
            skus = [sku] if kit is None else [part for part, _ in kit.flat]
            spreads = [state.spread(part) for part in skus]
        own = policies.channel(channel)
        return kit, [Sheet(rows, fences, policies, own) for rows, fences in spreads], policies, version

    def _is_lost(self, version: Version) -> bool:
        last = self._endings.get(version.epoch)
        return last is not None and version.seq > last


class _Sink:
    """The follower's hand on the replica: everything that changes what readers see."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    @property
    def state(self) -> State:
        return self._replica._state

    def publish(self, prepared: Prepared) -> None:
        replica = self._replica
        with replica._lock:
            state = replica._state
            state.commit(prepared)
            replica._registry.wake(state, [(update.column, update.skus) for update in prepared.updates])
            replica._advanced.notify_all()

    def replace(self, state: State) -> None:
        replica = self._replica
        broken = state.continue_from(replica._state)
        with replica._lock:
            state.open_shared(list(replica._state.columns))
            replica._state = state
            replica._resyncs += 1
            replica._registry.wake_all(state, broken)
            replica._advanced.notify_all()

    def proved(self, at: float) -> None:
        self._replica._proved_at = at

    def trust(self) -> None:
        self._replica._reason = ""

    def distrust(self, reason: str) -> None:
        self._replica._reason = reason or "the ledger must be read again"

    def ended(self, endings: dict[int, int]) -> None:
        replica = self._replica
        with replica._lock:
            replica._endings.update(endings)
            for epoch in sorted(replica._endings)[:-_ENDINGS_MAX]:
                del replica._endings[epoch]
            replica._advanced.notify_all()

    def forked(self, fork: Fork) -> None:
        if self._replica._on_fork is not None:
            self._replica._on_fork(fork)

    def resynced(self, reason: str) -> None:
        if self._replica._on_resync is not None:
            self._replica._on_resync(reason)


def _numbers(state: State, skus: Sequence[str]) -> Ints:
    if state.table.cover(state.names):
        return state.table.many(skus)
    return np.array([state.numbers[sku] for sku in skus], np.int64)


def _nothing(_: Progress) -> None:
    return None
