"""Policies as the replica needs them: immutable, replaced as a whole, with arrays ready for the formula.

A change makes a new ``Policies`` that shares what did not change, so a reader that took one keeps a
consistent view. It decides nothing by itself: precedence is CONTRACT section 2 ((sku, channel) over channel
over default), sums are ``domain.formula``. Names become numbers here (nodes) and in ``state`` (skus).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from msgspec import structs

from availability.domain.formula import Flags, Ints, IntsLike, counted_nodes
from availability.ledger.record import (
    ChannelState,
    FeedState,
    KitState,
    NodeState,
    OverrideState,
    PolicyBody,
    StopState,
)
from availability.replica.columns import NODE_BITS, NODES_MAX, Rows, contains
from availability.replica.kits import NO_KITS, Kits

ONLINE = 1
EXCLUDE = 2
"""Of availability.v1: NodeState and Staleness."""

_NONE: Ints = np.empty(0, np.int64)


def default_channel(channel: str) -> ChannelState:
    """Return the policy of a channel that nobody declared: every node, no buffer (CONTRACT section 2)."""
    return ChannelState(
        channel=channel,
        all_nodes=True,
        nodes=[],
        buffer_units=0,
        buffer_percent=-1,
        oversell_limit=0,
        low_stock_threshold=0,
        publish_limit=-1,
        staleness=1,
        unreachable=1,
        version="",
        author="",
        reason="",
        clock_ms=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Every node that was ever named, by number. ``states`` is None for one that nobody declared."""

    index: Mapping[str, int]
    names: tuple[str, ...]
    states: tuple[NodeState | None, ...]
    online: Flags
    stale: Flags  # one of its watched feeds is silent for too long
    safety_stock: Ints
    by_name: Ints  # declared nodes in bytewise order of their names
    feeds: Mapping[tuple[str, str], FeedState]
    """Watched feeds by (source, node)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """Stops in force of single skus, by sku number."""

    by_sku: Mapping[int, StopState]
    skus: Ints  # sorted

    def hit(self, skus: Ints) -> Flags | bool:
        return contains(self.skus, skus) if self.skus.size else False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What differs for single skus of a channel: arrays sorted by sku number, -1 where absent."""

    by_sku: Mapping[int, OverrideState]
    skus: Ints
    units: Ints
    percent: Ints
    oversell_limit: Ints
    excluded: Ints  # sorted row keys (sku number × 2**20 + node number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One channel's policy in effect. ``member`` and ``counted`` are per node, ``order`` is for sourcing."""

    state: ChannelState
    declared: bool
    order: Ints
    member: Flags
    counted: Flags
    overrides: Overrides
    stop: StopState | None
    stops: Stops

    def numbers(self, skus: Ints) -> tuple[IntsLike, IntsLike, IntsLike]:
        """Return buffer units, buffer percent (-1: units count) and oversell_limit for some skus."""
        units, percent, limit = self.state.buffer_units, self.state.buffer_percent, self.state.oversell_limit
        own = self.overrides
        if not own.skus.size:
            return units, percent, limit
        at = np.searchsorted(own.skus, skus)
        hit = contains(own.skus, skus, at)
        if not hit.any():
            return units, percent, limit
        at = np.minimum(at, own.skus.size - 1)
        buffered = hit & ((own.units[at] >= 0) | (own.percent[at] >= 0))
        limited = hit & (own.oversell_limit[at] >= 0)
        return (
            np.where(buffered, own.units[at], units),
            np.where(buffered, own.percent[at], percent),
            np.where(limited, own.oversell_limit[at], limit),
        )

    def excludes(self, sku: int) -> Ints:
        """Return the nodes that are excluded for a sku."""
        keys = self.overrides.excluded
        if not keys.size:
            return keys
        first, last = np.searchsorted(keys, (sku << NODE_BITS, (sku + 1) << NODE_BITS))
        return keys[first:last] & (NODES_MAX - 1)

    def nodes_of(self, sku: int) -> Flags:
        """Return N of a sku, per node and whether it has stock there or not."""
        excluded = self.excludes(sku)
        if not excluded.size:
            return self.counted
        nodes = self.counted.copy()
        nodes[excluded] = False
        return nodes

    def has_node(self, sku: int) -> bool:
        """Say whether N of a sku has a node at all, stock or not: a grant needs one even to oversell."""
        return bool(self.nodes_of(sku).any())

    def meets(self, nodes: Flags, skus: Ints) -> Flags:
        """Say per sku (one may come several times) whether N has one of some nodes: ``nodes`` is skus × nodes."""
        met: Flags = np.logical_and(nodes, self.counted).any(axis=1)  # type: ignore[assignment]  # it is an array
        if self.overrides.excluded.size:
            mine = np.unique(self.overrides.excluded >> NODE_BITS)
            for at in np.flatnonzero(met & contains(mine, skus)).tolist():
                met[at] = (nodes[at] & self.nodes_of(int(skus[at]))).any()
        return met

    def counted_rows(self, rows: Rows) -> Flags:
        """Return per row whether its position is in N."""
        counted = self.counted[rows.nodes]
        if self.overrides.excluded.size:
            keys = np.repeat(rows.skus << NODE_BITS, np.diff(rows.offsets)) | rows.nodes
            counted &= ~contains(self.overrides.excluded, keys)
        return counted


