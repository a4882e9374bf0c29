"""What the ledger had at a point, against a plain model that never heard of what came after it.

A tale of numbered and other deltas, order facts, holds and corrections is told to a real ledger and, but for the
numbered deltas after the point, to the model. What the ledger's side says is settled must be what the model has; and
only what the rules name may be unsettled.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any  # Any: fields of deltas, by name

import pytest

from availability.ledger.snapshots import SnapshotBegin, SnapshotEnd, SnapshotLedger
from availability.service.auth import Principal
from availability.service.context import CallContext
from availability.service.snapshot_reads import SnapshotReader
from availability.v1 import stock_pb2 as stk
from tests.faults.lab import Lab, deadline, own_lab, request_key
from tests.model import Delta, Model
from tests.wire import to_proto

STREAMS = (("erp", "stock"), ("erp", "orders"), ("wms", "moves"))
NODES = ("n1", "n2")
PLENTY = 100_000
"""No hold of a tale is refused, so that what comes after the point decides nothing before it."""
STOCK_TYPES = (
    *("RECEIPT", "RECEIPT", "ADJUSTMENT", "SHIPMENT", "SHIPMENT", "QUARANTINE", "QUARANTINE_RELEASE"),
    *("WRITE_OFF", "RETURN_RECEIVED", "TRANSFER_OUT", "TRANSFER_IN", "SET_ON_HAND"),
)
ORDER_TYPES = ("ORDER_ALLOCATED",) * 3 + ("ORDER_PLACED", "ORDER_CHANGED", "ORDER_CANCELLED")
START_US = (int(time.time()) - 7_200) * 1_000_000
_numbers = count(1)
Seen = dict[tuple[str, str], tuple[int, dict[str, int], int, bool, bool]]
"""(sku, node) → on_hand, quarantined by reason, confirmed, whether these are settled, whether confirmed is."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A ledger of this module's own; every tale has skus, orders and streams of its own."""
    with own_lab() as made:
        yield made


@dataclass
class Step:
    """One thing of a tale: deltas of one source in one call, or a hold that is kept, committed or released."""

    deltas: list[Delta] = field(default_factory=list)
    hold: tuple[str, str, int, str] | None = None
    """(id, node, units, what becomes of it: an order, "released" or "")"""


