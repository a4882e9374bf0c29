"""The formula: what a channel can sell."""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.state import Node, Position, State
from tests.model.told import Override, Policy, Refusal, Terms
from tests.model.totals import by_name


class Formula(State):
    """The formula, term by term."""

    def give(self, sku: str, node: str) -> int:
        position = self.positions.get(sku, {}).get(node, Position())
        quarantined = max(0, sum(position.quarantined.values()))
        return max(0, position.on_hand - quarantined - self.safety_stock(sku, node))

    def net(self, sku: str, node: str) -> int:
        return self.give(sku, node) - self.reserved(sku, node) - self.committed(sku, node)

    def free(self, sku: str, node: str) -> int:
        return max(0, self.net(sku, node))

    def reserved(self, sku: str, node: str) -> int:
        return self._reserved.get((sku, node), 0)

    def committed(self, sku: str, node: str) -> int:
        return self._committed.get((sku, node), 0)

    def safety_stock(self, sku: str, node: str) -> int:
        own = self.positions.get(sku, {}).get(node, Position()).safety_stock
        return self.nodes.get(node, Node()).safety_stock if own is None else own

    def policy(self, channel: str) -> Policy:
        if channel not in self.channels and not self.auto_create:
            raise Refusal("UNKNOWN_CHANNEL")
        return self.channels.get(channel, Policy())

    def channel_nodes(self, channel: str) -> list[str]:
        """All nodes of a channel, in sourcing order."""
        nodes = self.policy(channel).nodes
        return by_name(self.nodes) if nodes is None else list(nodes)

    def serves(self, channel: str, sku: str, node: str) -> bool:
        """Tell whether a node of the channel is in N."""
        excluded = self.overrides.get((channel, sku), Override()).excluded_nodes
        stale = any(is_stale for (_, of), is_stale in self.feeds.items() if of == node)
        left_out = stale and self.policy(channel).exclude_stale
        return self.nodes[node].online and node not in excluded and not left_out

    def blocked(self, channel: str, sku: str) -> bool:
        return bool(self.stops & {(channel, ""), ("", sku), (channel, sku)})

    def fenced(self, channel: str, sku: str, mine: Iterable[str]) -> int:
        """What a channel that sells from these nodes must leave for the fences of others.

        A fence is covered first by what is free where its channel sells and this one does not; a channel that
        shares no node with it owes it nothing.
        """
        mine = set(mine)
        total = 0
        for (other, of), fence in self.fences.items():
            if of != sku or other == channel:
                continue
            theirs = set(self._serving(other, sku))
            if mine & theirs:
                total += max(0, fence.left - sum(self.free(sku, node) for node in theirs - mine))
        return total

    def terms(self, channel: str, sku: str, node: str = "") -> Terms:
        """Work out the formula; with a node, as if the channel had only that node."""
        policy = self.policy(channel)
        override = self.overrides.get((channel, sku), Override())
        pool = 0
        gives = 0
        counted = []
        for name in [node] if node else self.channel_nodes(channel):
            if self.serves(channel, sku, name):
                pool += self.net(sku, name)
                gives += self.give(sku, name)
                counted.append(name)
            else:
                pool += min(0, self.net(sku, name))
        buffer = policy.buffer if override.buffer is None else override.buffer
        kept = buffer.units + -(-buffer.percent * gives // 100)
        oversell = policy.oversell_limit if override.oversell_limit is None else override.oversell_limit

        fenced = self.fenced(channel, sku, counted)
        blocked = self.blocked(channel, sku)
        known = bool(self.positions.get(sku))
        sellable = max(0, pool - kept - fenced + oversell) if known and not blocked else 0
        if not known:
            state = "UNKNOWN_SKU"
        elif blocked:
            state = "BLOCKED"
        elif sellable == 0:
            state = "OUT_OF_STOCK"
        elif pool - kept - fenced <= 0:
            state = "OVERSELLING"
        elif sellable <= policy.low_stock_threshold:
            state = "LOW_STOCK"
        else:
            state = "IN_STOCK"
        return Terms(sellable, state, pool, kept, fenced, oversell, blocked)

    def sellable(self, channel: str, sku: str) -> int:
        return self.terms(channel, sku).sellable

    def state(self, channel: str, sku: str) -> str:
        return self.terms(channel, sku).state

    def node_sellable(self, channel: str, sku: str, node: str) -> int:
        """What a reservation that names this node could get; nothing where the node is not in N."""
        if node not in self.channel_nodes(channel) or not self.serves(channel, sku, node):
            return 0
        return min(self.terms(channel, sku, node).sellable, self.sellable(channel, sku))

    def grantable(self, channel: str, sku: str, node: str = "") -> int:
        """What a reservation could get: the sellable, and nothing where no node is left to take it from."""
        if node:
            return self.node_sellable(channel, sku, node)
        return self.sellable(channel, sku) if self._serving(channel, sku) else 0

    def _serving(self, channel: str, sku: str) -> list[str]:
        """N, in sourcing order."""
        return [node for node in self.channel_nodes(channel) if self.serves(channel, sku, node)]
