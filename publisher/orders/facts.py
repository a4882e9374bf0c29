"""What a shop's order means to the ledger: its state, and what was told of it before, as facts. Pure.

Facts are absolute and never refused: ordered quantities per line, a cancel, returns that are expected, and, only
where the shop is the owner of a node, shipments. What each status means to WooCommerce's own stock was observed:
on-hold, processing and completed take units; cancelled and pending give them back; failed, refunded, trashed and
deleted orders give back nothing (``Rules.gives_back`` changes that for shops that want it).

The shop's times have whole seconds and its intermediate states are never seen, so the time of a word is the order's
own, but never before the word that we said last: what was read later is later (``Told.occurred_us``). Persons are no
business of this module: nothing of an order is kept but ids, skus, quantities, its status and times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from availability.domain.limits import QUANTITY_MAX
from availability.v1 import stock_pb2 as pb

Recipe = tuple[tuple[str, int], ...]
"""Plain skus with their units in one kit."""
Recipes = tuple[tuple[int, Recipe], ...]
"""How many kits were made by which recipe; the last one serves the rest."""
Shipped = Mapping[tuple[str, str], Mapping[str, int]]
"""Units shipped, as the ledger knows them: (line, sku) → node → units."""

STREAM = "orders"
AHEAD_US = 300 * 1_000_000
"""An order dated further ahead of us has its date from a clock that was wrong: it makes no later reading old."""
DRAFTS = frozenset({"checkout-draft", "auto-draft", "new"})
TAKEN = frozenset({"on-hold", "processing", "completed"})
CANCELLED, PENDING, REFUNDED, COMPLETED = "cancelled", "pending", "refunded", "completed"
TRASH, VANISHED = "trash", "vanished"
KEEPING = frozenset({"failed", REFUNDED, TRASH, VANISHED})
"""States in which WooCommerce gives no units back by itself."""
KINDS = {
    "placed": pb.DELTA_TYPE_ORDER_PLACED,
    "changed": pb.DELTA_TYPE_ORDER_CHANGED,
    "cancelled": pb.DELTA_TYPE_ORDER_CANCELLED,
    "expected": pb.DELTA_TYPE_EXPECTED,
    "shipped": pb.DELTA_TYPE_SHIPMENT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopLine:
    """One line of an order. ``sku`` is the ledger's, empty where the shop names none.

    ``refunded``: units of the line's refunds. ``reduced`` is what the shop itself says it took from its stock for the
    line; None where it says nothing.
    """

    line: str
    sku: str
    quantity: int
    refunded: int = 0
    reduced: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopOrder:
    """An order as it was read. Times: microseconds since 1970, whole seconds, by the shop's clock."""

    order_id: int
    status: str
    modified_us: int
    created_us: int = 0
    lines: tuple[ShopLine, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What was told of one order line and plain sku."""

    line: str
    sku: str
    ordered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What was told to be coming back."""

    sku: str
    node: str
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KitUse:
    """By which recipes the order's kits are exploded, now and later."""

    kit: str
    recipes: Recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the ledger was told of an order: all that is remembered of it."""

    revision: int = 0
    status: str = ""
    digest: str = ""
    modified_us: int = 0
    occurred_us: int = 0
    cells: tuple[Cell, ...] = ()
    returns: tuple[Return, ...] = ()
    kits: tuple[KitUse, ...] = ()
    skus: tuple[tuple[str, str], ...] = ()
    """The sku of each line when it was first read: the shop forgets it with the product, and renames it."""

    @property
    def open_units(self) -> int:
        """Units that count as ordered."""
        return sum(cell.ordered for cell in self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One word to the ledger. ``kind`` is a key of KINDS; no sku: the whole order."""

    kind: str
    line: str = ""
    sku: str = ""
    node: str = ""
    quantity: int = 0


class Outcome(StrEnum):
    """What became of a reading."""

    TOLD = "told"
    UNCHANGED = "unchanged"
    OLDER = "older"
    DRAFT = "draft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """The result of ``fold``: what is remembered from now on, and what the ledger has to hear.

    ``unmapped``: lines of which nobody knows a sku; they are left out.
    """

    outcome: Outcome
    told: Told
    facts: tuple[Fact, ...] = ()
    unmapped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one shop's orders are read.

    ``taken``: statuses that take units (a plugin's own may be added). ``gives_back``: which of KEEPING cancel the
    order in the ledger all the same. ``shop_reduces``: the shop keeps its own stock (Mirror), so that of a failed order
    its own word counts. ``owned_node``: the node whose on_hand this shop books itself (a completed order
    ships from it); empty where a WMS or ERP does. ``age_max_us``: how old a first word may be, for the ledger
    remembers event ids for 30 days only.
    """

    taken: frozenset[str] = TAKEN
    gives_back: frozenset[str] = frozenset()
    shop_reduces: bool = False
    owned_node: str = ""
    age_max_us: int = 25 * 86_400 * 1_000_000


@dataclass(slots=True)
class _Wanted:
    """One (line, sku) while an order is folded."""

    quantity: int = 0
    refunded: int = 0
    reduced: int | None = None
    lowered: int = 0


def digest_of(order: ShopOrder) -> str:
    """Return what tells two states of an order apart, its time left out: a touched order is the same state."""
    lines = [(line.line, line.sku, line.quantity, line.refunded, line.reduced) for line in order.lines]
    content = msgspec.json.encode((order.status, sorted(lines, key=repr)))
    return hashlib.sha256(content).hexdigest()[:16]


def fold(
    order: ShopOrder,
    before: Told | None,
    *,
    rules: Rules,
    now_us: int,
    kits: Mapping[str, Recipes] | None = None,
    shipped: Shipped | None = None,
    again: bool = False,
) -> Folded:
    """Return what a reading of an order adds to what was told.

    ``kits``: recipes of the order's kits, as the ledger's order remembers them, else today's; what ``before`` remembers
    goes first. ``shipped``: the ledger's word; needed where lines have refunds or the shop owns a node. ``now_us``: the
    time of reading, for the first word of an old order, and for dates that cannot be. ``again``: say everything once
    more, whatever was said.
    """
    told = before or Told()
    if order.status in DRAFTS:
        return Folded(outcome=Outcome.DRAFT, told=told)
    if before is not None and order.modified_us < told.modified_us <= now_us + AHEAD_US:
        return Folded(outcome=Outcome.OLDER, told=told)
    order, unmapped = _named(order, told)
    digest = digest_of(order)
    if before is not None and digest == told.digest and not again:
        return Folded(
            outcome=Outcome.UNCHANGED,
            told=replace(told, modified_us=order.modified_us),
            unmapped=unmapped,
        )
    known = {use.kit: use.recipes for use in told.kits}
    used = {**{kit: recipes for kit, recipes in (kits or {}).items() if kit not in known}, **known}
    wanted = _explode(order, used)
    _lower_refunded(wanted, shipped or {})
    # A word that named a kit was refused: nothing was told by it.
    told = replace(told, cells=tuple(cell for cell in told.cells if cell.sku not in used))
    cells, facts = _order_facts(order, told, wanted, rules, again)
    if order.status == VANISHED and not _cancels(VANISHED, rules):
        returns = told.returns  # nobody can say any more what its lines were
    else:
        returns = _returns(order, wanted, shipped or {}, rules)
    facts += _return_facts(told.returns, returns)
    if rules.owned_node:
        facts += _shipment_facts(order, cells, shipped or {}, rules)
    names = {line.sku for line in order.lines} | set(known)
    after = Told(
        revision=told.revision + 1,
        status=order.status,
        digest=digest,
        modified_us=order.modified_us,
        occurred_us=max(order.modified_us, told.occurred_us + 1, now_us - rules.age_max_us),
        cells=cells,
        returns=returns,
        kits=tuple(KitUse(kit=kit, recipes=used[kit]) for kit in sorted(names & set(used))),
        skus=tuple(sorted({**{line.line: line.sku for line in order.lines}, **dict(told.skus)}.items())),
    )
    return Folded(outcome=Outcome.TOLD, told=after, facts=tuple(facts), unmapped=unmapped)


def deltas(source: str, order_id: int, told: Told, facts: Sequence[Fact]) -> list[pb.Delta]:
    """Return the deltas of one revision. Their ids hold the content: to repeat is harmless and never a conflict."""
    made = []
    for fact in facts:
        delta = pb.Delta(
            source=source,
            stream=STREAM,
            type=KINDS[fact.kind],
            order_source=source,
            order_ref=str(order_id),
            line=fact.line,
            sku=fact.sku,
            node=fact.node,
            quantity=fact.quantity,
            correlation_id=f"order {order_id} revision {told.revision}",
        )
        if fact.kind == "expected":
            delta.expected_kind = pb.EXPECTED_KIND_RETURN
            delta.reference = str(order_id)
        delta.occurred_time.FromMicroseconds(told.occurred_us)
        content = hashlib.sha256(delta.SerializeToString(deterministic=True)).hexdigest()[:24]
        delta.event_id = f"{order_id}.{told.revision}.{content}"
        made.append(delta)
    return made


def skus_of(facts: Sequence[Fact], told: Told) -> frozenset[str]:
    """Return the plain skus that facts may move."""
    named = {fact.sku for fact in facts if fact.sku}
    return frozenset(named | {cell.sku for cell in told.cells}) if facts else frozenset()


def _named(order: ShopOrder, told: Told) -> tuple[ShopOrder, int]:
    """Give each line the sku that it was first read with; leave out lines without one."""
    known = dict(told.skus)
    lines = tuple(
        replace(line, sku=known.get(line.line, line.sku))
        for line in order.lines
        if line.sku or line.line in known
    )
    return replace(order, lines=lines), len(order.lines) - len(lines)


def _explode(order: ShopOrder, kits: Mapping[str, Recipes]) -> dict[tuple[str, str], _Wanted]:
    """Say an order's lines of plain skus."""
    wanted: dict[tuple[str, str], _Wanted] = {}
    for line in order.lines:
        quantity = max(0, line.quantity)
        refunded = min(max(0, line.refunded), quantity)
        recipes = kits.get(line.sku)
        if recipes is None:
            parts = {line.sku: (quantity, refunded, line.reduced)}
        else:
            whole, kept = _parts(recipes, quantity), _parts(recipes, quantity - refunded)
            taken = None if line.reduced is None else _parts(recipes, max(0, line.reduced))
            parts = {
                sku: (count, count - kept.get(sku, 0), None if taken is None else taken.get(sku, 0))
                for sku, count in whole.items()
            }
        for sku, (count, back, reduced) in parts.items():
            cell = wanted.setdefault((line.line, sku), _Wanted())
            cell.quantity = min(QUANTITY_MAX, cell.quantity + count)
            cell.refunded += back
            if reduced is not None:
                cell.reduced = (cell.reduced or 0) + max(0, reduced)
    return wanted


def _parts(recipes: Recipes, kits: int) -> dict[str, int]:
    units: dict[str, int] = {}
    left = kits
    for number, (count, recipe) in enumerate(recipes):
        taken = left if number == len(recipes) - 1 else min(left, count)
        left -= taken
        for sku, each in recipe:
            units[sku] = units.get(sku, 0) + taken * each
    return units


def _shipped_of(shipped: Shipped, sku: str) -> dict[str, int]:
    """Return what was shipped of a sku by node: who ships may know the lines by other names."""
    nodes: dict[str, int] = {}
    for (_, named), places in shipped.items():
        if named == sku:
            for node, units in places.items():
                nodes[node] = nodes.get(node, 0) + units
    return nodes


def _lower_refunded(wanted: Mapping[tuple[str, str], _Wanted], shipped: Shipped) -> None:
    """Refunded units that never left lower what is ordered; the rest comes back."""
    skus = {sku for (_, sku), cell in wanted.items() if cell.refunded}
    for sku in skus:
        mine = [cell for (_, named), cell in sorted(wanted.items()) if named == sku]
        gone = max(0, sum(_shipped_of(shipped, sku).values()))
        here = max(0, sum(cell.quantity for cell in mine) - gone)
        for cell in mine:
            cell.lowered = min(cell.refunded, here)
            here -= cell.lowered


def _order_facts(
    order: ShopOrder,
    told: Told,
    wanted: Mapping[tuple[str, str], _Wanted],
    rules: Rules,
    again: bool,
) -> tuple[tuple[Cell, ...], list[Fact]]:
    """Return what is told from now on, and the words that say so."""
    before = {(cell.line, cell.sku): cell.ordered for cell in told.cells}
    if _cancels(order.status, rules):
        said = _cancels(told.status, rules) and not any(before.values())
        facts = [] if said and not again else [Fact(kind="cancelled")]
        return tuple(Cell(line=line, sku=sku, ordered=0) for line, sku in sorted(before)), facts
    cells, facts = [], []
    for line, sku in sorted(set(before) | set(wanted)):
        was = before.get((line, sku))
        now = _quantity(order.status, wanted.get((line, sku)), was, rules)
        if was is None and now == 0:
            continue  # never told, and nothing to tell
        cells.append(Cell(line=line, sku=sku, ordered=now))
        if now != was or again:
            kind = "changed" if told.cells else "placed"
            facts.append(Fact(kind=kind, line=line, sku=sku, quantity=now))
    return tuple(cells), facts


def _cancels(status: str, rules: Rules) -> bool:
    return status == CANCELLED or (status in KEEPING and status in rules.gives_back)


def _quantity(status: str, cell: _Wanted | None, was: int | None, rules: Rules) -> int:
    """Return what a line orders in a status; ``was`` is what it was told to order, None for nothing yet."""
    if status == PENDING:
        return 0  # payment is open: the shop holds these units itself, and takes them when it is paid
    if status in rules.taken or status == REFUNDED:
        return cell.quantity - cell.lowered if cell is not None else 0
    # Failed, trashed, vanished, a plugin's own status: nothing is given back and nothing taken. What happened since the
    # last reading only the shop knows.
    if cell is not None and (rules.shop_reduces or not was):
        # What was refunded is not ordered, whether it went back to stock or not.
        return min(cell.reduced or 0, cell.quantity - cell.lowered)
    if cell is not None:  # Owner: the shop's own count says nothing, its lines do
        return min(was or 0, cell.quantity - cell.lowered)
    return was or 0


def _returns(
    order: ShopOrder, wanted: Mapping[tuple[str, str], _Wanted], shipped: Shipped, rules: Rules
) -> tuple[Return, ...]:
    """Return what is coming back, at the nodes that it left from."""
    if _cancels(order.status, rules):
        return ()
    back: dict[str, int] = {}
    for (_, sku), cell in wanted.items():
        back[sku] = back.get(sku, 0) + cell.refunded - cell.lowered
    found = []
    for sku, units in sorted(back.items()):
        for node, count in sorted(_shipped_of(shipped, sku).items()):
            taken = min(units, max(0, count))
            units -= taken
            if taken:
                found.append(Return(sku=sku, node=node, quantity=taken))
    return tuple(found)


def _return_facts(before: Sequence[Return], after: Sequence[Return]) -> list[Fact]:
    was = {(one.sku, one.node): one.quantity for one in before}
    now = {(one.sku, one.node): one.quantity for one in after}
    return [
        Fact(kind="expected", sku=sku, node=node, quantity=now.get((sku, node), 0))
        for sku, node in sorted(set(was) | set(now))
        if was.get((sku, node), 0) != now.get((sku, node), 0)
    ]


def _shipment_facts(order: ShopOrder, cells: Sequence[Cell], shipped: Shipped, rules: Rules) -> list[Fact]:
    """Shipments from the shop's own node: a completed order has left, a cancelled or unpaid one has not."""
    facts = []
    for cell in cells:
        gone = shipped.get((cell.line, cell.sku), {}).get(rules.owned_node, 0)
        if order.status == COMPLETED:
            moved = cell.ordered - gone
        elif order.status == PENDING or _cancels(order.status, rules):
            moved = -gone
        else:
            moved = 0
        if moved:
            facts.append(
                Fact(kind="shipped", line=cell.line, sku=cell.sku, node=rules.owned_node, quantity=moved)
            )
    return facts


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of an order, in this order, and nothing else."""

    revision: int
    status: str
    digest: str
    modified_us: int
    occurred_us: int
    cells: tuple[tuple[str, str, int], ...]
    returns: tuple[tuple[str, str, int], ...]
    kits: tuple[tuple[str, Recipes], ...]
    skus: tuple[tuple[str, str], ...] = ()


def to_bytes(told: Told) -> bytes:
    """Return the stored form."""
    return msgspec.json.encode(
        _Kept(
            told.revision,
            told.status,
            told.digest,
            told.modified_us,
            told.occurred_us,
            tuple((cell.line, cell.sku, cell.ordered) for cell in told.cells),
            tuple((one.sku, one.node, one.quantity) for one in told.returns),
            tuple((use.kit, use.recipes) for use in told.kits),
            told.skus,
        )
    )


def from_bytes(raw: bytes) -> Told:
    """Read the stored form. Raises msgspec.DecodeError."""
    kept = msgspec.json.decode(raw, type=_Kept)
    return Told(
        revision=kept.revision,
        status=kept.status,
        digest=kept.digest,
        modified_us=kept.modified_us,
        occurred_us=kept.occurred_us,
        cells=tuple(Cell(line=line, sku=sku, ordered=units) for line, sku, units in kept.cells),
        returns=tuple(Return(sku=sku, node=node, quantity=units) for sku, node, units in kept.returns),
        kits=tuple(KitUse(kit=kit, recipes=recipes) for kit, recipes in kept.kits),
        skus=kept.skus,
    )