class Tale:
    """A random tale; ``late`` share of it comes after the point."""

    def __init__(self, rng: random.Random, steps: int) -> None:
        self.rng = rng
        self.name = f"t{next(_numbers)}"
        self.skus = [f"{self.name} {letter}" for letter in "ab"]
        self.sent = Counter[tuple[str, str]]()
        self.moment = 0
        self.steps = [self._step() for _ in range(steps)]

    def _step(self) -> Step:
        rng = self.rng
        kind = rng.random()
        if kind < 0.12:
            end = rng.choice(["", "released", self._order(), self._order()])
            return Step(hold=(f"{self.name} h{next(_numbers)}", rng.choice(NODES), rng.randint(1, 3), end))
        if kind < 0.2:
            source = rng.choice(["erp", "reconcile"])
            return Step(deltas=[self._named(self._stock(source))])
        source, stream = rng.choice(STREAMS)
        return Step(deltas=[self._numbered(source, stream) for _ in range(rng.randint(1, 4))])

    def _order(self) -> str:
        return f"{self.name} o{self.rng.randint(1, 3)}"

    def _numbered(self, source: str, stream: str) -> Delta:
        self.sent[source, stream] += 1
        orders = stream == "orders" or self.rng.random() < 0.1
        one = self._fact(source) if orders else self._stock(source)
        number = self.sent[source, stream]
        return replace(one, stream=f"{self.name} {stream}", source_sequence=number)

    def _named(self, one: Delta) -> Delta:
        return replace(one, event_id=f"{self.name} e{next(_numbers)}")

    def _stock(self, source: str) -> Delta:
        rng = self.rng
        kind = rng.choice(STOCK_TYPES)
        node = rng.choice(NODES)
        fields: dict[str, Any] = {"quantity": rng.randint(1, 5)}
        if kind in ("QUARANTINE", "QUARANTINE_RELEASE", "WRITE_OFF") or rng.random() < 0.2:
            fields["reason"] = rng.choice(["damage", "recall"])
        if kind == "ADJUSTMENT":
            fields["quantity"] = rng.choice([-3, -1, 2, 4])
            fields["quarantined"] = "reason" in fields and rng.random() < 0.5
        if kind == "TRANSFER_OUT":
            fields["to_node"] = NODES[node == NODES[0]]
        if kind == "SHIPMENT" and rng.random() < 0.5:
            fields |= {"order_source": "web", "order_ref": self._order(), "line": rng.choice(["", "1"])}
        if kind == "SET_ON_HAND":
            fields = {"quantity": PLENTY + rng.randint(0, 9)}
        return self._at(Delta(source=source, type=kind, sku=rng.choice(self.skus), node=node, **fields))

    def _fact(self, source: str) -> Delta:
        rng = self.rng
        kind = rng.choice(ORDER_TYPES)
        fields: dict[str, Any] = {"sku": rng.choice(self.skus), "quantity": rng.randint(0, 6)}
        fields |= {"order_source": "web", "order_ref": self._order(), "line": rng.choice(["", "1", "2"])}
        if kind == "ORDER_ALLOCATED":
            fields["node"] = rng.choice(NODES)
        elif kind == "ORDER_CANCELLED":
            fields |= {"quantity": 0, "line": ""}
            if rng.random() < 0.5:
                fields["sku"] = ""
        return self._at(Delta(source=source, type=kind, **fields))

    def _at(self, one: Delta) -> Delta:
        """Facts come mostly in the order in which they happened."""
        self.moment += 1
        moment = self.moment - (self.rng.randint(0, 12) if self.rng.random() < 0.3 else 0)
        return replace(one, occurred_us=START_US + moment * 1_000_000)


class TooOld(Exception):
    """A count came after more changes than are remembered: its number is consumed, and the tale is of no use."""


def start(lab: Lab, tale: Tale, model: Model) -> None:
    """Count every position first: from then on changes are remembered one by one."""
    for sku in tale.skus:
        for node in NODES:
            fields: dict[str, Any] = {
                "sku": sku,
                "node": node,
                "quantity": PLENTY,
                "occurred_us": START_US - 10**8,
            }
            first = Delta(source="erp", type="SET_ON_HAND", event_id=f"{sku} {node}", **fields)
            tell(lab, [first])
            model.apply_delta(first)


def tell(lab: Lab, deltas: list[Delta]) -> None:
    results = lab.results(*(to_proto(one) for one in deltas))
    if "REJECTED POINT_TOO_OLD" in results:
        raise TooOld
    assert set(results) <= {"APPLIED", "STALE"}, results


def take(lab: Lab, tale: Tale, step: Step, shadow: Model, late: dict[tuple[str, str], int]) -> None:
    """Tell a step to the ledger, and to the model all but what is later than the numbers."""
    if step.hold is not None:
        name, node, units, end = step.hold
        sku = tale.skus[0]
        assert lab.reserve(name, [(sku, units)], node=node).status == "RESERVED"
        shadow.reserve(name, "web", [(sku, units)], node=node, reservation_id=f"r-{name}")
        if end == "released":
            assert lab.release(f"{name} x", f"r-{name}").status == "RELEASED"
            shadow.release(f"{name} x", f"r-{name}")
        elif end:
            assert lab.commit(f"{name} c", f"r-{name}", end, "web").status == "COMMITTED"
            shadow.commit(f"{name} c", f"r-{name}", order_source="web", order_ref=end)
        return
    tell(lab, step.deltas)
    for one in step.deltas:
        stream = (one.source, one.stream.removeprefix(f"{tale.name} "))
        if not (one.source_sequence and one.source_sequence > late.get(stream, 1 << 60)):
            # The model wants every number of a stream: those of the point are without gaps.
            shadow.apply_delta(one)


def context() -> CallContext:
    return CallContext(Principal(id="tester", scopes=frozenset()), deadline(30))


