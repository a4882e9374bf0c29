"""What people set: channels, overrides, nodes, stops, fences, kits and watched feeds."""

from __future__ import annotations

from tests.model.formula import Formula
from tests.model.state import Fence, Node
from tests.model.told import Lines, Override, Policy, Refusal
from tests.model.totals import add

KIT_DEPTH_MAX = 8
KIT_FLAT_MAX = 100


class Policies(Formula):
    """Setters, and what a kit is made of."""

    def set_channel(self, channel: str, policy: Policy) -> None:
        for node in policy.nodes or ():
            if node not in self.nodes and not self.auto_create:
                raise Refusal("UNKNOWN_NODE")
            self.nodes.setdefault(node, Node())
        self.channels[channel] = policy

    def set_override(self, channel: str, sku: str, override: Override) -> None:
        self.policy(channel)
        self.overrides[channel, sku] = override

    def clear_override(self, channel: str, sku: str) -> None:
        self.policy(channel)
        self.overrides.pop((channel, sku), None)

    def set_node(self, node: str, *, online: bool) -> None:
        self.nodes.setdefault(node, Node()).online = online

    def set_safety_stock(self, node: str, quantity: int | None, *, sku: str = "") -> None:
        """Set a position's safety stock (None: back to the node's default), or the node's default."""
        if node not in self.nodes:
            raise Refusal("UNKNOWN_NODE")
        if sku:
            self._position(sku, node).safety_stock = quantity
        else:
            self.nodes[node].safety_stock = quantity or 0

    def set_sale_state(self, *, channel: str = "", sku: str = "", blocked: bool) -> None:
        if blocked:
            self.stops.add((channel, sku))
        else:
            self.stops.discard((channel, sku))

    def set_fence(self, channel: str, sku: str, units: int) -> None:
        """Set what is left for the channel, as a new generation; 0 takes the fence away."""
        self.policy(channel)
        if units > max(0, self.terms(channel, sku).pool):
            raise Refusal("FENCE_OVER_POOL")
        self.fences.pop((channel, sku), None)
        if units:
            self.fences_set += 1
            self.fences[channel, sku] = Fence(units, self.fences_set)

    def set_kit(self, kit: str, components: Lines) -> dict[str, int]:
        """Set what a kit is made of; nothing: it is no kit any more. Answer its recipe in plain skus."""
        if components and self.positions.get(kit):
            raise Refusal("KIT_HAS_STOCK")
        before = dict(self.kits)
        self.kits.pop(kit, None)
        if components:
            self.kits[kit] = components
        try:
            for name in self.kits:
                if len(self._flatten(name, ())) > KIT_FLAT_MAX:
                    raise Refusal("KIT_TOO_LARGE")
        except Refusal:
            self.kits = before
            raise
        return self.recipe(kit) if components else {}

    def recipe(self, name: str) -> dict[str, int]:
        """The plain skus of one kit by name, equal ones added up; a plain sku is made of itself."""
        return dict(sorted(self._flatten(name, ()).items(), key=lambda entry: entry[0].encode()))

    def kit_sellable(self, channel: str, kit: str) -> int:
        """Whole kits that the channel can sell: an override of the kit's own code says nothing about it."""
        if self.blocked(channel, kit):
            return 0
        return min(self.sellable(channel, sku) // units for sku, units in self.recipe(kit).items())

    def _flatten(self, name: str, within: tuple[str, ...]) -> dict[str, int]:
        if name not in self.kits:
            return {name: 1}
        if name in within:
            raise Refusal("KIT_CYCLE")
        if len(within) == KIT_DEPTH_MAX:
            raise Refusal("KIT_TOO_DEEP")
        flat: dict[str, int] = {}
        for part, units in self.kits[name]:
            for sku, inner in self._flatten(part, (*within, name)).items():
                add(flat, sku, units * inner)
        return flat

    def set_feed(self, source: str, node: str, *, watched: bool) -> None:
        """Watch a feed, or watch it no more. A test says `silence` when one passed its limit."""
        if node not in self.nodes and not self.auto_create:
            raise Refusal("UNKNOWN_NODE")
        self.nodes.setdefault(node, Node())
        if watched:
            self.feeds.setdefault((source, node), False)
        else:
            self.feeds.pop((source, node), None)

    def heartbeat(self, source: str) -> None:
        """Hear an empty batch: it speaks for all nodes of the source."""
        for feed in self.feeds:
            if feed[0] == source:
                self.feeds[feed] = False

    def silence(self, source: str, node: str) -> None:
        """Let a watched feed be silent for longer than its limit."""
        assert (source, node) in self.feeds
        self.feeds[source, node] = True
