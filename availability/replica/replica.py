"""The replica: a shard's availability in memory, kept equal to the ledger, answered without I/O.

Readers call from any thread; one thread follows the log (or a test calls ``step``). New values are worked out
without the lock and written under it, so every answer is from one version and never goes back, except after a
failover that lost what was read: then nothing is served until memory was read again. It never writes to the
ledger. What makes it start over: ``follow``; sums: ``compute``; terms: ``explain``; watchers: ``watch``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import itemgetter
from random import Random

import msgspec
import numpy as np

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import Ints
from availability.domain.version import Version
from availability.ledger.reader import LedgerReader
from availability.ledger.record import ChannelState, NodeState, OverrideState, StopState
from availability.replica.bootstrap import Progress
from availability.replica.columns import STATE_BITS, Column, Rows
from availability.replica.explain import NodeValue, Sheet, Terms
from availability.replica.follow import Follower, Fork
from availability.replica.policies import Policies, default_channel
from availability.replica.settings import ReplicaSettings
from availability.replica.state import Numbers, Prepared, State
from availability.replica.watch import STATE_MASK, Registry, Watcher

FRESHNESS_NEVER_MS = 1 << 40
"""Freshness before the first proof."""

_ENDINGS_MAX = 64


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
    ) -> None:
        """Connect nothing yet. Callbacks run on the following thread: keep them short, let none raise."""
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
        self._follower = Follower(
            reader,
            settings,
            _Sink(self),
            monotonic,
            random_source,
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
        numbers = _numbers(state.numbers, skus)
        with self._lock:
            # Should memory have been replaced meanwhile: sku numbers survive that.
            state = self._state
            column = state.columns.get(channel) or self._open(state, channel)
            packed = column.packed.take(numbers, mode="wrap")
            version = state.version
        return packed >> STATE_BITS, packed & STATE_MASK, version

    def nodes(self, channel: str, sku: str) -> list[NodeValue]:
        """Return the channel's nodes in sourcing order. Raises ServiceError UNKNOWN_CHANNEL."""
        rows, policies, _ = self._copied(channel, sku)
        return Sheet(rows, policies, policies.channel(channel)).node_values()

    def terms(self, channel: str, sku: str) -> Terms:
        """Return every term of one answer, all at one version. Raises ServiceError UNKNOWN_CHANNEL."""
        rows, policies, version = self._copied(channel, sku)
        return Sheet(rows, policies, policies.channel(channel)).terms(channel, sku, version)

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

    # --- What is set -------------------------------------------------------------------------------------

    def policies(self) -> PolicySnapshot:
        """Return everything that is set as a whole, at one version."""
        with self._lock:
            state = self._state
            policies, version, columns = state.policies, state.version, list(state.columns)
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
        )

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

    def _copied(self, channel: str, sku: str) -> tuple[Rows, Policies, Version]:
        with self._lock:
            state = self._state
            if channel not in state.columns:
                self._open(state, channel)
            number = state.numbers.get(sku)
            rows = state.positions.rows(np.array([] if number is None else [number], np.int64))
            return rows, state.policies, state.version

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


def _numbers(numbers: Numbers, skus: Sequence[str]) -> Ints:
    """Look up many skus; itemgetter is 1.5 times faster than map, and gives a bare number for one name."""
    count = len(skus)
    if count < 2:
        return np.array([numbers[sku] for sku in skus], np.int64)
    return np.fromiter(itemgetter(*skus)(numbers), np.int64, count)


def _nothing(_: Progress) -> None:
    return None
