"""Plain bookkeeping of what was sent to the service and answered by it: the demo's second opinion.

One dictionary per kind of fact, one loop per formula, written from CONTRACT section 2 and on purpose sharing
nothing with ``availability.domain`` or the ledger's functions. Entries are posted in the order of the
ledger's versions, so that each grant can be checked at the very moment at which it was given.

Left out because the demo does none of it: kits in kits, feeds, oversell, transfers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """Units a channel leaves in the pool: fixed, or a percent of what its nodes can give."""

    units: int = 0
    percent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Where a channel sells from, in sourcing order."""

    nodes: tuple[str, ...]
    buffer: Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Units of one sku at one node; ``kit_sku`` where they are a part of a kit."""

    sku: str
    node: str
    quantity: int
    kit_sku: str = ""


@dataclass(slots=True)
class Fence:
    """What is left of a ring-fence, and how often it was set."""

    left: int
    generation: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """Units of a hold's sku that came from the channel's fence of a generation."""

    units: int
    generation: int


@dataclass(slots=True, kw_only=True)
class Hold:
    """An active reservation. ``fenced``: by sku, what it took from the channel's fence."""

    channel: str
    lines: list[Line]
    fenced: dict[str, Fenced]


@dataclass(slots=True)
class OrderLine:
    """The facts about one sku of one order; each cell holds its latest word."""

    ordered: int | None = None
    sourced: dict[str, int] = field(default_factory=dict)
    allocated: dict[str, int] = field(default_factory=dict)
    shipped: dict[str, int] = field(default_factory=dict)

    def committed(self) -> dict[str, int]:
        """Return node → units still promised there.

        The order's own word on the quantity counts before the sum of our commits. What the ERP allocated and
        nobody shipped is confirmed where it is; the rest waits where our commits put it, at nodes that the
        ERP has not spoken of first.
        """
        wanted = self.ordered
        if wanted is None:
            wanted = sum(self.sourced.values()) or sum(self.allocated.values())
        still_open = max(0, wanted - sum(self.shipped.values()))
        result: dict[str, int] = {}

        beyond = {node: max(0, units - self.allocated.get(node, 0)) for node, units in self.shipped.items()}
        left = still_open
        for node in sorted(self.allocated):
            confirmed = max(0, self.allocated[node] - self.shipped.get(node, 0))
            for other in sorted(beyond):
                if other != node:
                    used = min(confirmed, beyond[other])
                    confirmed, beyond[other] = confirmed - used, beyond[other] - used
            confirmed = min(confirmed, left)
            if confirmed:
                result[node] = confirmed
                left -= confirmed

        waiting = [node for node in self.sourced if node not in self.allocated]
        waiting += [node for node in self.sourced if node in self.allocated]
        for place, node in enumerate(waiting):
            last = place == len(waiting) - 1
            units = left if last else min(left, self.sourced[node])
            if units:
                result[node] = result.get(node, 0) + units
                left -= units
        return result


