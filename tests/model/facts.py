"""What was told of one order, and the pure function that says what its lines commit where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.model.told import Key, Units
from tests.model.totals import K, add, by_name

TOGETHER = "\0together"
"""Name of the one group of lines where a sku's lines are evaluated together."""


@dataclass(frozen=True)
class Word:
    """The latest word of one cell of an order: its key, its quantity and, where it named one, its node."""

    key: Key
    quantity: int
    node: str = ""


def take_latest(words: dict[K, Word], cell: K, word: Word) -> None:
    """Keep the later of two words about one cell."""
    if cell not in words or words[cell].key < word.key:
        words[cell] = word


@dataclass
class Order:
    """An order's facts as told under one name, by (line, sku) and node.

    `auto` and `committed` follow from the facts of all its names and stand with the first of them; `auto`, by sku, is
    where units that no fact places were put, in the order of putting.
    """

    words: dict[tuple[str, str], Word] = field(default_factory=dict)
    cancelled: Key | None = None
    cancelled_skus: dict[str, Key] = field(default_factory=dict)
    allocated: dict[tuple[str, str], dict[str, Word]] = field(default_factory=dict)
    shipped: dict[tuple[str, str], Units] = field(default_factory=dict)
    sourced: dict[str, Units] = field(default_factory=dict)
    channel: str = ""
    auto: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    committed: dict[str, Units] = field(default_factory=dict)
    kits: list[tuple[str, int, dict[str, int]]] = field(default_factory=list)
    """(kit, how many, recipe) of our commits, one entry for each recipe that a kit had."""

    def remember_kits(self, kits: dict[str, tuple[int, dict[str, int]]]) -> None:
        for kit, (count, recipe) in kits.items():
            for i, (name, before, known) in enumerate(self.kits):
                if name == kit and known == recipe:
                    self.kits[i] = (kit, before + count, recipe)
                    break
            else:
                self.kits.append((kit, count, recipe))

    def add(self, other: Order) -> None:
        """Take in what was told under another name: sums add up, of words the latest counts."""
        for kit, count, recipe in other.kits:
            self.remember_kits({kit: (count, recipe)})
        self.channel = self.channel or other.channel
        if other.cancelled and (self.cancelled is None or self.cancelled < other.cancelled):
            self.cancelled = other.cancelled
        for sku, key in other.cancelled_skus.items():
            self.cancelled_skus[sku] = max(key, self.cancelled_skus.get(sku, key))
        for cell, word in other.words.items():
            take_latest(self.words, cell, word)
        for cell, allocated in other.allocated.items():
            for node, word in allocated.items():
                take_latest(self.allocated.setdefault(cell, {}), node, word)
        for cell, shipped in other.shipped.items():
            for node, units in shipped.items():
                add(self.shipped.setdefault(cell, {}), node, units)
        for sku, sourced in other.sourced.items():
            for node, units in sourced.items():
                add(self.sourced.setdefault(sku, {}), node, units)

    def skus(self) -> set[str]:
        """Every sku that was told of."""
        return {sku for facts in (self.words, self.allocated, self.shipped) for _, sku in facts} | {
            *self.sourced
        }

    def cancels(self, sku: str) -> bool:
        """Tell whether a cancel is the last that was said of each line of a sku."""
        lines = {
            line for facts in (self.words, self.allocated, self.shipped) for line, of in facts if of == sku
        }
        lines |= {""} if self.sourced.get(sku) else set()
        words = [self.words.get((line, sku)) for line in lines]
        reopened = any(word and word.quantity and not self.supersedes(sku, word) for word in words)
        return self.cancel_of(sku) is not None and not reopened

    def is_cancelled(self) -> bool:
        """Tell whether the whole order was cancelled and no line has been reopened since."""
        reopened = any(
            word.quantity and not self.supersedes(sku, word) for (_, sku), word in self.words.items()
        )
        return self.cancelled is not None and not reopened

    def cancel_of(self, sku: str) -> Key | None:
        """The later cancel: of the whole order, or of all lines of the sku."""
        told = [key for key in (self.cancelled, self.cancelled_skus.get(sku)) if key is not None]
        return max(told, default=None)

    def supersedes(self, sku: str, word: Word) -> bool:
        """Tell whether a cancel is later than a line's word."""
        cancelled = self.cancel_of(sku)
        return cancelled is not None and word.key < cancelled

    def line_groups(self, sku: str) -> dict[str, list[str]]:
        """Name the groups in which the lines of a sku are evaluated: each line by itself, or all as one."""
        told = {
            line for facts in (self.words, self.allocated, self.shipped) for line, of in facts if of == sku
        }
        lines = sorted(told, key=str.encode)
        if "" in told or self.sourced.get(sku):
            return {TOGETHER: lines}
        return {line: [line] for line in lines}

    def facts(self, sku: str, group: str, lines: Iterable[str]) -> Facts:
        """Add up the facts of a group of lines."""
        lines = list(lines)
        sourced = dict(self.sourced.get(sku, {})) if group == TOGETHER else {}
        words = [self.words[line, sku] for line in lines if (line, sku) in self.words]
        allocated: Units = {}
        shipped: Units = {}
        for line in lines:
            for node, word in self.allocated.get((line, sku), {}).items():
                allocated[node] = allocated.get(node, 0) + word.quantity
            for node, quantity in self.shipped.get((line, sku), {}).items():
                shipped[node] = shipped.get(node, 0) + quantity
        ordered: int | None = None
        cancelled = self.cancel_of(sku) is not None
        spoken = bool(words) or cancelled
        if cancelled:
            ordered = sum(word.quantity for word in words if not self.supersedes(sku, word))
        elif words:
            ordered = sum(word.quantity for word in words)
        elif sourced:
            ordered = sum(sourced.values())
        return Facts(ordered=ordered, sourced=sourced, allocated=allocated, shipped=shipped, spoken=spoken)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known of one order line. `ordered` None: quantity unknown; `spoken`: a source gave it."""

    ordered: int | None
    sourced: Units
    allocated: Units
    shipped: Units
    spoken: bool = False


def open_units(facts: Facts) -> int:
    """What is still to ship: from the quantity wanted, else from the allocations alone."""
    wanted = sum(facts.allocated.values()) if facts.ordered is None else facts.ordered
    return max(0, wanted - sum(facts.shipped.values()))


def confirm(facts: Facts) -> Units:
    """What allocations confirm of an order line's open units, by node; at nodes with an allocation 0 where nothing."""
    still_open = open_units(facts)
    confirmed: Units = {}
    excess = 0
    for node, quantity in facts.allocated.items():
        confirmed[node] = max(0, quantity - facts.shipped.get(node, 0))
    for node, quantity in facts.shipped.items():
        excess += max(0, quantity - facts.allocated.get(node, 0))

    for node in by_name(confirmed):  # shipped beyond a node's allocation: others ship less, by name
        lowered = min(confirmed[node], excess)
        confirmed[node] -= lowered
        excess -= lowered
    for node in by_name(confirmed):  # never above what is open
        confirmed[node] = min(confirmed[node], still_open)
        still_open -= confirmed[node]
    return confirmed


def place(facts: Facts) -> tuple[Units, int]:
    """Place an order line's open units: (units at the nodes that facts name, the rest without any node)."""
    confirmed = confirm(facts)
    committed: Units = dict(confirmed)
    still_open = open_units(facts) - sum(confirmed.values())

    sourced = [node for node in by_name(facts.sourced) if facts.sourced[node] > 0]
    places = [node for node in sourced if node not in facts.allocated]
    places += [node for node in sourced if node in facts.allocated]
    for node in places:
        room = facts.sourced[node] - max(0, facts.shipped.get(node, 0)) - confirmed.get(node, 0)
        put = min(still_open, max(0, room))
        committed[node] = committed.get(node, 0) + put
        still_open -= put
    if places:
        committed[places[0]] = committed.get(places[0], 0) + still_open
        still_open = 0
    return {node: units for node, units in committed.items() if units}, still_open


def up_to(puts: list[tuple[str, int]], units: int) -> list[tuple[str, int]]:
    """Keep of what was put the first units."""
    kept = []
    for node, amount in puts:
        kept.append((node, min(amount, units)))
        units -= kept[-1][1]
    return [(node, amount) for node, amount in kept if amount]
