"""One sku of one channel laid open: every term of the formula per node, and which policy gave each number.

Works on copies taken at one version; the terms add up to the answer because the same formula adds them.
Orders and holds behind the sums are not the replica's business (history knows them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from availability.domain import formula
from availability.domain.formula import Flags, Ints
from availability.domain.version import Version
from availability.ledger.record import ChannelState, NodeState, OverrideState, StopState
from availability.replica.columns import COMMITTED, FIELDS, ON_HAND, QUARANTINED, RESERVED, SAFETY_STOCK, Rows
from availability.replica.compute import FENCED, safety_stocks
from availability.replica.policies import Channel, Policies


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

    ``term`` is buffer, oversell_limit, safety_stock, sale_state or excluded_nodes; ``level`` is DEFAULT,
    CHANNEL, SKU, SKU_OVERRIDE, NODE or POSITION. Version, author, reason and clock_ms are those of its last
    change, empty where nobody set it, and for a position's own safety stock, of which the ledger keeps the
    number only.
    """

    term: str
    level: str
    value: str
    version: str
    author: str
    reason: str
    clock_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The whole sum behind one answer, all at ``version``; ``nodes`` are the channel's, in sourcing order."""

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


class Sheet:
    """One sku spread over the channel's nodes in sourcing order; a node without a position has zeros."""

    def __init__(self, rows: Rows, policies: Policies, channel: Channel) -> None:
        self._policies, self._channel = policies, channel
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
        self._sums(spread.offsets, channel)

    def _sums(self, offsets: Ints, channel: Channel) -> None:
        member: Flags = np.ones(self._nets.size, np.bool_)
        pools = formula.pool(self._nets, self._counted, member, offsets)
        buffers = formula.buffer(self._units, self._percent, self._gives, self._counted, offsets)
        blocked = bool(self._stops)
        sellables = formula.sellable(pools, buffers, FENCED, self._limit, blocked, self._known)
        threshold = channel.state.low_stock_threshold
        states = formula.state(pools, buffers, FENCED, sellables, threshold, blocked, self._known)
        self._pool, self._buffer = int(pools[0]), _one(buffers)
        self.sellable, self.state = int(sellables[0]), int(states[0])

    def node_values(self) -> list[NodeValue]:
        """Return each node's share, in sourcing order."""
        shares = formula.node_sellable(
            self._nets, self._gives, self._counted, self._units, self._percent, self._limit, self.sellable
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
            fenced=FENCED,
            oversell_limit=self._limit,
            blocked=bool(self._stops),
            known=bool(self._known[0]),
            nodes=tuple(self._node_terms()),
            policies=tuple(self._policy_terms()),
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
        return terms + self._safety_terms()

    def _safety_terms(self) -> list[PolicyTerm]:
        terms = []
        names = self._names()
        for rank in np.flatnonzero(self._own_safety | (self._safety != 0)).tolist():
            value = f"{names[rank]}: {self._safety[rank]} units"
            own = self._own_safety[rank]
            node = None if own else self._policies.nodes.states[int(self._channel.order[rank])]
            terms.append(_term("safety_stock", "POSITION" if own else "NODE", value, node))
        return terms


def _term(
    term: str, level: str, value: str, source: ChannelState | OverrideState | StopState | NodeState | None
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