@dataclass(slots=True)
class Changes:
    """Policy changes of a batch of records, folded: the latest of each thing."""

    nodes: dict[str, NodeState] = field(default_factory=dict)
    channels: dict[str, ChannelState] = field(default_factory=dict)
    overrides: dict[tuple[str, str], OverrideState | None] = field(default_factory=dict)
    stops: dict[tuple[str, str], StopState] = field(default_factory=dict)
    kits: dict[str, KitState] = field(default_factory=dict)
    feeds: dict[tuple[str, str], FeedState] = field(default_factory=dict)
    silences: dict[tuple[str, str], bool] = field(default_factory=dict)
    """Feeds (source, node) that became stale or fresh since they were set last."""
    seen_nodes: set[str] = field(default_factory=set)
    """Nodes that positions name; numbered even before they are declared."""
    seen_channels: set[str] = field(default_factory=set)
    """Channels that have a ring-fence; one without a policy gets answers of its own."""
    uncovered: set[str] = field(default_factory=set)
    """Skus of which an order fact promised more than anything covered; no policy, told on the way."""

    def __bool__(self) -> bool:
        return bool(
            self.nodes
            or self.channels
            or self.overrides
            or self.stops
            or self.kits
            or self.feeds
            or self.silences
            or self.seen_nodes
            or self.seen_channels
        )

    def add(self, body: PolicyBody) -> None:
        self.add_nodes(body.nodes)
        self.add_channels(body.channels)
        self.add_overrides(body.overrides)
        for channel, sku in body.cleared:
            self.overrides[channel, sku] = None
        self.add_stops(body.stops)
        self.add_kits(body.kits)
        self.add_feeds(body.feeds)

    def add_nodes(self, nodes: Iterable[NodeState]) -> None:
        self.nodes.update((node.node, node) for node in nodes)

    def add_channels(self, channels: Iterable[ChannelState]) -> None:
        self.channels.update((channel.channel, channel) for channel in channels)

    def add_overrides(self, overrides: Iterable[OverrideState]) -> None:
        self.overrides.update(((override.channel, override.sku), override) for override in overrides)

    def add_stops(self, stops: Iterable[StopState]) -> None:
        for stop in stops:
            if not stop.channel and not stop.sku:
                raise ValueError("a stop names neither a channel nor a sku")
            self.stops[stop.channel, stop.sku] = stop

    def add_kits(self, kits: Iterable[KitState]) -> None:
        for kit in kits:
            if any(units < 1 for _, units in kit.flat):
                raise ValueError(f"a kit has a part of which it needs none: {kit.kit_sku!r}")
            self.kits[kit.kit_sku] = kit

    def add_feeds(self, feeds: Iterable[FeedState]) -> None:
        for feed in feeds:
            self.feeds[feed.source, feed.node] = feed
            self.silences.pop((feed.source, feed.node), None)

    def add_silence(self, source: str, node: str, stale: bool) -> None:
        self.silences[source, node] = stale


