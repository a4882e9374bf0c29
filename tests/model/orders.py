"""What orders commit: evaluated anew after every fact, link and parting."""

from __future__ import annotations

from tests.model.facts import Order, Word, place, up_to
from tests.model.holds import Holds
from tests.model.told import OrderName, Units
from tests.model.totals import add, by_name


class Orders(Holds):
    """Settles orders, under all their names."""

    def _settle(self, name: OrderName, sku: str) -> None:
        """Evaluate an order's lines of one sku anew, after a fact about them changed."""
        names, facts = self.names_of(name), self.whole(name)
        first = self.orders.setdefault(names[0], Order())
        placed = [place(facts.facts(sku, group, lines)) for group, lines in facts.line_groups(sku).items()]
        rest = sum(without_node for _, without_node in placed)
        latest = max(
            (word for (_, of), word in facts.words.items() if of == sku),
            key=lambda word: word.key,
            default=None,
        )
        if latest and latest.node:
            first.auto[sku] = [(latest.node, rest)] if rest else []
        else:
            first.auto[sku] = up_to(first.auto.get(sku, []), rest)
        self._write_committed(first, sku, [units for units, _ in placed])
        self._count_held(name, [sku])
        first.auto[sku] = self._put_auto(names, sku, first.auto[sku], rest)
        self._write_committed(first, sku, [units for units, _ in placed])

    def _put_auto(
        self, names: list[OrderName], sku: str, auto: list[tuple[str, int]], rest: int
    ) -> list[tuple[str, int]]:
        """Put units that no fact places like a grant of the order's channel, or of all nodes."""
        missing = rest - sum(units for _, units in auto)
        committed_by = [self.orders.get(name, Order()).channel for name in names]
        declared = [
            channel
            for channel in (*committed_by, *(source for source, _ in names))
            if channel in self.channels
        ]
        if declared:
            nodes, every = self._serving(declared[0], sku), self.channel_nodes(declared[0])
        else:
            every = by_name(self.nodes)
            nodes = [node for node in every if self.nodes[node].online]
        put = list(auto)  # in the order of putting: the last is taken away first
        for source in self._take(sku, missing, nodes, (nodes or every)[:1]):
            if put and put[-1][0] == source.node:
                put[-1] = (source.node, put[-1][1] + source.quantity)
            else:
                put.append((source.node, source.quantity))
        return put

    def _write_committed(self, order: Order, sku: str, placed: list[Units]) -> None:
        units: Units = {}
        for part in placed:
            for node, amount in part.items():
                add(units, node, amount)
        for node, amount in order.auto.get(sku, []):
            add(units, node, amount)
        self._replace(self._committed, sku, order.committed.get(sku, {}), units)
        order.committed[sku] = units

    def _link(self, name: OrderName, other: OrderName, word: Word) -> str:
        """Two names are one order from now on, or two again."""
        pair = frozenset((name, other))
        latest = self.links.get(pair)
        if latest is not None and word.key < latest.key:
            return "STALE"
        for one in pair:
            self.orders.setdefault(one, Order())
        ours, theirs = self.names_of(name), self.names_of(other)
        self.links[pair] = word
        if bool(latest and latest.quantity) == bool(word.quantity):
            return "APPLIED"
        skus = self._regroup({*ours, *theirs}, {ours[0], theirs[0]})
        if word.quantity:
            self._release_cancelled(ours, theirs, skus)
            self._release_cancelled(theirs, ours, skus)
        return "APPLIED"

    def _regroup(self, names: set[OrderName], firsts: set[OrderName]) -> list[str]:
        """Evaluate orders whose names were parted or joined; what was put without a node stays with the first name."""
        skus = {sku for name in names for sku in (*self.orders[name].skus(), *self.orders[name].committed)}
        skus |= {sku for (owner, sku) in self._held if owner in names}
        skus |= {
            sku for name in names for hold in self._carrying.get(name, []) for sku in self.holds[hold].skus()
        }
        new = sorted({self.names_of(name)[0] for name in names})
        for sku in by_name(skus):
            auto: list[tuple[str, int]] = []
            for name in sorted(firsts):
                order = self.orders[name]
                auto += order.auto.pop(sku, [])
                self._replace(self._committed, sku, order.committed.pop(sku, {}), {})
                self._replace(self._reserved, sku, self._held.pop((name, sku), {}), {})
            self.orders[new[0]].auto[sku] = auto
            for name in new:
                self._settle(name, sku)
        return by_name(skus)

    def _release_cancelled(self, told: list[OrderName], carried: list[OrderName], skus: list[str]) -> None:
        """What was cancelled under some names is cancelled for holds that carry those now linked with them."""
        theirs, ours = Order(), Order()
        for name in told:
            theirs.add(self.orders[name])
        for name in carried:
            ours.add(self.orders[name])
        for sku in skus:
            cancel, own = theirs.cancel_of(sku), ours.cancel_of(sku)
            if cancel and (own is None or own < cancel) and self.whole(told[0]).cancels(sku):
                for name in carried:
                    self._release_of(name, sku)