def read(lab: Lab, tale: Tale, *, source: str = "erp", **asked: Any) -> Seen:
    """Read the ledger's side of a tale's skus."""
    reader = SnapshotReader(lab.ledger, SnapshotLedger(lab.ledger))
    found: Seen = {}
    request = stk.ReadPositionsRequest(include_confirmed=True, **asked)
    for page in reader.read_positions(request, context()):
        columns = page.positions
        reasons: dict[int, dict[str, int]] = {}
        for units in columns.quarantined_units:
            reasons.setdefault(units.row, {})[units.reason] = units.quantity
        for row in range(len(columns.on_hand)):
            sku, node = columns.skus[columns.sku_indexes[row]], columns.nodes[columns.node_indexes[row]]
            if sku in tale.skus:
                found[sku, node] = (
                    columns.on_hand[row],
                    reasons.get(row, {}),
                    columns.confirmed[row],
                    columns.settling[row] == stk.SETTLING_SETTLED,
                    columns.confirmed_settling[row] == stk.SETTLING_SETTLED,
                )
    return found


def of_model(model: Model, sku: str, node: str, source: str = "erp") -> tuple[int, dict[str, int], int]:
    position = model.positions[sku][node]
    reasons = {reason: units for reason, units in position.quarantined.items() if units}
    confirmed = model.confirmed(sku, node, source) + model.confirmed(sku, node, "reconcile")
    return position.on_hand, reasons, confirmed


def point_of(tale: Tale, numbers: dict[tuple[str, str], int]) -> stk.SnapshotPoint:
    marks = [
        stk.SequenceMark(source=source, stream=f"{tale.name} {stream}", source_sequence=number)
        for (source, stream), number in numbers.items()
    ]
    return stk.SnapshotPoint(source="erp", as_of=marks)


SIZES = {False: 30, True: 400}


def test_by_sequences_the_ledgers_side_is_what_it_had(lab: Lab, seed: int, *, full: bool) -> None:
    """Whatever came after the numbers, of these streams or others: what is settled is right to the unit."""
    rng = random.Random(seed)
    tallies = Counter[str]()
    for _ in range(SIZES[full]):
        tale = Tale(rng, rng.randint(5, 40))
        cut = rng.randint(0, len(tale.steps))
        numbers = dict.fromkeys(STREAMS, 0)
        for step in tale.steps[:cut]:
            for one in step.deltas:
                if one.source_sequence:
                    numbers[one.source, one.stream.removeprefix(f"{tale.name} ")] = one.source_sequence
        for stream in STREAMS:  # within a call, and a stream that lags behind the others
            numbers[stream] = min(tale.sent[stream], max(0, numbers[stream] + rng.choice([0, 0, -1, 1, 3])))
        shadow = Model()
        start(lab, tale, shadow)
        try:
            for step in tale.steps:
                take(lab, tale, step, shadow, numbers)
        except TooOld:
            continue
        only_numbered = not any(step.deltas and step.deltas[0].event_id for step in tale.steps)
        seen = read(lab, tale, point=point_of(tale, numbers))
        assert len(seen) == len(tale.skus) * len(NODES)
        for (sku, node), (on_hand, reasons, confirmed, settled, confirmed_settled) in seen.items():
            mine = of_model(shadow, sku, node)
            what = f"{sku} at {node}, numbers {numbers}, cut {cut}: {tale.steps}"
            if settled:
                assert (on_hand, reasons) == mine[:2], what
            if confirmed_settled:
                assert confirmed == mine[2], what
            counted = any(d.type == "SET_ON_HAND" and d.sku == sku for s in tale.steps for d in s.deltas)
            if only_numbered and not counted and numbers[STREAMS[0]] > 3:
                assert settled, f"units add up in any order: {what}"
            tallies["settled" if settled else "unsettled"] += 1
            tallies["confirmed settled" if confirmed_settled else "confirmed unsettled"] += 1
            tallies["confirmed"] += bool(confirmed and confirmed_settled)
    for hard in ("settled", "unsettled", "confirmed settled", "confirmed unsettled", "confirmed"):
        assert tallies[hard] >= SIZES[full] // 10, f"the tales are too easy: {tallies}"