@dataclass(slots=True)
class Moved:
    """What a policy change can move: everything, whole channels, or single skus."""

    everything: bool = False
    channels: set[str] = field(default_factory=set)
    skus: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """All policies at one version. ``channels`` have a policy, an override or a stop of their own."""

    nodes: Nodes
    channels: Mapping[str, Channel]
    default: Channel
    stops: Stops
    kits: Kits

    @classmethod
    def empty(cls) -> Policies:
        nodes = _nodes((), (), {})
        return cls(nodes=nodes, channels={}, default=_fresh("", nodes), stops=_stops({}), kits=NO_KITS)

    def channel(self, name: str) -> Channel:
        """Return a channel's policy, the default one for a channel that has none."""
        return self.channels.get(name, self.default)

    def changed(self, changes: Changes, number_of: Callable[[str], int]) -> tuple[Policies, Moved]:
        """Return the policies after some changes, and what these can move. ``number_of`` numbers skus.

        Raises ValueError for what cannot be applied.
        """
        moved = Moved()
        nodes = self._changed_nodes(changes, moved)
        channels = dict(self.channels)
        for name, state in changes.channels.items():
            channels[name] = replace(channels.get(name) or _fresh(name, nodes), state=state, declared=True)
            moved.channels.add(name)
        for name, overrides in _by_channel(changes.overrides, number_of).items():
            channel = channels.get(name) or _fresh(name, nodes)
            channels[name] = replace(channel, overrides=_overridden(channel.overrides, overrides, nodes))
            moved.skus.update(overrides)
        for name in changes.seen_channels:
            channels.setdefault(name, _fresh(name, nodes))
        stops = self._changed_stops(changes, channels, nodes, moved, number_of)
        kits = self._changed_kits(changes, moved, number_of)
        renewed = channels if nodes is not self.nodes else moved.channels
        for name in renewed:
            channels[name] = _placed(channels[name], nodes)
        self._note_silences(channels, nodes, moved)
        default = self.default if nodes is self.nodes else _placed(self.default, nodes)
        return Policies(nodes=nodes, channels=channels, default=default, stops=stops, kits=kits), moved

    def _changed_nodes(self, changes: Changes, moved: Moved) -> Nodes:
        states = dict(zip(self.nodes.names, self.nodes.states, strict=True))
        named = [*changes.seen_nodes, *(name for state in changes.channels.values() for name in state.nodes)]
        named += [name for state in changes.overrides.values() if state for name in state.excluded_nodes]
        named += [node for _, node in changes.feeds]
        new = {name for name in (*named, *changes.nodes) if name not in states}
        feeds = self._changed_feeds(changes)
        if not new and not changes.nodes and feeds is self.nodes.feeds:
            return self.nodes
        for name in sorted(new, key=str.encode):
            states[name] = None
        for name, node in changes.nodes.items():
            before = states[name]
            # A node that had no rows before this batch moves only skus that the batch touches anyway.
            if name not in new and (
                before is None or (before.state, before.safety_stock) != (node.state, node.safety_stock)
            ):
                moved.everything = True
            states[name] = node
        if len(states) > NODES_MAX:
            raise ValueError(f"more than {NODES_MAX} nodes")
        return _nodes(tuple(states), tuple(states.values()), feeds)

    def _changed_feeds(self, changes: Changes) -> Mapping[tuple[str, str], FeedState]:
        if not changes.feeds and not changes.silences:
            return self.nodes.feeds
        feeds = {**self.nodes.feeds, **changes.feeds}
        for name, stale in changes.silences.items():
            # A log that is replayed over newer policies may tell of a feed that is not watched any more.
            if name in feeds:
                feeds[name] = structs.replace(feeds[name], stale=stale)
        return {name: feed for name, feed in feeds.items() if feed.interval_ms}

    def _note_silences(self, channels: Mapping[str, Channel], nodes: Nodes, moved: Moved) -> None:
        """Note the channels for which a silent feed counts and a node's has gone silent or come back."""
        old = self.nodes.stale
        crossed = nodes.stale.copy()
        crossed[: old.size] ^= old
        if not crossed.any():
            return
        for name, channel in channels.items():
            if channel.state.staleness == EXCLUDE and (channel.member & crossed).any():
                moved.channels.add(name)

    def _changed_kits(self, changes: Changes, moved: Moved, number_of: Callable[[str], int]) -> Kits:
        if not changes.kits:
            return self.kits
        by_sku = {number_of(sku): kit for sku, kit in changes.kits.items()}
        moved.skus.update(by_sku)
        return self.kits.changed(by_sku, number_of)

    def _changed_stops(
        self,
        changes: Changes,
        channels: dict[str, Channel],
        nodes: Nodes,
        moved: Moved,
        number_of: Callable[[str], int],
    ) -> Stops:
        single: dict[str, dict[int, StopState]] = {}
        for (name, sku), stop in changes.stops.items():
            if sku:
                single.setdefault(name, {})[number_of(sku)] = stop
                continue
            channel = channels.get(name) or _fresh(name, nodes)
            channels[name] = replace(channel, stop=stop if stop.blocked else None)
            moved.channels.add(name)
        everywhere = self.stops
        for name, stops in single.items():
            moved.skus.update(stops)
            if name:
                channel = channels.get(name) or _fresh(name, nodes)
                channels[name] = replace(channel, stops=_stopped(channel.stops, stops))
            else:
                everywhere = _stopped(everywhere, stops)
        return everywhere


