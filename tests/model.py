"""The plain model: the contract's formula, grants, orders and deltas as dicts, ints and obvious loops.

It is the third, independent computation: it imports nothing of ours, is fast enough only for tests, and is
meant to be read beside CONTRACT.md sections 2 to 4, in its words. Where the ledger and this file disagree,
one of them has a bug. Time does not pass here: a test says `expire` when the ledger ended a hold.

Not modelled: what waits for a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

Name = str
OrderName = tuple[str, str]
"""(order_source, order_ref)"""
Units = dict[str, int]
"""Units by node."""
Part = tuple[str, str]
"""(sku, kit) of a hold's line: the kit that it is a part of, or "" for a sku that was asked for by itself."""
Lines = Sequence[tuple[str, int]]
"""(sku, quantity) as a request names them; equal skus are added up."""

QUANTITY_MAX = 1_000_000_000
KIT_DEPTH_MAX = 8
KIT_FLAT_MAX = 100
TOGETHER = "\0together"
"""Name of the one group of lines where a sku's lines are evaluated together."""
ADOPTED: OrderName = ("", "\0adopted")
"""Owner of the differences that `Model.adopt_reserved` took over."""


class Refusal(Exception):
    """An answer that is an error on the wire; `reason` is the ErrorInfo's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# --- what is told ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Units, or percent of the give of N. One of the two; the other is 0."""

    units: int = 0
    percent: int = 0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A channel's policy. `nodes` None is all_nodes. The default is that of an auto-created channel."""

    nodes: tuple[str, ...] | None = None
    buffer: Buffer = Buffer()
    oversell_limit: int = 0
    low_stock_threshold: int = 0
    exclude_stale: bool = False
    """Staleness EXCLUDE: a node is left out while any watched feed of it is stale."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """What differs for one sku of a channel. None is absent, and absent is not 0."""

    buffer: Buffer | None = None
    oversell_limit: int | None = None
    excluded_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Something that happened at a source. `type` is the enum's name without its prefix."""

    source: str
    type: str
    stream: str = ""
    source_sequence: int = 0
    event_id: str = ""
    sku: str = ""
    node: str = ""
    quantity: int = 0
    quarantined: bool = False
    """State QUARANTINED of an ADJUSTMENT."""
    order_source: str = ""
    order_ref: str = ""
    line: str = ""
    reason: str = ""
    occurred_us: int = 0
    to_node: str = ""
    reference: str = ""
    due_us: int = 0
    expected_kind: str = ""
    """PURCHASE (also where empty), TRANSFER or RETURN."""
    open_basis: bool = False
    """Basis OPEN of an ORDER_ALLOCATED: still to ship, as of the shipped quantity."""
    shipped_quantity: int | None = None
    linked_source: str = ""
    linked_ref: str = ""
    """The other name of a LINK_ORDER."""

    def key(self) -> Key:
        """Give the place of this word among others: a number before a text, text by its bytes."""
        identity = (0, self.source_sequence, b"") if self.source_sequence else (1, 0, self.event_id.encode())
        return (self.occurred_us, self.source.encode(), self.stream.encode(), identity)


Key = tuple[int, bytes, bytes, tuple[int, int, bytes]]

STOCK_TYPES = frozenset(
    [
        "RECEIPT",
        "ADJUSTMENT",
        "SHIPMENT",
        "QUARANTINE",
        "QUARANTINE_RELEASE",
        "WRITE_OFF",
        "RETURN_RECEIVED",
        "TRANSFER_OUT",
        "TRANSFER_IN",
    ]
)
SUPPLY_TYPES = frozenset(("EXPECTED", "SET_ON_HAND"))
NOW_US = 4_000_000_000_000_000
"""What names no time happens when it arrives, and later than all that names one."""
WORD_TYPES = frozenset(("ORDER_PLACED", "ORDER_CHANGED"))
ORDER_TYPES = WORD_TYPES | {"ORDER_ALLOCATED", "ORDER_CANCELLED"}
ORDER_NAMES_MAX = 16


