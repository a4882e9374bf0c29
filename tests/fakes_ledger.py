"""A ledger in memory that speaks LedgerReader, and can be made to fail in the ways of FAILURES.md.

It writes real records with a real chain, and answers nothing by itself: tests call its verbs. What it keeps
is immutable per entry, so that a point is remembered by copying a few dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock

import msgspec

from availability.domain.version import Version
from availability.ledger.errors import LedgerUnreachable
from availability.ledger.reader import Head, Page, PolicyState, PositionState, SkuState
from availability.ledger.record import (
    ChannelState,
    DeltasBody,
    Entry,
    EpochBody,
    FeedBody,
    FeedState,
    FenceLeft,
    FenceState,
    Kind,
    KitState,
    NodeState,
    OverrideState,
    PolicyBody,
    PositionChange,
    ReservedBody,
    StopState,
    chain_after,
)
from availability.replica import default_channel
from tests.plain_formula import (
    PlainChannel,
    PlainFence,
    PlainPosition,
    plain_answer,
    plain_kit,
    plain_node,
)

Figures = tuple[int, int, int, int, int]  # on_hand, quarantined, reserved, committed, safety_stock
_encode = msgspec.msgpack.Encoder().encode


@dataclass
class Content:
    """Everything that a failover can take back."""

    epoch: int = 1
    seq: int = 0
    chain: str = ""
    positions: dict[str, dict[str, Figures]] = field(default_factory=dict)
    nodes: dict[str, NodeState] = field(default_factory=dict)
    channels: dict[str, ChannelState] = field(default_factory=dict)
    overrides: dict[tuple[str, str], OverrideState] = field(default_factory=dict)
    stops: dict[tuple[str, str], StopState] = field(default_factory=dict)
    kits: dict[str, KitState] = field(default_factory=dict)
    fences: dict[tuple[str, str], FenceState] = field(default_factory=dict)
    feeds: dict[tuple[str, str], FeedState] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)

    def copy(self) -> Content:
        return Content(
            self.epoch,
            self.seq,
            self.chain,
            {sku: dict(nodes) for sku, nodes in self.positions.items()},
            dict(self.nodes),
            dict(self.channels),
            dict(self.overrides),
            dict(self.stops),
            dict(self.kits),
            dict(self.fences),
            dict(self.feeds),
            list(self.log),
        )


class FakeLedger:
    """The ledger and its verbs. ``now`` is the present content; ``before_call`` runs before every read."""

    def __init__(self, ledger_id: str = "ledger-1") -> None:
        self.ledger_id = ledger_id
        self.now = Content()
        self.clock_ms = 0
        """The ledger's clock, as records tell it."""
        self.correlation_id = ""
        """Of the records that come."""
        self.unreachable = False
        self.before_call: Callable[[str], None] | None = None
        self.calls: list[str] = []
        self._lock = Lock()

    # --- LedgerReader ------------------------------------------------------------------------------------

    def head(self) -> Head:
        self._called("head")
        return self._head()

    def policies(self) -> PolicyState:
        self._called("policies")
        stops = [stop for (_, sku), stop in self.now.stops.items() if not sku]
        return PolicyState(
            self._head(),
            list(self.now.nodes.values()),
            list(self.now.channels.values()),
            stops,
            list(self.now.kits.values()),
            list(self.now.feeds.values()),
        )

    def page(self, index: int, count: int) -> Page:
        self._called("page")
        others = [sku for _, sku in [*self.now.overrides, *self.now.stops, *self.now.fences] if sku]
        names = list(dict.fromkeys([*self.now.positions, *others]))
        skus = [self._sku(sku) for sku in names[index : index + count]]
        return Page(self._head(), -1 if len(skus) < count else index + count, skus)

    def skus(self, names: list[str]) -> Page:
        self._called("skus")
        return Page(self._head(), -1, [self._sku(sku) for sku in names])

    def read(self, after: Version, count: int, block_ms: int) -> list[Entry]:
        self._called("read")
        return [entry for entry in self.now.log if entry.version > after][:count]

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.before_call is not None:
            self.before_call(what)
        if self.unreachable:
            raise LedgerUnreachable("no answer")

    def _head(self) -> Head:
        with self._lock:
            return Head(self.ledger_id, self.now.epoch, self.now.seq, self.now.chain, self.clock_ms)

    def _sku(self, sku: str) -> SkuState:
        return SkuState(
            sku,
            [PositionState(node, *figures) for node, figures in self.now.positions.get(sku, {}).items()],
            [override for (_, name), override in self.now.overrides.items() if name == sku],
            [stop for (_, name), stop in self.now.stops.items() if name == sku and sku],
            [fence for (_, name), fence in self.now.fences.items() if name == sku],
        )

    # --- Verbs -------------------------------------------------------------------------------------------

    @property
    def version(self) -> Version:
        return Version(self.now.epoch, self.now.seq)

    def emit(
        self, kind: int, changes: Iterable[PositionChange], body: object, fences: Iterable[FenceLeft] = ()
    ) -> Version:
        """Log one record as the functions do."""
        fields = [kind, self.clock_ms, "author", self.correlation_id, "", list(changes), body]
        if fences:
            fields.append(list(fences))
        return self.append(_encode(fields))

    def append(self, raw: bytes) -> Version:
        """Log bytes, whatever they are."""
        now = self.now
        version = Version(now.epoch, now.seq + 1)
        chain = chain_after(now.chain, str(version), raw)
        with self._lock:
            now.log.append(Entry(version, chain, raw))
            now.seq, now.chain = version.seq, chain
        return version

    def put(self, *rows: tuple[str, str, Figures], declare: bool = True) -> Version:
        """Set positions by one DELTAS record; nodes that are new are declared in it."""
        declared = []
        for _, node, _ in rows:
            if declare and node not in self.now.nodes:
                declared.append(self._node(node, 1, 0))
        changes = [self._change(sku, node, figures) for sku, node, figures in rows]
        return self.emit(Kind.DELTAS, changes, DeltasBody("wms", [], [], declared, [], []))

    def reserve(self, sku: str, node: str, quantity: int) -> Version:
        """Move units of one position to reserved, by a RESERVED record."""
        a, b, reserved, c, d = self.now.positions[sku][node]
        change = self._change(sku, node, (a, b, reserved + quantity, c, d))
        return self.emit(Kind.RESERVED, [change], ReservedBody("r", "web", "", "", 0, []))

    def reserve_fenced(self, channel: str, sku: str, node: str, quantity: int) -> Version:
        """Move units to reserved (less than none: back), and out of the channel's fence."""
        a, b, reserved, c, d = self.now.positions[sku][node]
        change = self._change(sku, node, (a, b, reserved + quantity, c, d))
        fence = self.now.fences[channel, sku]
        left = max(0, fence.left - quantity)
        self.now.fences[channel, sku] = msgspec.structs.replace(fence, left=left)
        body = ReservedBody("r", channel, "", "", 0, [])
        return self.emit(Kind.RESERVED, [change], body, [FenceLeft(channel, sku, left, fence.version)])

    def set_fence(self, channel: str, sku: str, left: int) -> Version:
        fence = FenceState(channel, sku, left, self._next(), "fay", "launch", 10)
        self.now.fences.pop((channel, sku), None)
        if left:
            self.now.fences[channel, sku] = fence
        return self._policy(fences=[fence])

    def set_kit(self, kit: str, **flat: int) -> Version:
        """Set a kit's recipe in plain skus; no parts remove it."""
        parts = sorted(flat.items())
        state = KitState(kit, parts, parts, self._next(), "kim", "bundle", 11)
        self.now.kits.pop(kit, None)
        if parts:
            self.now.kits[kit] = state
        return self._policy(kits=[state])

    def set_feed(self, source: str, node: str, interval_ms: int = 1_000) -> Version:
        feed = FeedState(source, node, interval_ms, 0, False, self._next(), "fred", "nightly", 12)
        self.now.feeds.pop((source, node), None)
        if interval_ms:
            self.now.feeds[source, node] = feed
        return self._policy(feeds=[feed])

    def hear(self, source: str, node: str, *, stale: bool) -> Version:
        """Let a feed cross its limit."""
        feed = self.now.feeds[source, node]
        self.now.feeds[source, node] = msgspec.structs.replace(feed, stale=stale)
        return self.emit(Kind.FEED, [], FeedBody(source, node, stale, 0))

    def set_node(self, node: str, state: int = 1, safety_stock: int = 0) -> Version:
        return self._policy(nodes=[self._node(node, state, safety_stock)])

    def set_channel(self, channel: str, nodes: list[str] | None = None, **changes: int) -> Version:
        """Declare a channel; ``nodes`` None is all of them."""
        state = msgspec.structs.replace(
            default_channel(channel),
            all_nodes=nodes is None,
            nodes=nodes or [],
            version=self._next(),
            author="ann",
            reason="because",
            clock_ms=7,
            **changes,
        )
        self.now.channels[channel] = state
        return self._policy(channels=[state])

    def set_override(
        self, channel: str, sku: str, units: int = -1, percent: int = -1, limit: int = -1, excluded: str = ""
    ) -> Version:
        """Set an override; ``excluded`` is one character per node."""
        state = OverrideState(
            channel, sku, units, percent, limit, -1, list(excluded), self._next(), "bob", "why not", 8
        )
        self.now.overrides[channel, sku] = state
        return self._policy(overrides=[state])

    def clear_override(self, channel: str, sku: str) -> Version:
        self.now.overrides.pop((channel, sku), None)
        return self._policy(cleared=[(channel, sku)])

    def set_stop(self, channel: str, sku: str, *, blocked: bool = True) -> Version:
        state = StopState(channel, sku, blocked, self._next(), "eve", "recall", 9)
        self.now.stops.pop((channel, sku), None)
        if blocked:
            self.now.stops[channel, sku] = state
        return self._policy(stops=[state])

    def hand_shake(self) -> Version:
        """End the epoch here and begin the next."""
        body = EpochBody(self.now.epoch, self.now.seq, self.now.chain)
        self.now.epoch, self.now.seq = self.now.epoch + 1, 0
        return self.emit(Kind.EPOCH, [], body)

    def trim(self, keep: int) -> None:
        self.now.log = self.now.log[len(self.now.log) - keep :] if keep else []

    def _policy(self, **lists: list) -> Version:
        body = {"nodes": [], "channels": [], "overrides": [], "cleared": [], "stops": [], **lists}
        return self.emit(Kind.POLICY, [], PolicyBody(reason="because", **body))

    def _node(self, node: str, state: int, safety_stock: int) -> NodeState:
        made = NodeState(node, state, safety_stock, self._next(), "ann", "because", 6)
        self.now.nodes[node] = made
        return made

    def _change(self, sku: str, node: str, figures: Figures) -> PositionChange:
        old = self.now.positions.setdefault(sku, {}).get(node, (0, 0, 0, 0, -1))
        self.now.positions[sku][node] = figures
        moved = [new - before for new, before in zip(figures[:4], old[:4], strict=True)]
        return PositionChange(sku, node, *figures, *moved)

    def _next(self) -> str:
        return str(Version(self.now.epoch, self.now.seq + 1))

    # --- What is right -----------------------------------------------------------------------------------

    def plain(self, channel: str, sku: str) -> tuple[dict[str, PlainPosition], PlainChannel]:
        """Return what the plain formula needs."""
        now = self.now
        policy = now.channels.get(channel) or default_channel(channel)
        override = now.overrides.get((channel, sku))
        units, percent, limit = policy.buffer_units, policy.buffer_percent, policy.oversell_limit
        if override and (override.buffer_units >= 0 or override.buffer_percent >= 0):
            units, percent = override.buffer_units, override.buffer_percent
        if override and override.oversell_limit >= 0:
            limit = override.oversell_limit
        nodes = sorted(now.nodes, key=str.encode) if policy.all_nodes else policy.nodes
        offline = {node for node in nodes if node not in now.nodes or now.nodes[node].state != 1}
        if policy.staleness == 2:
            offline |= {feed.node for feed in now.feeds.values() if feed.stale}
        positions = {
            node: PlainPosition(*figures[:4], figures[4] if figures[4] >= 0 else now.nodes[node].safety_stock)
            for node, figures in now.positions.get(sku, {}).items()
        }
        return positions, PlainChannel(
            nodes=tuple(nodes),
            units=units,
            percent=percent,
            oversell_limit=limit,
            low_stock_threshold=policy.low_stock_threshold,
            not_counted=frozenset(offline | set(override.excluded_nodes if override else ())),
            blocked=bool({("", sku), (channel, ""), (channel, sku)} & now.stops.keys()),
        )

    def answer(self, channel: str, sku: str) -> tuple[int, int]:
        kit = self.now.kits.get(sku)
        if kit is None:
            return plain_answer(*self.plain(channel, sku), self._fences(channel, sku))
        policy = self.plain(channel, sku)[1]
        parts = [(self.answer(channel, part), units) for part, units in kit.flat]
        return plain_kit(parts, policy.low_stock_threshold, policy.blocked)

    def node_answers(self, channel: str, sku: str) -> list[tuple[str, int, int]]:
        if sku in self.now.kits:
            return []
        positions, policy = self.plain(channel, sku)
        fences = self._fences(channel, sku)
        return [(node, *plain_node(positions, policy, node, fences)) for node in policy.nodes]

    def _fences(self, channel: str, sku: str) -> list[PlainFence]:
        return [
            PlainFence(fence.left, self.plain(other, sku)[1])
            for (other, name), fence in self.now.fences.items()
            if name == sku and other != channel
        ]