def _stopped(old: Stops, changes: Mapping[int, StopState]) -> Stops:
    return _stops({sku: stop for sku, stop in {**old.by_sku, **changes}.items() if stop.blocked})


def _stops(by_sku: dict[int, StopState]) -> Stops:
    return Stops(by_sku=by_sku, skus=np.sort(np.fromiter(by_sku, np.int64, len(by_sku))))


def _nodes(
    names: tuple[str, ...],
    states: tuple[NodeState | None, ...],
    feeds: Mapping[tuple[str, str], FeedState],
) -> Nodes:
    index = {name: number for number, name in enumerate(names)}
    silent = {feed.node for feed in feeds.values() if feed.stale}
    declared = sorted((name.encode(), number) for name, number in index.items() if states[number])
    return Nodes(
        index=index,
        names=names,
        states=states,
        online=np.array([state is not None and state.state == ONLINE for state in states], np.bool_),
        stale=np.array([name in silent for name in names], np.bool_),
        safety_stock=np.array([state.safety_stock if state else 0 for state in states], np.int64),
        by_name=np.array([number for _, number in declared], np.int64),
        feeds=feeds,
    )


def _fresh(name: str, nodes: Nodes) -> Channel:
    empty = np.empty(0, np.bool_)
    overrides = Overrides(
        by_sku={}, skus=_NONE, units=_NONE, percent=_NONE, oversell_limit=_NONE, excluded=_NONE
    )
    channel = Channel(
        state=default_channel(name),
        declared=False,
        order=_NONE,
        member=empty,
        counted=empty,
        overrides=overrides,
        stop=None,
        stops=_stops({}),
    )
    return _placed(channel, nodes)


def _placed(channel: Channel, nodes: Nodes) -> Channel:
    """Work out which nodes a channel has and counts."""
    state = channel.state
    if state.all_nodes:
        order = nodes.by_name
    else:
        order = np.array([nodes.index[name] for name in state.nodes], np.int64)
    member = np.zeros(len(nodes.names), np.bool_)
    member[order] = True
    counted = counted_nodes(member, nodes.online, nodes.stale, exclude_stale=state.staleness == EXCLUDE)
    return replace(channel, order=order, member=member, counted=counted)


def _by_channel(
    overrides: Mapping[tuple[str, str], OverrideState | None], number_of: Callable[[str], int]
) -> dict[str, dict[int, OverrideState | None]]:
    channels: dict[str, dict[int, OverrideState | None]] = {}
    for (channel, sku), state in overrides.items():
        channels.setdefault(channel, {})[number_of(sku)] = state
    return channels


def _overridden(old: Overrides, changes: dict[int, OverrideState | None], nodes: Nodes) -> Overrides:
    by_sku = dict(old.by_sku)
    for sku, state in changes.items():
        if state is None:
            by_sku.pop(sku, None)
        else:
            by_sku[sku] = state
    gone = np.sort(np.fromiter(changes, np.int64, len(changes)))
    new = sorted((sku, state) for sku, state in changes.items() if state is not None)
    keep = ~contains(gone, old.skus)
    skus = np.concatenate((old.skus[keep], np.array([sku for sku, _ in new], np.int64)))
    order = np.argsort(skus, kind="stable")

    def merged(column: Ints, values: list[int]) -> Ints:
        both: npt.NDArray[np.int64] = np.concatenate((column[keep], np.array(values, np.int64)))
        return both[order]

    excluded = [(sku << NODE_BITS) | nodes.index[name] for sku, state in new for name in state.excluded_nodes]
    kept = old.excluded[~contains(gone, old.excluded >> NODE_BITS)]
    return Overrides(
        by_sku=by_sku,
        skus=skus[order],
        units=merged(old.units, [state.buffer_units for _, state in new]),
        percent=merged(old.percent, [state.buffer_percent for _, state in new]),
        oversell_limit=merged(old.oversell_limit, [state.oversell_limit for _, state in new]),
        excluded=np.unique(np.concatenate((kept, np.array(excluded, np.int64)))),
    )