class Books:
    """Every balance, from entries posted in order; ``problems`` collects what the service did wrong."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.overrides: dict[tuple[str, str], Buffer] = {}
        self.offline: set[str] = set()
        self.safety: dict[tuple[str, str], int] = {}
        self.on_hand: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.quarantined: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.known: set[str] = set()
        self.kits: dict[str, dict[str, int]] = {}
        self.fences: dict[tuple[str, str], Fence] = {}
        self.holds: dict[str, Hold] = {}
        self.orders: dict[tuple[str, str], dict[str, OrderLine]] = {}
        self.oversold = 0
        self.problems: list[str] = []
        self._committed: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._reserved: defaultdict[tuple[str, str], int] = defaultdict(int)

    # --- Balances of one position -------------------------------------------------------------------------

    def give(self, sku: str, node: str) -> int:
        """Return what may be sold of a position before its promises."""
        quarantined = max(0, self.quarantined[sku, node])
        return max(0, self.on_hand[sku, node] - quarantined - self.safety.get((sku, node), 0))

    def reserved(self, sku: str, node: str) -> int:
        """Return the units held by active reservations."""
        return self._reserved[sku, node]

    def committed(self, sku: str, node: str) -> int:
        """Return the units ordered and not yet shipped."""
        return self._committed[sku, node]

    def net(self, sku: str, node: str) -> int:
        """Return what is left after the promises; below 0 where more is promised than is there."""
        return self.give(sku, node) - self.reserved(sku, node) - self.committed(sku, node)

    # --- The formula --------------------------------------------------------------------------------------

    def pool(self, sku: str, channel: str) -> int:
        """Return what the channel's nodes can still give together."""
        total = 0
        for node in self.channels[channel].nodes:
            net = self.net(sku, node)
            total += min(0, net) if node in self.offline else net
        return total

    def buffer(self, sku: str, channel: str, nodes: Sequence[str] | None = None) -> int:
        """Return the units that must stay in the pool; of fewer nodes where they are named."""
        rule = self.overrides.get((channel, sku), self.channels[channel].buffer)
        total = 0
        for node in self.channels[channel].nodes if nodes is None else nodes:
            if node not in self.offline:
                total += self.give(sku, node)
        return rule.units + (rule.percent * total + 99) // 100

    def fenced(self, sku: str, channel: str, nodes: Sequence[str] | None = None) -> int:
        """Return what must be left for other channels' fences; as if we had fewer nodes where they are named."""
        mine = self._counted(channel) if nodes is None else set(nodes) - self.offline
        total = 0
        for (other, of), fence in self.fences.items():
            theirs = self._counted(other)
            if other == channel or of != sku or not mine & theirs:
                continue
            elsewhere = sum(max(0, self.net(sku, node)) for node in theirs - mine)
            total += max(0, fence.left - elsewhere)
        return total

    def _counted(self, channel: str) -> set[str]:
        return set(self.channels[channel].nodes) - self.offline

    def sellable(self, sku: str, channel: str) -> int:
        """Return what the channel can sell now; of a kit, as many as the scarcest of its parts allows."""
        if sku in self.kits:
            return min(self.sellable(part, channel) // units for part, units in self.kits[sku].items())
        if sku not in self.known:
            return 0
        return max(0, self.pool(sku, channel) - self.buffer(sku, channel) - self.fenced(sku, channel))

    def sellable_at(self, sku: str, channel: str, node: str) -> int:
        """Return what the channel can sell from one node: as if it had no other, never more than in all."""
        net = self.net(sku, node)
        here = min(0, net) if node in self.offline else net
        alone = max(0, here - self.buffer(sku, channel, (node,)) - self.fenced(sku, channel, (node,)))
        return min(alone, self.sellable(sku, channel))

    def sourcing(self, sku: str, channel: str, quantity: int) -> list[Line]:
        """Return where a covered grant takes its units: the nodes in order, each up to what is free."""
        lines = []
        for node in self.channels[channel].nodes:
            free = 0 if node in self.offline else max(0, self.net(sku, node))
            taken = min(free, quantity)
            if taken:
                lines.append(Line(sku=sku, node=node, quantity=taken))
                quantity -= taken
        return lines

    # --- Entries ------------------------------------------------------------------------------------------

    def grant(
        self, hold_id: str, channel: str, wanted: Mapping[str, int], lines: Sequence[Line], where: str = ""
    ) -> None:
        """Post a hold; complain where the formula did not cover it or its units come from elsewhere."""
        hold = Hold(channel=channel, lines=list(lines), fenced={})
        for sku, quantity in self.exploded(wanted).items():
            sellable = self.sellable(sku, channel)
            if quantity > sellable:
                self.oversold += quantity - sellable
                self.problems.append(
                    f"{where}: {hold_id} got {quantity} of {sku} in {channel}, {sellable} were there"
                )
            taken = _by_node(line for line in lines if line.sku == sku)
            expected = _by_node(self.sourcing(sku, channel, quantity))
            if taken != expected:
                self.problems.append(f"{where}: {hold_id} took {sku} from {taken}, expected {expected}")
            fence = self.fences.get((channel, sku))
            if fence is not None and fence.left:
                from_fence = min(fence.left, quantity)
                fence.left -= from_fence
                hold.fenced[sku] = Fenced(from_fence, fence.generation)
        self.holds[hold_id] = hold
        self._hold(lines, +1)

    def exploded(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Return plain skus and their units: kits taken apart, equal skus added up."""
        plain: dict[str, int] = {}
        for sku, quantity in wanted.items():
            for part, units in self.kits.get(sku, {sku: 1}).items():
                plain[part] = plain.get(part, 0) + units * quantity
        return plain

    def refuse(
        self, channel: str, wanted: Mapping[str, int], told: Mapping[str, int], where: str = ""
    ) -> None:
        """Check a refusal: something must have been short, by as much as was said."""
        sellable = {sku: self.sellable(sku, channel) for sku in wanted}
        if all(quantity <= sellable[sku] for sku, quantity in wanted.items()):
            self.problems.append(f"{where}: {dict(wanted)} was refused in {channel}, {sellable} were there")
        for sku, quantity in told.items():
            if quantity != sellable[sku]:
                self.problems.append(
                    f"{where}: {channel} was told {quantity} of {sku}, {sellable[sku]} were there"
                )

    def end_hold(self, hold_id: str) -> None:
        """Post a release or an expiry of everything."""
        hold = self.holds.pop(hold_id)
        self._hold(hold.lines, -1)
        for sku in hold.fenced:
            self._refence(hold, sku, keep=0)

    def _refence(self, hold: Hold, sku: str, *, keep: int) -> None:
        """Give fenced units back, the last of all, and only to the fence that they were taken from."""
        taken = hold.fenced.get(sku)
        if taken is None or taken.units <= keep:
            return
        fence = self.fences.get((hold.channel, sku))
        if fence is not None and fence.generation == taken.generation:
            fence.left += taken.units - keep
        hold.fenced[sku] = Fenced(keep, taken.generation)

    def set_fence(self, channel: str, sku: str, units: int) -> None:
        """Post what is left for a channel from now on."""
        before = self.fences.get((channel, sku))
        self.fences[channel, sku] = Fence(units, before.generation + 1 if before else 1)

    def shrink_hold(
        self, hold_id: str, left: Sequence[Line], given_back: Mapping[str, int], where: str = ""
    ) -> None:
        """Post a partial release: ``left`` is what the answer still shows."""
        hold = self.holds[hold_id]
        for sku in {line.sku for line in hold.lines}:
            before = sum(line.quantity for line in hold.lines if line.sku == sku)
            after = sum(line.quantity for line in left if line.sku == sku)
            if before - after != given_back.get(sku, 0):
                self.problems.append(f"{where}: {hold_id} kept {after} of {before} {sku}")
            self._refence(hold, sku, keep=after)
        self._hold(hold.lines, -1)
        hold.lines = list(left)
        self._hold(hold.lines, +1)

    def commit_hold(self, hold_id: str, order: tuple[str, str]) -> None:
        """Post a commit: the hold's units become what the order's lines have sourced."""
        hold = self.holds.pop(hold_id)
        self._hold(hold.lines, -1)
        for line in hold.lines:
            with_line = self._order_line(order, line.sku)
            before = with_line.committed()
            with_line.sourced[line.node] = with_line.sourced.get(line.node, 0) + line.quantity
            self._recommit(line.sku, before, with_line)

    def receive(self, sku: str, node: str, quantity: int, *, quarantined: int = 0) -> None:
        """Post a change of on_hand, and of what of it may not be sold."""
        self.known.add(sku)
        self.on_hand[sku, node] += quantity
        self.quarantined[sku, node] += quarantined

    def ship(self, order: tuple[str, str], sku: str, node: str, quantity: int) -> None:
        """Post a shipment of an order line."""
        self.on_hand[sku, node] -= quantity
        line = self._order_line(order, sku)
        before = line.committed()
        line.shipped[node] = line.shipped.get(node, 0) + quantity
        self._recommit(sku, before, line)

    def allocate(self, order: tuple[str, str], sku: str, node: str, quantity: int) -> None:
        """Post the ERP's word on where an order line is served (shipped units included)."""
        line = self._order_line(order, sku)
        before = line.committed()
        line.allocated[node] = quantity
        self._recommit(sku, before, line)

    def order(self, order: tuple[str, str], sku: str, quantity: int) -> None:
        """Post the order's own word on a line's quantity."""
        line = self._order_line(order, sku)
        before = line.committed()
        line.ordered = quantity
        self._recommit(sku, before, line)

    def cancel(self, order: tuple[str, str]) -> None:
        """Post the cancellation of a whole order."""
        for sku in list(self.orders.get(order, {})):
            self.order(order, sku, 0)

    def _order_line(self, order: tuple[str, str], sku: str) -> OrderLine:
        return self.orders.setdefault(order, {}).setdefault(sku, OrderLine())

    def _recommit(self, sku: str, before: Mapping[str, int], line: OrderLine) -> None:
        for node, units in before.items():
            self._committed[sku, node] -= units
        for node, units in line.committed().items():
            self._committed[sku, node] += units

    def _hold(self, lines: Sequence[Line], sign: int) -> None:
        for line in lines:
            self._reserved[line.sku, line.node] += sign * line.quantity


def _by_node(lines: Iterable[Line]) -> dict[str, int]:
    units: dict[str, int] = {}
    for line in lines:
        units[line.node] = units.get(line.node, 0) + line.quantity
    return units
