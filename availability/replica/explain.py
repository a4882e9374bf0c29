"""One sku of one channel laid open: every term of the formula per node, and which policy gave each number.

Works on copies taken at one version; the terms add up to the answer because the same formula adds them.
Orders and holds behind the sums are not the replica's business (history knows them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from availability.domain import formula
from availability.domain.formula import Flags, Ints
from availability.domain.version import Version
from availability.ledger.record import (
    ChannelState,
    FeedState,
    FenceState,
    KitState,
    NodeState,
    OverrideState,
    StopState,
)
from availability.replica.columns import COMMITTED, FIELDS, ON_HAND, QUARANTINED, RESERVED, SAFETY_STOCK, Rows
from availability.replica.compute import safety_stocks, shared_terms
from availability.replica.fences import FencesOfSku
from availability.replica.policies import EXCLUDE, Channel, Policies


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeValue:
    """One node's share of an answer: max(0, net), and what a reservation naming it could get."""

    node: str
    free: int
    sellable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTerms:
    """Terms of one position. ``not_counted_reason`` is OFFLINE, EXCLUDED, FEED_STALE or empty."""

    node: str
    sourcing_rank: int
    on_hand: int
    quarantined: int
    safety_stock: int
    give: int
    reserved: int
    committed: int
    net: int
    free: int
    counted: bool
    not_counted_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerm:
    """Which policy gave a number.

    ``term`` is buffer, oversell_limit, safety_stock, sale_state, excluded_nodes, ring_fence, feed (one that is
    stale and leaves its node out) or kit; ``level`` is DEFAULT, CHANNEL, SKU, SKU_OVERRIDE, NODE or POSITION.
    Version, author, reason and clock_ms are those of its last change, empty where nobody set it, and for a
    position's own safety stock, of which the ledger keeps the number only.
    """

    term: str
    level: str
    value: str
    version: str
    author: str
    reason: str
    clock_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceTerm:
    """One channel's ring-fence of the sku; ``counted`` of what is ``left`` the asking channel must leave."""

    channel: str
    left: int
    counted: int
    generation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentTerm:
    """One plain sku of a kit, ``units`` of it in each, and what the channel can sell of it."""

    sku: str
    units: int
    sellable: int
    state: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The whole sum behind one answer, all at ``version``; ``nodes`` are the channel's, in sourcing order.

    A kit has ``components`` instead of a sum: its sellable is the least of theirs over their units.
    """

    channel: str
    sku: str
    version: Version
    sellable: int
    state: int
    pool: int
    buffer: int
    fenced: int
    oversell_limit: int
    blocked: bool
    known: bool
    nodes: tuple[NodeTerms, ...]
    policies: tuple[PolicyTerm, ...]
    fences: tuple[FenceTerm, ...] = ()
    components: tuple[ComponentTerm, ...] = ()


class Sheet:
    """One sku spread over the channel's nodes in sourcing order; a node without a position has zeros."""

    def __init__(self, rows: Rows, fences: FencesOfSku, policies: Policies, channel: Channel) -> None:
        self._policies, self._channel, self._fences = policies, channel, fences
        self._rows = rows
        self._sku = int(rows.skus[0]) if rows.skus.size else -1
        order = channel.order
        values = np.zeros((order.size, FIELDS), np.int64)
        values[:, SAFETY_STOCK] = -1
        places = np.full(len(policies.nodes.names), -1, np.int64)
        places[order] = np.arange(order.size)
        at = places[rows.nodes]
        values[at[at >= 0]] = rows.values[at >= 0]
        self._own_safety = values[:, SAFETY_STOCK] >= 0
        self._safety = safety_stocks(values, policies.nodes, order)
        self._values = values
        self._gives = formula.give(values[:, ON_HAND], values[:, QUARANTINED], self._safety)
        self._nets = formula.net(self._gives, values[:, RESERVED], values[:, COMMITTED])
        skus = np.array([self._sku], np.int64)
        spread = Rows(
            skus=skus, offsets=np.array([0, order.size]), nodes=order.astype(np.int32), values=values
        )
        self._counted = channel.counted_rows(spread)
        self._known = np.array([rows.nodes.size > 0])
        self._stops = _stops(policies, channel, self._sku)
        self._units, self._percent, self._limit = (_one(number) for number in channel.numbers(skus))
        self._kept = self._kept_for_others()
        self._sums(spread.offsets, channel)
        self._spread = spread

    def _kept_for_others(self) -> list[int]:
        """Return per fence what this channel must leave for it."""
        if not self._fences:
            return []
        rows = self._rows
        frees = formula.free(shared_terms(rows, self._policies, {}).nets)
        ours = self._channel.counted_rows(rows)
        kept = []
        for fence in self._fences:
            if fence.channel == self._channel.state.channel:
                kept.append(0)
                continue
            channel = self._policies.channel(fence.channel)
            theirs = channel.counted_rows(rows)
            shared = self._channel.meets(channel.nodes_of(self._sku)[np.newaxis], rows.skus)
            kept.append(int(formula.kept(fence.left, frees, theirs, ours, shared, rows.offsets)[0]))
        return kept

    def _kept_by_node(self) -> Ints:
        """Return per node of the channel what it must leave for fences if it had only that node."""
        total = np.zeros(self._nets.size, np.int64)
        rows = self._rows
        for fence in self._fences:
            if fence.channel == self._channel.state.channel:
                continue
            channel = self._policies.channel(fence.channel)
            frees = formula.free(shared_terms(rows, self._policies, {}).nets)
            theirs_free = int(frees[channel.counted_rows(rows)].sum())
            here = channel.counted_rows(self._spread)
            total += formula.kept_at_node(fence.left, theirs_free, formula.free(self._nets), here)
        return total

    def _sums(self, offsets: Ints, channel: Channel) -> None:
        member: Flags = np.ones(self._nets.size, np.bool_)
        pools = formula.pool(self._nets, self._counted, member, offsets)
        buffers = formula.buffer(self._units, self._percent, self._gives, self._counted, offsets)
        blocked = bool(self._stops)
        fenced = sum(self._kept)
        sellables = formula.sellable(pools, buffers, fenced, self._limit, blocked, self._known)
        threshold = channel.state.low_stock_threshold
        states = formula.state(pools, buffers, fenced, sellables, threshold, blocked, self._known)
        self._pool, self._buffer = int(pools[0]), _one(buffers)
        self.sellable, self.state = int(sellables[0]), int(states[0])

    def node_values(self) -> list[NodeValue]:
        """Return each node's share, in sourcing order."""
        shares = formula.node_sellable(
            self._nets,
            self._gives,
            self._counted,
            self._units,
            self._percent,
            self._limit,
            self.sellable,
            self._kept_by_node() if self._fences else 0,
        )
        free = np.maximum(self._nets, 0)
        names = self._names()
        return [
            NodeValue(node=name, free=units, sellable=share)
            for name, units, share in zip(names, free.tolist(), shares.tolist(), strict=True)
        ]

    def terms(self, channel: str, sku: str, version: Version) -> Terms:
        """Return every term."""
        return Terms(
            channel=channel,
            sku=sku,
            version=version,
            sellable=self.sellable,
            state=self.state,
            pool=self._pool,
            buffer=self._buffer,
            fenced=sum(self._kept),
            oversell_limit=self._limit,
            blocked=bool(self._stops),
            known=bool(self._known[0]),
            nodes=tuple(self._node_terms()),
            policies=tuple(self._policy_terms()),
            fences=tuple(
                FenceTerm(channel=fence.channel, left=fence.left, counted=kept, generation=fence.version)
                for fence, kept in zip(self._fences, self._kept, strict=True)
            ),
        )

    def _names(self) -> list[str]:
        names = self._policies.nodes.names
        return [names[node] for node in self._channel.order.tolist()]

    def _node_terms(self) -> list[NodeTerms]:
        terms = []
        for rank, name in enumerate(self._names()):
            on_hand, quarantined, reserved, committed = self._values[rank, :SAFETY_STOCK].tolist()
            net = int(self._nets[rank])
            terms.append(
                NodeTerms(
                    node=name,
                    sourcing_rank=rank,
                    on_hand=on_hand,
                    quarantined=quarantined,
                    safety_stock=int(self._safety[rank]),
                    give=int(self._gives[rank]),
                    reserved=reserved,
                    committed=committed,
                    net=net,
                    free=max(0, net),
                    counted=bool(self._counted[rank]),
                    not_counted_reason=self._why_not_counted(rank),
                )
            )
        return terms

    def _why_not_counted(self, rank: int) -> str:
        if self._counted[rank]:
            return ""
        node = int(self._channel.order[rank])
        if not self._policies.nodes.online[node]:
            return "OFFLINE"
        return "EXCLUDED" if self._channel.counted[node] else "FEED_STALE"

    def _policy_terms(self) -> list[PolicyTerm]:
        channel, state = self._channel, self._channel.state
        level = "CHANNEL" if channel.declared else "DEFAULT"
        own = channel.overrides.by_sku.get(self._sku)
        buffered = own if own and (own.buffer_units >= 0 or own.buffer_percent >= 0) else None
        limited = own if own and own.oversell_limit >= 0 else None
        value = f"{self._percent} percent" if self._percent >= 0 else f"{self._units} units"
        terms = [
            _term("buffer", "SKU_OVERRIDE" if buffered else level, value, buffered or state),
            _term(
                "oversell_limit",
                "SKU_OVERRIDE" if limited else level,
                f"{self._limit} units",
                limited or state,
            ),
        ]
        if own and own.excluded_nodes:
            terms.append(_term("excluded_nodes", "SKU_OVERRIDE", ", ".join(own.excluded_nodes), own))
        terms += [_term("sale_state", _stop_level(stop), "BLOCKED", stop) for stop in self._stops]
        terms += [
            _term("ring_fence", "SKU_OVERRIDE", f"{fence.channel}: {fence.left} units left", fence)
            for fence in self._fences
        ]
        return terms + self._feed_terms() + self._safety_terms()

    def _feed_terms(self) -> list[PolicyTerm]:
        if self._channel.state.staleness != EXCLUDE:
            return []
        names = set(self._names())
        feeds = self._policies.nodes.feeds.values()
        return [
            _term("feed", "NODE", f"{feed.node}: {feed.source} is silent", feed)
            for feed in feeds
            if feed.stale and feed.node in names
        ]

    def _safety_terms(self) -> list[PolicyTerm]:
        terms = []
        names = self._names()
        for rank in np.flatnonzero(self._own_safety | (self._safety != 0)).tolist():
            value = f"{names[rank]}: {self._safety[rank]} units"
            own = self._own_safety[rank]
            node = None if own else self._policies.nodes.states[int(self._channel.order[rank])]
            terms.append(_term("safety_stock", "POSITION" if own else "NODE", value, node))
        return terms


