"""A day of orders with deltas lost, doubled and in cases, then one night under full traffic: all found, all mended.

The orders are generated; with --full they are real ones where the file is there. Nothing else may be touched, and a
second night finds nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from zlib import crc32

import polars as pl
import pytest

from availability.client import Client
from availability.v1 import stock_pb2 as pb
from ingest.reconcile.store import CORRECTED, DONE
from tests.conftest import Names, Server
from tests.reconcile_lab import STREAM, Books, Lab, snapshot

CAUSES = {"LOST": "MISSED_DELTA", "DOUBLED": "DUPLICATE_DELTA", "CASES": "UNIT_OR_MAPPING"}
REAL_ORDERS = Path(__file__).parent.parent.parent / "shared" / "data" / "online_retail.parquet"
REAL_LINES = 60_000
CASE = 12
OPEN_SHARE = 0.1
FAULTS = (("LOST", 0.01), ("DOUBLED", 0.02), ("CASES", 0.025))
"""Cumulative: 1 % lost, 1 % doubled, 0.5 % in cases."""

Line = tuple[str, str, int]
"""Order, sku, units."""


def generated(random: Random, lines: int) -> list[Line]:
    """Orders of one to four lines; some units are whole cases, as wholesalers buy."""
    found: list[Line] = []
    order = 0
    while len(found) < lines:
        order += 1
        for sku in random.sample(range(60), random.randint(1, 4)):
            units = random.choice((1, 1, 2, 3, 5, CASE, 2 * CASE, 4 * CASE))
            found.append((f"order {order}", f"sku {sku}", units))
    return found


def real(lines: int) -> list[Line]:
    """The first sales of the real file; the same sku twice in one order is one line."""
    frame = pl.scan_parquet(REAL_ORDERS).filter((pl.col("quantity") > 0) & (pl.col("quantity") <= 10_000))
    grouped = frame.head(lines).group_by("order_id", "sku", maintain_order=True).agg(pl.col("quantity").sum())
    return [(str(order), str(sku), int(units)) for order, sku, units in grouped.collect().iter_rows()]


class Day:
    """A day at a source: supply is announced and comes, orders are placed, allocated and mostly shipped."""

    def __init__(
        self, books: Books, names: Names, random: Random, nodes: tuple[str, ...], begun_us: int
    ) -> None:
        self.books = books
        self.names = names
        self.random = random
        self.nodes = nodes
        self.at_us = begun_us
        self.open: dict[tuple[str, str, str], int] = defaultdict(int)
        self.in_ledger_only: Counter[str] = Counter()
        self.order_faults: Counter[str] = Counter()
        self.faulty = False
        self.sure = list(CAUSES)
        """Faults that chance may not leave out."""

    def _fault(self, units: int) -> str:
        if self.faulty and self.sure and units % CASE == 0:
            return self.sure.pop()
        drawn = self.random.random()
        fault = next((name for name, share in FAULTS if drawn < share), "") if self.faulty else ""
        return "" if fault == "CASES" and units % CASE else fault

    def _step(self) -> int:
        self.at_us += self.random.randint(1_000, 3_000)
        return self.at_us

    def supply(self, sku: str, node: str, number: int) -> None:
        """Goods come in whole cases, announced before."""
        units, reference = CASE * self.random.randint(5, 30), f"PO {number}"
        self.books.move("EXPECTED", sku, node, units, self._step(), reference=reference)
        self.books.move("RECEIPT", sku, node, units, self._step(), self._fault(units), reference=reference)

    def sell(self, order: str, sku: str, units: int) -> None:
        """One line: placed, allocated, and shipped but for a tenth."""
        node = self.nodes[crc32(f"{order} {sku}".encode()) % len(self.nodes)]
        told = {"order_ref": order, "line": sku}
        self.books.move("ORDER_PLACED", sku, "", units, self._step(), **told)
        self.books.move("ORDER_ALLOCATED", sku, node, units, self._step(), **told)
        self.open[order, sku, node] += units
        if self.random.random() >= OPEN_SHARE:
            self.ship(order, sku, node)

    def ship(self, order: str, sku: str, node: str) -> None:
        """Everything open of a line leaves."""
        units = self.open.pop((order, sku, node))
        fault = self._fault(units)
        self.books.move("SHIPMENT", sku, node, units, self._step(), fault, order_ref=order, line=sku)
        if fault in ("LOST", "CASES"):
            self.order_faults[fault] += 1

    def write_orders(self, file: Path) -> None:
        """Write the open order lines, and the point."""
        lines = [f"{order},{sku},{sku},{node},{units}" for (order, sku, node), units in self.open.items()]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(["order,line,sku,node,open", *lines]) + "\n", encoding="utf-8")
        point = {"as_of": {STREAM: self.books.sequence}}
        Path(f"{file}.point").write_text(json.dumps(point), encoding="utf-8")


class Traffic:
    """Checkouts that hold, sell and give back, and a source that goes on telling, for as long as the night takes."""

    def __init__(self, lab: Lab, day: Day, names: Names, skus: list[str]) -> None:
        self._lab, self._day, self._names, self._skus = lab, day, names, skus
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._checkout, self._source)]
        self.failures: list[BaseException] = []
        self.held: Counter[str] = Counter()
        self.sold: Counter[str] = Counter()
        self.rounds = 0

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _checkout(self) -> None:
        try:
            random = Random(5)
            with Client(self._lab.server.grpc) as client:
                while not self._stop.is_set():
                    sku = random.choice(self._skus)
                    answer = client.reserve(self._names.channel(), {sku: 1}, hold_s=3_600)
                    held = answer.reservation.reservation_id
                    if not held:
                        continue
                    self.rounds += 1
                    if self.rounds % 3 == 0:
                        client.release(held)
                    elif self.rounds % 3 == 1:
                        client.commit(held, order_ref=self._names.id(f"web {self.rounds}"))
                        self.sold[sku] += 1
                    else:
                        self.held[sku] += 1
        except BaseException as error:
            self.failures.append(error)

    def _source(self) -> None:
        try:
            number = 0
            with Client(self._lab.server.grpc) as client:
                while not self._stop.is_set():
                    number += 1
                    sku = self._skus[number % len(self._skus)]
                    self._day.supply(sku, self._day.nodes[number % len(self._day.nodes)], 1_000_000 + number)
                    self._day.sell(f"late {number}", sku, 2)
                    self._day.books.tell(client)
        except BaseException as error:
            self.failures.append(error)


@pytest.fixture
def lab(server: Server, names: Names, tmp_path: Path) -> Iterator[Lab]:
    nodes = (names.node("a"), names.node("b"))
    source = names.id("wms")
    guard = {"free_positions": 100_000, "age_hours_max": 8_760, "position_units_max": 1_000_000}
    stock = snapshot(source, tmp_path / "stock", nodes, guard=guard, rank=1)
    orders = snapshot(
        source, tmp_path / "orders", nodes, guard=guard, name="orders", kind="ORDERS", rank=2,
        mapping={
            "version": "1",
            "columns": {"sku": "sku", "node": "node", "quantity": "open", "order_ref": "order", "line": "line"},
            "units": {"factors": {"CS": str(CASE)}},
        },
        order_sources=[source],
    )  # fmt: skip
    made = Lab(server, tmp_path, {"stock": stock, "orders": orders})
    made.now = time.time() + 100
    yield made
    made.close()


def deliver(lab: Lab, day: Day, night: int) -> None:
    lab.now = time.time() + 100  # files are older than that
    day.books.write(lab.folder / "stock" / f"stock-{night}.csv")
    day.write_orders(lab.folder / "orders" / f"orders-{night}.csv")


def test_every_fault_is_found_and_mended_in_one_night(lab: Lab, names: Names, seed: int, full: bool) -> None:
    """1 % of the moves of stock lost, 1 % doubled, 0.5 % in cases: each found with its cause, the ledger exact."""
    random = Random(seed)
    lines = real(REAL_LINES) if full and REAL_ORDERS.exists() else generated(random, 20_000 if full else 700)
    nodes = lab.snapshots["stock"].nodes
    books = Books(lab.snapshots["stock"].source)
    day = Day(books, names, random, nodes, int((time.time() - 7_200) * 1e6))
    skus = sorted({sku for _, sku, _ in lines})
    named = {sku: names.sku(sku) for sku in skus}
    for sku in skus:
        for node in nodes:
            books.move("RECEIPT", named[sku], node, 50_000, day._step())
    books.tell(lab.client)
    deliver(lab, day, 0)
    assert {run.state for run in lab.nightly().runs} == {DONE}, lab.said

    day.faulty = True
    for number, (order, sku, units) in enumerate(lines):
        if number % 3 == 0:
            day.supply(named[skus[number % len(skus)]], nodes[number % 2], number)
        day.sell(f"{names.number} {order}", named[sku], units)
    day.faulty = False
    books.tell(lab.client)
    deliver(lab, day, 1)
    faults = {place: list(kinds) for place, kinds in books.faults.items()}
    assert {kind for kinds in faults.values() for kind in kinds} == set(CAUSES)
    quiet = [named[sku] for sku in skus]
    with Traffic(lab, day, names, quiet) as traffic:
        began = time.monotonic()
        night = lab.nightly()
        took = time.monotonic() - began
    assert traffic.failures == []
    assert traffic.rounds > 0
    assert [run.state for run in night.runs] == [DONE, DONE], lab.said

    stock_run, order_run = night.runs
    causes: dict[tuple[str, str], list[str]] = {}
    for one in lab.store.variances(stock_run.run_id):
        assert one.state == CORRECTED, one
        causes[one.sku, one.node] = [cause for cause, *_ in lab.store.parts(stock_run.run_id, one.number)]
    expected = {
        place: sorted(CAUSES[kind] for kind in kinds) for place, kinds in faults.items() if books.off[place]
    }
    several = {place for place, kinds in faults.items() if len(kinds) > 1}
    assert causes.keys() == expected.keys()
    wrong = {
        place: (causes[place], want) for place, want in expected.items() if sorted(causes[place]) != want
    }
    assert [place for place in wrong if place not in several] == [], wrong
    of_orders = Counter(one.cause for one in lab.store.variances(order_run.run_id) if one.state == CORRECTED)
    assert of_orders == Counter({CAUSES[kind]: count for kind, count in day.order_faults.items()})

    assert_exact(lab, day, traffic)
    told, even = sum(len(kinds) for kinds in faults.values()), len(faults) - len(expected)
    print(
        f"{len(lines)} lines, {told} faults at {len(faults)} positions ({even} made up for each other);"
        f" of {len(several)} with several {len(wrong)} were told otherwise;"
        f" night {took:.1f} s, {traffic.rounds} checkouts meanwhile"
    )
    deliver(lab, day, 2)
    before = lab.stock(nodes)
    again = lab.nightly()
    assert [(run.state, lab.store.states(run.run_id)) for run in again.runs] == [(DONE, {}), (DONE, {})]
    assert lab.stock(nodes) == before


def assert_exact(lab: Lab, day: Day, traffic: Traffic) -> None:
    """Hold every figure of the ledger against the source's books and the checkouts' own."""
    found = lab.stock(day.nodes)
    assert {place: one[0] for place, one in found.items()} == {
        place: units for place, units in day.books.stock.items() if place[1]
    }
    committed: Counter[str] = Counter()
    reserved: Counter[str] = Counter()
    for (sku, _), one in found.items():
        reserved[sku] += one[2]
        committed[sku] += one[3]
    owed = Counter(traffic.sold)
    for (_, sku, _), units in day.open.items():
        owed[sku] += units
    assert +reserved == +traffic.held
    assert +committed == +owed


def test_types_of_the_test() -> None:
    """A move in cases tells a twelfth, a doubled one comes twice, a lost one not at all."""
    books = Books("s")
    for fault in ("", "LOST", "DOUBLED", "CASES"):
        books.move("RECEIPT", "a", "n", CASE, 1, fault)
    assert [delta.quantity for delta in books.untold] == [CASE, CASE, CASE, 1]
    assert books.stock["a", "n"] == 4 * CASE
    assert pb.Delta(source="s").source == "s"
