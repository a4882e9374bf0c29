"""What the model keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.facts import Order, Word
from tests.model.told import (
    Changed,
    Delta,
    Granted,
    Key,
    Lines,
    OrderName,
    Override,
    Part,
    Policy,
    Refusal,
    Units,
)
from tests.model.totals import add


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


class State:
    """All that the model knows."""

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

    def _position(self, sku: str, node: str) -> Position:
        return self.positions.setdefault(sku, {}).setdefault(node, Position())

    def _replace(self, totals: dict[tuple[str, str], int], sku: str, before: Units, after: Units) -> None:
        for node, units in before.items():
            add(totals, (sku, node), -units)
        for node, units in after.items():
            add(totals, (sku, node), units)
            if units:
                self._position(sku, node)