def test_with_one_stream_everything_is_settled(lab: Lab, seed: int) -> None:
    """Orders, counts and stock in one stream, all of it numbered: nothing is left open, to the unit."""
    rng = random.Random(seed)
    confirmed_ones = 0
    for _ in range(20):
        tale = Tale(rng, rng.randint(5, 30))
        first = Delta(source="erp", type="RECEIPT", sku=tale.skus[0], node="n1", quantity=1)
        steps, number = list[Step](), 0
        tale.steps.insert(0, Step(deltas=[first]))
        for step in tale.steps:
            if step.hold is not None:
                steps.append(Step(hold=(*step.hold[:3], "")))  # a commit of ours has no number
                continue
            deltas = []
            for one in step.deltas:
                number += 1
                deltas.append(
                    replace(
                        one, source="erp", stream=f"{tale.name} stock", source_sequence=number, event_id=""
                    )
                )
            steps.append(Step(deltas=deltas))
        tale.steps = steps
        numbers = {STREAMS[0]: rng.randint(1, number)}
        shadow = Model()
        start(lab, tale, shadow)
        for step in tale.steps:
            take(lab, tale, step, shadow, numbers)
        seen = read(lab, tale, point=point_of(tale, numbers))
        for (sku, node), found in seen.items():
            assert found == (*of_model(shadow, sku, node), True, True), f"{sku} at {node}: {numbers}"
            confirmed_ones += found[2] > 0
    assert confirmed_ones > 2, "the tales are too easy"


def test_by_marks_exactly_what_changed_between_them_is_unsettled(lab: Lab, seed: int) -> None:
    """Positions that changed between the marks, and no others; those have what they had at the second mark."""
    rng = random.Random(seed)
    store = SnapshotLedger(lab.ledger)
    tallies = Counter[str]()
    for _ in range(20):
        tale = Tale(rng, rng.randint(6, 30))
        first, second = sorted(rng.sample(range(len(tale.steps) + 1), 2))
        model = Model()
        start(lab, tale, model)
        at_end: dict[tuple[str, str], Any] = {}
        before: dict[tuple[str, str], Any] = {}
        for number, step in enumerate([*tale.steps, Step()]):
            if number == first:
                before = {(sku, node): of_model(model, sku, node) for sku in tale.skus for node in NODES}
                begun = SnapshotBegin(request_key(f"{tale.name} b"), tale.name, "erp", [], 1, 1, 1)
                assert store.begin(begun, deadline()).status == "OK"
            if number == second:
                at_end = {(sku, node): of_model(model, sku, node) for sku in tale.skus for node in NODES}
                ended = SnapshotEnd(request_key(f"{tale.name} e"), tale.name, [], -1)
                assert store.end(ended, deadline()).status == "OK"
            if number < len(tale.steps):
                take(lab, tale, step, model, {})
        changed = {
            (d.sku, d.node)
            for step in tale.steps[first:second]
            for d in step.deltas
            if d.source != "reconcile" and d.type not in ("ORDER_PLACED", "ORDER_CHANGED", "ORDER_CANCELLED")
        }
        for place, (on_hand, reasons, _, settled, confirmed_settled) in read(
            lab, tale, snapshot_id=tale.name
        ).items():
            # What a run corrected after the second mark counts as known at it.
            corrected = sum(
                1
                for step in tale.steps[second:]
                for d in step.deltas
                if d.source == "reconcile" and (d.sku, d.node) == place
            )
            if settled:
                if not corrected:
                    assert (on_hand, reasons) == at_end[place][:2], f"{place}: {tale.steps[first:second]}"
                tallies["settled"] += 1
            else:
                # A correction that a count of later had its say in leaves open what there was.
                assert place in changed or corrected, f"{place} did not change between the marks"
                tallies["unsettled"] += 1
            if before[place][:2] != at_end[place][:2] and place in changed:
                moved = [d for s in tale.steps[first:second] for d in s.deltas if (d.sku, d.node) == place]
                if all(d.source != "reconcile" for d in moved):
                    assert not settled, f"{place} changed between the marks"
            tallies["confirmed settled"] += confirmed_settled
    assert min(tallies["settled"], tallies["unsettled"], tallies["confirmed settled"]) > 5, tallies