def kit_terms(
    channel: str,
    kit: KitState,
    number: int,
    sheets: Sequence[Sheet],
    policies: Policies,
    version: Version,
) -> Terms:
    """Return a kit's terms; ``sheets`` are those of the recipe's plain skus, in its order."""
    own = policies.channel(channel)
    stops = _stops(policies, own, number)
    sellables, states = formula.kits(
        np.array([sheet.sellable for sheet in sheets], np.int64),
        np.array([sheet.state for sheet in sheets], np.int64),
        np.array([units for _, units in kit.flat], np.int64),
        np.array([0, len(sheets)], np.int64),
        own.state.low_stock_threshold,
        bool(stops),
    )
    recipe = ", ".join(f"{units} × {sku}" for sku, units in kit.flat)
    return Terms(
        channel=channel,
        sku=kit.kit_sku,
        version=version,
        sellable=int(sellables[0]),
        state=int(states[0]),
        pool=0,
        buffer=0,
        fenced=0,
        oversell_limit=0,
        blocked=bool(stops),
        known=True,
        nodes=(),
        policies=(
            _term("kit", "SKU", recipe, kit),
            *(_term("sale_state", _stop_level(stop), "BLOCKED", stop) for stop in stops),
        ),
        components=tuple(
            ComponentTerm(sku=sku, units=units, sellable=sheet.sellable, state=sheet.state)
            for (sku, units), sheet in zip(kit.flat, sheets, strict=True)
        ),
    )


def _term(
    term: str,
    level: str,
    value: str,
    source: ChannelState | OverrideState | StopState | NodeState | FenceState | FeedState | KitState | None,
) -> PolicyTerm:
    return PolicyTerm(
        term=term,
        level=level,
        value=value,
        version=source.version if source else "",
        author=source.author if source else "",
        reason=source.reason if source else "",
        clock_ms=source.clock_ms if source else 0,
    )


def _stops(policies: Policies, channel: Channel, sku: int) -> list[StopState]:
    stops = (channel.stop, policies.stops.by_sku.get(sku), channel.stops.by_sku.get(sku))
    return [stop for stop in stops if stop is not None]


def _stop_level(stop: StopState) -> str:
    if not stop.sku:
        return "CHANNEL"
    return "SKU_OVERRIDE" if stop.channel else "SKU"


def _one(number: Ints | int) -> int:
    return number if isinstance(number, int) else int(number.reshape(-1)[0])