# --- what is kept ---------------------------------------------------------------------------------


@dataclass
class Node:
    online: bool = True
    safety_stock: int = 0


@dataclass(frozen=True)
class Moment:
    """When a change or a count happened: by the number of its stream, else by time; and its units."""

    key: Key
    units: int
    stream: tuple[str, str] | None = None
    number: int = 0

    def before(self, count: Moment) -> bool:
        """Tell whether a count has seen this change."""
        if self.stream is not None and self.stream == count.stream:
            return self.number < count.number
        return self.key[0] <= count.key[0]


@dataclass
class Cell:
    """Expected supply of one (sku, node, kind, reference, line): the latest word, and every move."""

    word: Word | None = None
    moves: list[tuple[Key, int]] = field(default_factory=list)
    dues: list[tuple[Key, int]] = field(default_factory=list)

    def units(self) -> int:
        after = [q for key, q in self.moves if self.word is None or key > self.word.key]
        return max(0, (self.word.quantity if self.word else 0) + sum(after))

    def due_us(self) -> int:
        return max(self.dues)[1] if self.dues else 0


@dataclass
class Position:
    """The ledger's row for one (sku, node). `safety_stock` None: the node's default.

    `count` is the latest SET_ON_HAND, `changes` are those of on_hand that it has not seen; all, where there is none.
    """

    on_hand: int = 0
    count: Moment | None = None
    changes: list[Moment] = field(default_factory=list)
    quarantined: dict[str, int] = field(default_factory=dict)
    safety_stock: int | None = None


@dataclass
class Fence:
    """Units of a sku that only one channel may sell: what is left of those that were set as a generation."""

    left: int
    generation: int


@dataclass
class Source:
    """Units of a hold at one node; `oversold` of them beyond what was free there."""

    node: str
    quantity: int
    oversold: int = 0


@dataclass
class Hold:
    """A reservation. `lines` is what it holds per sku, in order of sourcing, or held when it ended.

    `fenced` are units of a line that came from its channel's ring-fence, and of which generation; `kits` how many of
    each kit, and the recipe of one, by which it was made.
    """

    channel: str
    order_source: str
    order: OrderName | None
    node: str
    lines: dict[Part, list[Source]]
    state: str = "ACTIVE"
    fenced: dict[Part, tuple[int, int]] = field(default_factory=dict)
    kits: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)

    def quantity(self, sku: str, kit: str = "") -> int:
        return sum(source.quantity for source in self.lines.get((sku, kit), []))

    def parts(self, sku: str) -> list[Part]:
        """Lines of a sku: by itself, and in kits."""
        return [part for part in self.lines if part[0] == sku]

    def units(self, sku: str) -> int:
        """All units of a sku, those in kits too."""
        return sum(self.quantity(*part) for part in self.parts(sku))

    def skus(self) -> list[str]:
        return list(dict.fromkeys(sku for sku, _ in self.lines))


@dataclass(frozen=True)
class Word:
    """The latest word of one cell of an order: its key, its quantity and, where it named one, its node."""

    key: Key
    quantity: int
    node: str = ""


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


# --- what is answered -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Shortage:
    sku: str
    requested: int
    sellable: int


@dataclass(frozen=True)
class Granted:
    """The answer to a reserve. `outcome` is the enum's name without its prefix."""

    outcome: str
    reservation_id: str = ""
    shortages: tuple[Shortage, ...] = ()
    replayed: bool = False


@dataclass(frozen=True)
class Changed:
    """The answer to extend, commit and release."""

    state: str
    replayed: bool = False
    order_cancelled: bool = False


@dataclass(frozen=True)
class Terms:
    """The formula's terms for one (channel, sku)."""

    sellable: int
    state: str
    pool: int
    buffer: int
    fenced: int
    oversell_limit: int
    blocked: bool


# --- the order's pure function --------------------------------------------------------------------


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


def names_linked(delta: Delta) -> tuple[OrderName, OrderName]:
    """Read the two names of a LINK_ORDER."""
    return (delta.order_source or delta.source, delta.order_ref), (
        delta.linked_source or delta.source,
        delta.linked_ref,
    )


