"""Orders by all their names: an order is what was told under every name that is linked with it."""

from __future__ import annotations

from tests.model.facts import TOGETHER, Order, confirm, open_units
from tests.model.policies import Policies
from tests.model.told import OrderName, Units


class WholeOrders(Policies):
    """Reads of orders; nothing here changes any."""

    def names_of(self, name: OrderName) -> list[OrderName]:
        """All names of the order with this name, by source and ref."""
        names = [name]
        for known in names:  # grows meanwhile
            for pair, word in self.links.items():
                if word.quantity and known in pair:
                    names += [other for other in pair if other not in names]
        return sorted(names, key=lambda one: (one[0].encode(), one[1].encode()))

    def whole(self, name: OrderName) -> Order:
        """An order as if all that was told under its names had been told under one."""
        names = self.names_of(name)
        order = Order()
        for known in names:
            order.add(self.orders.get(known, Order()))
        first = self.orders.get(names[0], Order())
        order.auto, order.committed = first.auto, first.committed
        return order

    def order_committed(self, name: OrderName, sku: str) -> Units:
        """What an order commits of a sku, by node."""
        return dict(self.whole(name).committed.get(sku, {}))

    def covered(self, order: OrderName, sku: str) -> int:
        """Units of an order's holds that its facts count already, because its source or ERP spoke of them."""
        facts_of = self.whole(order)
        wanted = 0
        for group, lines in facts_of.line_groups(sku).items():
            facts = facts_of.facts(sku, group, lines)
            if facts.spoken:
                wanted += facts.ordered or 0
            else:
                for node in facts.allocated:
                    wanted += max(facts.allocated[node], facts.shipped.get(node, 0))
                for node in facts.shipped:
                    if facts.allocated and node not in facts.allocated:
                        wanted += max(0, facts.shipped[node])
        return max(0, wanted - sum(facts_of.sourced.get(sku, {}).values()))

    def confirmed(self, sku: str, node: str, source: str) -> int:
        """Units of a position that a source has confirmed for orders: of several lines as one, who spoke last."""
        total = 0
        for name in {self.names_of(known)[0] for known in self.orders}:
            order = self.whole(name)
            for group, lines in order.line_groups(sku).items():
                words = [order.allocated.get((line, sku), {}).get(node) for line in lines]
                latest = max((word for word in words if word), key=lambda word: word.key, default=None)
                if latest and latest.key[1] == source.encode():
                    total += confirm(order.facts(sku, group, lines)).get(node, 0)
        return total

    def open_lines(self) -> dict[tuple[OrderName, str, str], int]:
        """Units still to ship by (first name of the order, line, sku); a line "" is all lines of its sku."""
        found = {}
        for name in {self.names_of(known)[0] for known in self.orders}:
            order = self.whole(name)
            for sku in order.skus():
                groups = order.line_groups(sku)
                for group, lines in groups.items():
                    line = "" if group == TOGETHER else group
                    units = open_units(order.facts(sku, group, lines))
                    if units:
                        found[name, line, sku] = units
        return found
