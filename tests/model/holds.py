"""Holds: where their units come from, which were ring-fenced, and what counts as reserved."""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.state import Hold, Source
from tests.model.told import OrderName, Part, Shortage, Units
from tests.model.totals import add, by_name
from tests.model.whole import WholeOrders

ADOPTED: OrderName = ("", "\0adopted")
"""Owner of the differences that `Model.adopt_reserved` took over."""


class Holds(WholeOrders):
    """What a grant takes, and what it gives back when it ends."""

    def held(self, reservation_id: str) -> dict[tuple[str, str], int]:
        """Units of a reservation by (sku, node)."""
        units: dict[tuple[str, str], int] = {}
        for (sku, _), sources in self.holds[reservation_id].lines.items():
            for source in sources:
                add(units, (sku, source.node), source.quantity)
        return units

    def held_parts(self, reservation_id: str) -> dict[Part, int]:
        """Units of a reservation by (sku, kit)."""
        hold = self.holds[reservation_id]
        return {part: hold.quantity(*part) for part in hold.lines}

    def _serve(
        self, channel: str, wanted: dict[str, int], node: str
    ) -> tuple[dict[str, int], tuple[Shortage, ...]]:
        """Serve lines in order, kits whole, each from what those before it left: (granted, shortages)."""
        granted: dict[str, int] = {}
        shortages = []
        gone: dict[str, int] = {}
        for name, count in wanted.items():
            recipe = self.recipe(name)
            can = min(
                (self.grantable(channel, sku, node) - gone.get(sku, 0)) // units
                for sku, units in recipe.items()
            )
            if self.blocked(channel, name):
                can = 0
            granted[name] = min(count, can)
            if can < count:
                shortages.append(Shortage(name, count, can))
            for sku, units in recipe.items():
                add(gone, sku, granted[name] * units)
        return granted, tuple(shortages)

    def _source_all(self, channel: str, wanted: dict[Part, int], node: str) -> dict[Part, list[Source]]:
        """Take units from nodes in order, each up to what is free; the rest is oversold at the first of N."""
        lines: dict[Part, list[Source]] = {}
        gone: dict[tuple[str, str], int] = {}
        for part, units in wanted.items():
            sku = part[0]
            nodes = [node] if node else self._serving(channel, sku)
            lines[part] = self._take(sku, units, nodes, nodes[:1], gone)
            for source in lines[part]:
                add(gone, (sku, source.node), source.quantity - source.oversold)
        return lines

    def _take(
        self,
        sku: str,
        units: int,
        nodes: list[str],
        first: list[str],
        gone: dict[tuple[str, str], int] | None = None,
    ) -> list[Source]:
        sources = []
        left = units
        for name in nodes:
            taken = min(left, self.free(sku, name) - (gone or {}).get((sku, name), 0))
            left -= taken
            if taken:
                sources.append(Source(name, taken))
        if left and first:
            if sources and sources[0].node == first[0]:
                sources[0].quantity += left
                sources[0].oversold = left
            else:
                sources.insert(0, Source(first[0], left, left))
        return sources

    def _give_back(self, lines: dict[Part, list[Source]], part: Part, units: int) -> None:
        sources = lines[part]
        for source in sources:
            back = min(units, source.oversold)
            source.oversold -= back
            source.quantity -= back
            units -= back
        for source in reversed(sources):
            back = min(units, source.quantity)
            source.quantity -= back
            units -= back
        lines[part] = [source for source in sources if source.quantity]
        if not lines[part]:
            del lines[part]

    def _end(self, reservation_id: str, state: str) -> None:
        """End a hold: it counts no more. Its lines stay, as what it held."""
        hold = self.holds[reservation_id]
        if hold.state == "ACTIVE":
            owner = self._owner(reservation_id)
            self._carrying[owner].remove(reservation_id)
            self._count_held(owner, hold.skus())
            if state != "COMMITTED":
                for part in hold.lines:
                    self._return_fenced(hold, part, 0)
        hold.state = state

    def _take_fenced(self, reservation_id: str) -> None:
        """Let what was granted come from the channel's fences first."""
        hold = self.holds[reservation_id]
        for part in hold.lines:
            fence = self.fences.get((hold.channel, part[0]))
            if fence:
                taken = min(hold.quantity(*part), fence.left)
                fence.left -= taken
                hold.fenced[part] = (taken, fence.generation)

    def _return_fenced(self, hold: Hold, part: Part, units_left: int) -> None:
        """Give back fenced units of a line that `units_left` are left of: last, and to the same generation only."""
        taken, generation = hold.fenced.pop(part, (0, 0))
        keeps = min(taken, units_left)
        fence = self.fences.get((hold.channel, part[0]))
        if fence and fence.generation == generation:
            fence.left += taken - keeps
        if keeps:
            hold.fenced[part] = (keeps, generation)

    def _owner(self, reservation_id: str) -> OrderName:
        """Name whose holds count together: those that carry one order; any other hold counts by itself."""
        return self.holds[reservation_id].order or ("", reservation_id)

    def _count_held(self, owner: OrderName, skus: Iterable[str]) -> None:
        """Count anew what the ACTIVE holds of an owner reserve: their units, less what the order covers.

        Lowered first where the order commits, by name, then at the other nodes, by name.
        """
        names = self.names_of(owner)
        for sku in list(skus):
            units: Units = {}
            for reservation_id in (held for name in names for held in self._carrying.get(name, [])):
                hold = self.holds[reservation_id]
                for source in (source for part in hold.parts(sku) for source in hold.lines[part]):
                    add(units, source.node, source.quantity)
            committed = self.order_committed(owner, sku)
            covered = self.covered(owner, sku)
            for most in (committed, dict(units)):
                for node in by_name(units):
                    lowered = min(covered, units[node], most.get(node, 0))
                    units[node] -= lowered
                    covered -= lowered
            for name in names:
                self._replace(self._reserved, sku, self._held.pop((name, sku), {}), {})
            self._replace(self._reserved, sku, {}, units)
            if any(units.values()):
                self._held[names[0], sku] = units

    def lowered(self, sku: str) -> int:
        """Units of a sku that are held but not counted as reserved."""
        held = sum(hold.units(sku) for hold in self.holds.values() if hold.state == "ACTIVE")
        return held - sum(units for (of, _), units in self._reserved.items() if of == sku)

    def adopt_reserved(self, sku: str, units: Units) -> None:
        """Take over the ledger's choice of which nodes' reserved is lowered. The total must be the same."""
        self.forget_adopted(sku)
        mine = {node: amount for (of, node), amount in self._reserved.items() if of == sku and amount}
        assert sum(mine.values()) == sum(units.values()), f"reserved of {sku}: {units}, {mine} in the model"
        moved = {node: units.get(node, 0) - mine.get(node, 0) for node in {*mine, *units}}
        self._replace(self._reserved, sku, {}, moved)
        self._held[ADOPTED, sku] = moved

    def forget_adopted(self, sku: str) -> None:
        """Go back to the model's own choice."""
        self._replace(self._reserved, sku, self._held.pop((ADOPTED, sku), {}), {})

    def _release_carried(self, name: OrderName, sku: str) -> None:
        """End the ACTIVE holds that carry a cancelled order, or (with a sku) their units of it."""
        for known in self.names_of(name):
            self._release_of(known, sku)

    def _release_of(self, name: OrderName, sku: str) -> None:
        """The same for those that carry one of its names."""
        for reservation_id in list(self._carrying.get(name, [])):
            hold = self.holds[reservation_id]
            if not sku or hold.skus() == [sku]:
                self._end(reservation_id, "RELEASED")
            elif sku in hold.skus():
                for part in hold.parts(sku):
                    del hold.lines[part]
                    self._return_fenced(hold, part, 0)
                in_kits = {kit for _, kit in hold.lines}
                hold.kits = {kit: made for kit, made in hold.kits.items() if kit in in_kits}
                self._count_held(name, [sku])