def by_name(names: Iterable[str]) -> list[str]:
    """Sort names by their bytes."""
    return sorted(names, key=str.encode)


def add_up(lines: Lines) -> dict[str, int]:
    """Add up equal skus, in order of first appearance."""
    wanted: dict[str, int] = {}
    for sku, quantity in lines:
        wanted[sku] = wanted.get(sku, 0) + quantity
    return wanted


# --- the ledger -----------------------------------------------------------------------------------

T = TypeVar("T", Granted, Changed)


class Model:
    """A ledger that a reader can check by eye. Same calls in the same order, same state."""

    def __init__(self, *, auto_create: bool = True) -> None:
        self.auto_create = auto_create
        self.recalls = (
            False  # whether the ledger's log still has what happened to a position before its first count
        )
        self.nodes: dict[str, Node] = {}
        self.channels: dict[str, Policy] = {}
        self.overrides: dict[tuple[str, str], Override] = {}
        self.stops: set[tuple[str, str]] = set()
        self.fences: dict[tuple[str, str], Fence] = {}
        self.fences_set = 0
        self.positions: dict[str, dict[str, Position]] = {}
        self.kits: dict[str, Lines] = {}
        self.holds: dict[str, Hold] = {}
        self.orders: dict[OrderName, Order] = {}
        self.links: dict[frozenset[OrderName], Word] = {}
        """By two names the latest word on whether they are one order: quantity 1, or 0."""
        self.marks: dict[tuple[str, str], int] = {}
        self.cells: dict[tuple[str, str, str, str, str], Cell] = {}
        """Expected supply by (sku, node, kind, reference, line)."""
        self._arrived = 0
        self.feeds: dict[tuple[str, str], bool] = {}
        """(source, node) of each watched feed: whether it is stale."""
        self.events: dict[tuple[str, str], Delta] = {}
        self.requests: dict[str, tuple[object, Granted | Changed | Refusal]] = {}
        self._carrying: dict[OrderName, list[str]] = {}
        self._held: dict[tuple[OrderName, str], Units] = {}
        self._reserved: dict[tuple[str, str], int] = {}
        self._committed: dict[tuple[str, str], int] = {}

    # --- formula

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

    # --- reservations

    def reserve(
        self,
        request_id: str,
        channel: str,
        lines: Lines,
        *,
        hold_ms: int = 60_000,
        order_source: str = "",
        order_ref: str = "",
        allow_partial: bool = False,
        node: str = "",
        reservation_id: str = "",
    ) -> Granted:
        """Hold all lines or nothing, or with allow_partial what there is. The test names it."""

        def decide() -> Granted:
            self.policy(channel)
            if node and node not in self.nodes:
                raise Refusal("UNKNOWN_NODE")
            if node and node not in self.channel_nodes(channel):
                raise Refusal("INVALID_REQUEST")
            wanted = add_up(lines)
            granted, shortages = self._serve(channel, wanted, node)
            if not any(granted.values()) or (shortages and not allow_partial):
                return Granted("INSUFFICIENT_STOCK", shortages=shortages)
            order = (order_source or channel, order_ref) if order_ref else None
            hold = Hold(channel, order_source, order, node, {})
            units: dict[Part, int] = {}
            for name, count in granted.items():
                if name in self.kits and count:
                    hold.kits[name] = (count, self.recipe(name))
                for sku, each in self.recipe(name).items():
                    units[sku, name if name in self.kits else ""] = each * count
            hold.lines = self._source_all(channel, {part: n for part, n in units.items() if n}, node)
            self.holds[reservation_id] = hold
            self._take_fenced(reservation_id)
            self._carrying.setdefault(self._owner(reservation_id), []).append(reservation_id)
            self._count_held(self._owner(reservation_id), hold.skus())
            return Granted("PARTIAL" if shortages else "RESERVED", reservation_id, shortages)

        content = ("reserve", channel, tuple(lines), hold_ms, order_source, order_ref, allow_partial, node)
        return self._once(request_id, content, decide)

    def extend(self, request_id: str, reservation_id: str, *, hold_ms: int = 60_000) -> Changed:
        def decide() -> Changed:
            return Changed(self._active(reservation_id).state)

        return self._once(request_id, ("extend", reservation_id, hold_ms), decide)

    def commit(
        self, request_id: str, reservation_id: str, *, order_source: str = "", order_ref: str = ""
    ) -> Changed:
        """Turn a hold into what our commits put where; an expired one is reserved anew, or refused."""

        def decide() -> Changed:
            hold = self._find(reservation_id)
            name = self._order_of_commit(hold, order_source, order_ref)
            if hold.state == "COMMITTED" and hold.order == name:
                return Changed("COMMITTED", replayed=True)
            if hold.state == "RELEASED" and hold.order == name and self.whole(name).is_cancelled():
                return Changed("RELEASED", order_cancelled=True)  # the cancel let go of it before
            if hold.state in ("COMMITTED", "RELEASED"):
                raise Refusal("RESERVATION_NOT_ACTIVE")
            if hold.state == "EXPIRED":
                for sku in hold.skus():
                    if hold.units(sku) > self.grantable(hold.channel, sku, hold.node):
                        raise Refusal("RESERVATION_EXPIRED")
                wanted = {part: hold.quantity(*part) for part in hold.lines}
                hold.lines = self._source_all(hold.channel, wanted, hold.node)
                self._take_fenced(reservation_id)
            self._end(reservation_id, "COMMITTED")
            hold.order_source, hold.order = name[0], name
            order = self.orders.setdefault(name, Order())
            order.channel = order.channel or hold.channel
            order.remember_kits(hold.kits)
            for (sku, _), sources in hold.lines.items():
                for source in sources:
                    add(order.sourced.setdefault(sku, {}), source.node, source.quantity)
            for sku in hold.skus():
                self._settle(name, sku)
            return Changed("COMMITTED", order_cancelled=self.whole(name).is_cancelled())

        return self._once(request_id, ("commit", reservation_id, order_source, order_ref), decide)

    def release(self, request_id: str, reservation_id: str, lines: Lines = ()) -> Changed:
        """Give back everything, or the named units: oversold first, then in reverse order of sourcing."""

        def decide() -> Changed:
            hold = self._active(reservation_id)
            back = add_up(lines)
            units: dict[Part, int] = {}
            for name, quantity in back.items():
                if name in hold.kits:  # whole kits; a part that the order cancelled is not there any more
                    count, recipe = hold.kits[name]
                    if quantity > count:
                        raise Refusal("INVALID_REQUEST")
                    units |= {
                        (sku, name): n * quantity for sku, n in recipe.items() if (sku, name) in hold.lines
                    }
                elif quantity > hold.quantity(name):
                    raise Refusal("INVALID_REQUEST")
                else:
                    units[name, ""] = quantity
            if not back or all(units.get(part) == hold.quantity(*part) for part in hold.lines):
                self._end(reservation_id, "RELEASED")
                return Changed("RELEASED")
            for name in set(back) & set(hold.kits):
                hold.kits[name] = (hold.kits[name][0] - back[name], hold.kits[name][1])
            hold.kits = {kit: left for kit, left in hold.kits.items() if left[0]}
            for part, quantity in units.items():
                self._give_back(hold.lines, part, quantity)
                self._return_fenced(hold, part, hold.quantity(*part))
            self._count_held(self._owner(reservation_id), {sku for sku, _ in units})
            return Changed("ACTIVE")

        return self._once(request_id, ("release", reservation_id, tuple(lines)), decide)

    def expire(self, reservation_id: str) -> None:
        """End an ACTIVE hold, because its deadline passed and a ledger event said so."""
        if self.holds[reservation_id].state == "ACTIVE":
            self._end(reservation_id, "EXPIRED")

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

    def _once(self, request_id: str, content: object, decide: Callable[[], T]) -> T:
        """Decide a request once: the same content gets the first outcome, refusals too."""
        if request_id in self.requests:
            known, outcome = self.requests[request_id]
            if known != content:
                raise Refusal("REQUEST_ID_REUSED")
            if isinstance(outcome, Refusal):
                raise outcome
            return replace(outcome, replayed=True)  # type: ignore[return-value]  # equal content, equal type
        try:
            answer = decide()
        except Refusal as refusal:
            self.requests[request_id] = (content, refusal)
            raise
        self.requests[request_id] = (content, answer)
        return answer

    def _find(self, reservation_id: str) -> Hold:
        if reservation_id not in self.holds:
            raise Refusal("RESERVATION_NOT_FOUND")
        return self.holds[reservation_id]

    def _active(self, reservation_id: str) -> Hold:
        hold = self._find(reservation_id)
        if hold.state == "EXPIRED":
            raise Refusal("RESERVATION_EXPIRED")
        if hold.state != "ACTIVE":
            raise Refusal("RESERVATION_NOT_ACTIVE")
        return hold

    def _order_of_commit(self, hold: Hold, order_source: str, order_ref: str) -> OrderName:
        source = order_source or hold.order_source or hold.channel
        ref = order_ref or (hold.order[1] if hold.order else "")
        if not ref:
            raise Refusal("INVALID_REQUEST")
        return source, ref

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

    # --- ring-fences

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

    # --- what holds count as reserved

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

    def _replace(self, totals: dict[tuple[str, str], int], sku: str, before: Units, after: Units) -> None:
        for node, units in before.items():
            add(totals, (sku, node), -units)
        for node, units in after.items():
            add(totals, (sku, node), units)
            if units:
                self._position(sku, node)

    # --- orders

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

    def _write_committed(self, order: Order, sku: str, placed: list[Units]) -> None:
        units: Units = {}
        for part in placed:
            for node, amount in part.items():
                add(units, node, amount)
        for node, amount in order.auto.get(sku, []):
            add(units, node, amount)
        self._replace(self._committed, sku, order.committed.get(sku, {}), units)
        order.committed[sku] = units

    # --- deltas

    def apply_delta(self, delta: Delta, *, source: str = "") -> tuple[str, str]:
        """Apply one delta of a request of `source`: (result, reason where REJECTED)."""
        result, reason = self._apply_delta(delta, source)
        if result not in ("REJECTED", "PARKED") and (delta.source, delta.node) in self.feeds:
            self.feeds[delta.source, delta.node] = False
        return result, reason

    def heartbeat(self, source: str) -> None:
        """Hear an empty batch: it speaks for all nodes of the source."""
        for feed in self.feeds:
            if feed[0] == source:
                self.feeds[feed] = False

    def set_feed(self, source: str, node: str, *, watched: bool) -> None:
        """Watch a feed, or watch it no more. A test says `silence` when one passed its limit."""
        if node not in self.nodes and not self.auto_create:
            raise Refusal("UNKNOWN_NODE")
        self.nodes.setdefault(node, Node())
        if watched:
            self.feeds.setdefault((source, node), False)
        else:
            self.feeds.pop((source, node), None)

    def silence(self, source: str, node: str) -> None:
        """Let a watched feed be silent for longer than its limit."""
        assert (source, node) in self.feeds
        self.feeds[source, node] = True

    def _apply_delta(self, delta: Delta, source: str) -> tuple[str, str]:
        if source and source != delta.source:
            return "REJECTED", "SOURCE_MISMATCH"
        if delta.source_sequence:
            stream = (delta.source, delta.stream)
            mark = self.marks.get(stream)
            if mark is not None and delta.source_sequence <= mark:
                return "DUPLICATE", ""
            if mark is not None and delta.source_sequence > mark + 1:
                return "PARKED", ""
            self.marks[stream] = delta.source_sequence
        elif (delta.source, delta.event_id) in self.events:
            known = self.events[delta.source, delta.event_id]
            return ("DUPLICATE", "") if known == delta else ("REJECTED", "CONFLICT")
        self._arrived += 1
        reason = self._problem(delta)
        if reason:
            return "REJECTED", reason
        if not delta.source_sequence:
            self.events[delta.source, delta.event_id] = delta
        if delta.node:
            self.nodes.setdefault(delta.node, Node())
        if delta.type == "TRANSFER_OUT":
            self.nodes.setdefault(delta.to_node, Node())
        if delta.type in STOCK_TYPES:
            self._apply_stock(delta)
            return "APPLIED", ""
        if delta.type == "SET_ON_HAND":
            return ("APPLIED", "") if self._count(delta) else ("STALE", "")
        if delta.type == "EXPECTED":
            return ("APPLIED", "") if self._expect(delta) else ("STALE", "")
        return self._apply_order(delta), ""

    def _problem(self, delta: Delta) -> str:
        """Say why a delta cannot be applied, or nothing."""
        if delta.type not in STOCK_TYPES | ORDER_TYPES | SUPPLY_TYPES | {"LINK_ORDER"}:
            return "INVALID_REQUEST"
        if delta.type == "LINK_ORDER":
            return self._link_problem(delta)
        if delta.open_basis and delta.shipped_quantity is None:
            return "SHIPPED_QUANTITY_REQUIRED"
        signed = delta.type in ("ADJUSTMENT", "SHIPMENT")
        absolute = delta.type in ORDER_TYPES | SUPPLY_TYPES
        if abs(delta.quantity) > QUANTITY_MAX or (delta.quantity == 0 and not absolute):
            return "INVALID_QUANTITY"
        if delta.quantity < 0 and not signed:
            return "INVALID_QUANTITY"
        whole_cancel = delta.type == "ORDER_CANCELLED" and not delta.sku and not delta.line
        quarantines = delta.type in ("QUARANTINE", "QUARANTINE_RELEASE", "WRITE_OFF") or delta.quarantined
        incomplete = (
            (not delta.sku and not whole_cancel)
            or (not delta.node and delta.type in STOCK_TYPES | SUPPLY_TYPES | {"ORDER_ALLOCATED"})
            or (not delta.order_ref and delta.type in ORDER_TYPES)
            or (delta.type == "TRANSFER_OUT" and delta.to_node in ("", delta.node))
            or (not delta.reason and quarantines)
        )
        if incomplete:
            return "INVALID_REQUEST"
        if delta.sku in self.kits:
            return "KIT_SKU"
        if delta.node and delta.node not in self.nodes and not self.auto_create:
            return "UNKNOWN_NODE"
        position = self.positions.get(delta.sku, {}).get(delta.node)
        if delta.type == "SET_ON_HAND" and position and position.count is None and not self.recalls:
            count = self._moment(delta, delta.quantity)
            own_stream = all(change.stream == count.stream for change in position.changes)
            own_stream = own_stream and count.stream is not None
            if not own_stream and any(change.key[0] > count.key[0] for change in position.changes):
                return "POINT_TOO_OLD"
        return ""

    def _link_problem(self, delta: Delta) -> str:
        """Say why two names cannot be one order: a link joins two orders, and a source names an order once."""
        if delta.quantity not in (0, 1):
            return "INVALID_QUANTITY"
        pair = names_linked(delta)
        if pair[0] == pair[1]:
            return "INVALID_REQUEST"
        latest = self.links.get(frozenset(pair))
        if not delta.quantity or (latest and (latest.quantity or delta.key() < latest.key)):
            return ""
        ours, theirs = self.names_of(pair[0]), self.names_of(pair[1])
        if len(ours) + len(theirs) > ORDER_NAMES_MAX:
            return "TOO_MANY_NAMES"
        if {*ours} & {*theirs}:
            return "LINK_CYCLE"
        if {source for source, _ in ours} & {source for source, _ in theirs}:
            return "LINK_CONFLICT"
        return ""

    def _apply_stock(self, delta: Delta) -> None:
        position = self._position(delta.sku, delta.node)
        quantity = delta.quantity
        if delta.type in ("RECEIPT", "ADJUSTMENT", "RETURN_RECEIVED", "TRANSFER_IN"):
            self._change_on_hand(position, delta, quantity)
        if delta.type in ("SHIPMENT", "WRITE_OFF", "TRANSFER_OUT"):
            self._change_on_hand(position, delta, -quantity)
        self._move_expected(delta)
        if delta.type == "QUARANTINE" or (delta.type == "RECEIPT" and delta.reason) or delta.quarantined:
            add(position.quarantined, delta.reason, quantity)
        if delta.type in ("QUARANTINE_RELEASE", "WRITE_OFF"):
            add(position.quarantined, delta.reason, -quantity)
        if delta.type == "RETURN_RECEIVED":
            add(position.quarantined, "return", quantity)
        if delta.type in ("SHIPMENT", "TRANSFER_OUT") and delta.order_ref:
            name = (delta.order_source or delta.source, delta.order_ref)
            order = self.orders.setdefault(name, Order())
            add(order.shipped.setdefault((delta.line, delta.sku), {}), delta.node, quantity)
            self._settle(name, delta.sku)

    # --- counts and expected supply

    def _moment(self, delta: Delta, units: int) -> Moment:
        stream = (delta.source, delta.stream) if delta.source_sequence else None
        return Moment(self._key(delta), units, stream, delta.source_sequence)

    def _key(self, delta: Delta) -> Key:
        return replace(delta, occurred_us=delta.occurred_us or NOW_US + self._arrived).key()

    def _change_on_hand(self, position: Position, delta: Delta, units: int) -> None:
        """Change on_hand, but where the latest count has seen the change already."""
        change = self._moment(delta, units)
        if position.count is None or not change.before(position.count):
            position.changes.append(change)
            position.on_hand += units

    def _count(self, delta: Delta) -> bool:
        """Take a count: later changes stay on top. False where a later count is known."""
        position = self._position(delta.sku, delta.node)
        count = self._moment(delta, delta.quantity)
        if position.count is not None and count.key < position.count.key:
            return False
        position.count = count
        position.changes = [change for change in position.changes if not change.before(count)]
        position.on_hand = count.units + sum(change.units for change in position.changes)
        return True

    def _cell(self, delta: Delta, node: str, kind: str, reference: str, line: str) -> Cell:
        return self.cells.setdefault((delta.sku, node, kind, reference, line), Cell())

    def _expect(self, delta: Delta) -> bool:
        """Take a word about expected supply. False where a later one is known."""
        kind = delta.expected_kind or "PURCHASE"
        reference = delta.reference or (delta.order_ref if kind == "RETURN" else "")
        cell = self._cell(delta, delta.node, kind, reference, delta.line)
        word = Word(self._key(delta), delta.quantity)
        if cell.word is not None and word.key < cell.word.key:
            return False
        cell.word = word
        cell.dues.append((word.key, delta.due_us))
        return True

    def _move_expected(self, delta: Delta) -> None:
        """Let what came in, or was sent on its way, change what is expected of its reference."""
        node, line, units = delta.node, delta.line, -delta.quantity
        if delta.type == "RECEIPT" and delta.reference:
            kind, reference = "PURCHASE", delta.reference
        elif delta.type == "RETURN_RECEIVED" and (delta.reference or delta.order_ref):
            kind, reference = "RETURN", delta.reference or delta.order_ref
        elif delta.type == "TRANSFER_IN":
            kind, reference = "TRANSFER", delta.reference
        elif delta.type == "TRANSFER_OUT":
            kind, reference, node, units = "TRANSFER", delta.reference, delta.to_node, delta.quantity
            line = "" if delta.order_ref else line
        else:
            return
        cell = self._cell(delta, node, kind, reference, line)
        cell.moves.append((self._key(delta), units))
        if units > 0 and delta.due_us:
            cell.dues.append((self._key(delta), delta.due_us))

    def expected(self, sku: str) -> set[tuple[str, str, str, str, int, int]]:
        """Give (node, kind, reference, line, units, due_us) of what is announced and not here yet."""
        found = set()
        for (of, node, kind, reference, line), cell in self.cells.items():
            if of == sku and cell.units():
                found.add((node, kind, reference, line, cell.units(), cell.due_us()))
        return found

    def _apply_order(self, delta: Delta) -> str:
        if delta.type == "LINK_ORDER":
            return self._link(*names_linked(delta), Word(delta.key(), delta.quantity))
        name = (delta.order_source or delta.source, delta.order_ref)
        order = self.orders.setdefault(name, Order())
        cell = (delta.line, delta.sku)
        quantity = 0 if delta.type == "ORDER_CANCELLED" else delta.quantity
        if delta.type == "ORDER_ALLOCATED" and delta.open_basis:
            quantity += delta.shipped_quantity or 0
        word = Word(delta.key(), quantity, delta.node)
        if delta.type == "ORDER_CANCELLED" and not delta.sku:
            if order.cancelled is not None and word.key < order.cancelled:
                return "STALE"
            order.cancelled = word.key
            self._release_carried(name, "")
            for sku in by_name(self.whole(name).skus()):
                self._settle(name, sku)
            return "APPLIED"
        if delta.type == "ORDER_CANCELLED" and not delta.line:
            told = order.cancelled_skus.get(delta.sku)
            if told is not None and word.key < told:
                return "STALE"
            # Kept even where every line known so far was ordered again later: another may come with an older word.
            order.cancelled_skus[delta.sku] = word.key
            whole = self.whole(name)
            lines = {
                line
                for facts in (whole.words, whole.allocated, whole.shipped)
                for line, sku in facts
                if sku == delta.sku
            }
            lines |= {""} if whole.sourced.get(delta.sku) else set()
            words = [whole.words.get((line, delta.sku)) for line in lines]
            if words and all(latest is not None and word.key < latest.key for latest in words):
                return "STALE"
            self._release_carried(name, delta.sku)
            self._settle(name, delta.sku)
            return "APPLIED"
        if delta.type == "ORDER_ALLOCATED":
            latest = order.allocated.get(cell, {}).get(delta.node)
        else:
            latest = order.words.get(cell)
        if latest is not None and word.key < latest.key:
            return "STALE"
        if delta.type == "ORDER_ALLOCATED":
            order.allocated.setdefault(cell, {})[delta.node] = word
        else:
            order.words[cell] = word
        if delta.type == "ORDER_CANCELLED":
            self._release_carried(name, delta.sku)
        self._settle(name, delta.sku)
        return "APPLIED"

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

    def _position(self, sku: str, node: str) -> Position:
        return self.positions.setdefault(sku, {}).setdefault(node, Position())

    # --- policy

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

    def set_fence(self, channel: str, sku: str, units: int) -> None:
        """Set what is left for the channel, as a new generation; 0 takes the fence away."""
        self.policy(channel)
        if units > max(0, self.terms(channel, sku).pool):
            raise Refusal("FENCE_OVER_POOL")
        self.fences.pop((channel, sku), None)
        if units:
            self.fences_set += 1
            self.fences[channel, sku] = Fence(units, self.fences_set)

    # --- audit

    def audit(self) -> None:
        """Check the model against itself: what positions count is the sum of what holds and orders count."""
        reserved: dict[tuple[str, str], int] = {}
        for (_, sku), units in self._held.items():
            for node, amount in units.items():
                add(reserved, (sku, node), amount)
        committed: dict[tuple[str, str], int] = {}
        for order in self.orders.values():
            for sku, units in order.committed.items():
                for node, amount in units.items():
                    add(committed, (sku, node), amount)
        for mine, whole in ((self._reserved, reserved), (self._committed, committed)):
            assert {k: v for k, v in mine.items() if v} == {k: v for k, v in whole.items() if v}


K = TypeVar("K")


def take_latest(words: dict[K, Word], cell: K, word: Word) -> None:
    """Keep the later of two words about one cell."""
    if cell not in words or words[cell].key < word.key:
        words[cell] = word


def add(totals: dict[K, int], key: K, amount: int) -> None:
    """Add to one of several totals."""
    totals[key] = totals.get(key, 0) + amount