def test_confirmed_and_open_lines_are_those_of_the_model(lab: Lab, seed: int) -> None:
    """What sources have confirmed, and every open order line, as the plain model has them."""
    rng = random.Random(seed)
    for _ in range(15):
        tale = Tale(rng, rng.randint(5, 40))
        model = Model()
        start(lab, tale, model)
        for step in tale.steps:
            take(lab, tale, step, model, {})
        stock = confirmed_now(lab)
        for sku in tale.skus:
            for node in NODES:
                mine = {source: model.confirmed(sku, node, source) for source in ("erp", "wms", "reconcile")}
                theirs = {source: stock.get((sku, node), {}).get(source, 0) for source in mine}
                assert theirs == mine, f"{sku} at {node}: {tale.steps}"
        found = {}
        for page in SnapshotReader(lab.ledger, SnapshotLedger(lab.ledger)).read_order_lines(
            stk.ReadOrderLinesRequest(point=stk.SnapshotPoint(source="erp")), context()
        ):
            for line in page.lines:
                if line.sku in tale.skus:
                    assert sum(at.open_quantity for at in line.nodes) == line.open_quantity
                    found[(line.order_source, line.order_ref), line.line, line.sku] = line.open_quantity
        assert found == model.open_lines(), tale.steps


def confirmed_now(lab: Lab) -> dict[tuple[str, str], dict[str, int]]:
    """What each source has confirmed, by (sku, node)."""
    index, found = 0, {}
    while index >= 0:
        rest = SnapshotLedger(lab.ledger).stock(index, 100, confirmed=True).rest
        places = [(sku, node) for sku, nodes in zip(rest.skus, rest.nodes, strict=True) for node in nodes]
        for extra in rest.extras:
            found[places[extra.place]] = extra.confirmed if isinstance(extra.confirmed, dict) else {}
        index = rest.next_index
    return found


def test_a_word_that_a_later_one_hid_is_not_taken_for_known(lab: Lab) -> None:
    """Two streams tell one line: the later word comes first, the older is STALE and leaves no trace. What was confirmed
    at the point is not known, and said so; where the other stream had passed its number before, it is."""
    for number, first in enumerate(("late", "early")):
        sku, order = f"hidden {number}", f"hidden order {number}"
        words = {
            "early": Delta(
                source="erp",
                stream=f"{sku} a",
                source_sequence=1,
                type="ORDER_ALLOCATED",
                sku=sku,
                node="n1",
                quantity=5,
                order_ref=order,
                occurred_us=START_US,
            ),
            "late": Delta(
                source="erp",
                stream=f"{sku} b",
                source_sequence=2,
                type="ORDER_ALLOCATED",
                sku=sku,
                node="n1",
                quantity=3,
                order_ref=order,
                occurred_us=START_US + 1,
            ),
        }
        tell(
            lab,
            [
                Delta(
                    source="erp",
                    stream=f"{sku} b",
                    source_sequence=1,
                    type="RECEIPT",
                    sku=sku,
                    node="n1",
                    quantity=9,
                )
            ],
        )
        for name in (first, "early" if first == "late" else "late"):
            tell(lab, [words[name]])
        tale = Tale(random.Random(1), 0)
        tale.skus = [sku]
        marks = [
            stk.SequenceMark(stream=f"{sku} a", source_sequence=1),
            stk.SequenceMark(stream=f"{sku} b", source_sequence=1),
        ]
        ((_, _, confirmed, settled, confirmed_settled),) = read(
            lab, tale, point=stk.SnapshotPoint(source="erp", as_of=marks)
        ).values()
        assert settled
        assert confirmed_settled == (first == "early")
        if confirmed_settled:
            assert confirmed == 5
