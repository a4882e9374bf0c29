"""What else goes on while shoppers come: moves of the WMS, a restock, allocations of the ERP, shipments, a snapshot.

One thread plays ERP and WMS over StreamDeltas and keeps their truth (`Book`); another takes a snapshot of it at the
peak and compares it with what the ledger had at the same point.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from availability.client import Acked, Client
from availability.v1 import stock_pb2 as stk
from benchmarks.sale_plan import CHANNEL, NODES, Plan

WMS, ERP, STREAM = "wms", "erp", "moves"
TURN_S = 0.25
OPENING_BATCH = 2_000
SHIPPED_SHARE = 0.7
"""Of the orders: how many leave the house during the sale."""


@dataclass(slots=True)
class Book:
    """What the WMS knows: on hand by (sku, node), the number of its last move; and what became of its deltas."""

    on_hand: Counter[tuple[str, str]] = field(default_factory=Counter)
    shipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    sequence: int = 0
    results: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def settled(self, acked: Acked) -> None:
        """Count a batch's results by name."""
        with self.lock:
            for result in acked.answer.results:
                self.results[stk.DeltaResult.Name(result).removeprefix("DELTA_RESULT_").lower()] += 1


@dataclass(slots=True)
class SnapshotFound:
    """A snapshot during the sale. ``differing``: positions that the ledger had otherwise at its point."""

    rows: int = 0
    took_s: float = 0.0
    point: str = ""
    compared: int = 0
    differing: int = 0


class Feeds:
    """ERP and WMS. ``open`` puts the stock there; ``run`` plays until told to stop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(f"{plan.seed} feeds")
        self.book = Book()
        self.snapshot = SnapshotFound()
        self.orders = 0
        self._client = Client(plan.target, plan.token or None)
        self._erp_sequence = 0
        self._places: dict[Path, int] = {}
        self._restocked = False

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def open(self) -> None:
        """Receive the opening stock of every sku."""
        plan = self._plan
        rows = [(plan.sku(number), node, plan.stock) for number in range(plan.skus) for node in NODES]
        rows += [(sku, NODES[0], plan.hot_stock) for sku in plan.hot]
        sender = self._client.delta_sender(WMS, acked=self.book.settled)
        for first in range(0, len(rows), OPENING_BATCH):
            sender.send(
                [self._move(stk.DELTA_TYPE_RECEIPT, *row) for row in rows[first : first + OPENING_BATCH]]
            )
        sender.close()

    def run(self, began: float, stop: threading.Event) -> None:
        """Play until ``stop``; what is on its way is settled then. ``began``: wall clock of the load's start."""
        wms = self._client.delta_sender(WMS, acked=self.book.settled)
        erp = self._client.delta_sender(ERP, acked=self.book.settled)
        last = False
        while not last:
            last = stop.wait(TURN_S)  # once more after the end: the last orders
            moves = self._moves(time.time() - began)
            allocations = []
            for order, lines in self._new_orders():
                self.orders += 1
                ships = self._chance.random() < SHIPPED_SHARE
                for sku, node, units in lines:
                    allocations.append(self._allocation(order, sku, node, units))
                    if ships:
                        moves.append(self._move(stk.DELTA_TYPE_SHIPMENT, sku, node, units, order))
            if allocations:
                erp.send(allocations)
            wms.send(moves)
        erp.close()
        wms.close()

    def take_snapshot(self) -> None:
        """Send what the WMS has, and compare it with the ledger at the same point of its stream."""
        began = time.monotonic()
        found = self._client.begin_snapshot(WMS, NODES)
        with self.book.lock:
            rows, sequence = dict(self.book.on_hand), self.book.sequence
        self.snapshot.rows = self._client.stream_snapshot(
            found.snapshot_id,
            (stk.SnapshotRow(sku=sku, node=node, on_hand=units) for (sku, node), units in rows.items()),
        )
        mark = stk.SequenceMark(source=WMS, stream=STREAM, source_sequence=sequence)
        self._client.end_snapshot(found.snapshot_id, [mark], row_count=len(rows))
        for page in self._client.read_positions(stk.ReadPositionsRequest(snapshot_id=found.snapshot_id)):
            self.snapshot.point = stk.PointKind.Name(page.point_kind).removeprefix("POINT_KIND_")
            columns = page.positions
            for sku, node, on_hand in zip(
                columns.sku_indexes, columns.node_indexes, columns.on_hand, strict=True
            ):
                self.snapshot.compared += 1
                told = rows.get((columns.skus[sku], columns.nodes[node]), 0)
                self.snapshot.differing += told != on_hand
        self._client.close_snapshot(found.snapshot_id)
        self.snapshot.took_s = time.monotonic() - began

    # --- Inside -------------------------------------------------------------------------------------------

    def _move(
        self, kind: stk.DeltaType.ValueType, sku: str, node: str, units: int, order: str = ""
    ) -> stk.Delta:
        """Make the next move of the WMS, and note it in its book."""
        with self.book.lock:
            self.book.sequence += 1
            place = sku, node
            self.book.on_hand[place] += -units if kind == stk.DELTA_TYPE_SHIPMENT else units
            if kind == stk.DELTA_TYPE_SHIPMENT:
                self.book.shipped[place] += units
            sequence = self.book.sequence
        delta = stk.Delta(
            source=WMS, stream=STREAM, source_sequence=sequence, type=kind, sku=sku, node=node, quantity=units
        )
        if order:
            delta.order_source, delta.order_ref = CHANNEL, order
        return delta

    def _moves(self, second: float) -> list[stk.Delta]:
        """Return a turn's moves: goods in and counted differences of ordinary skus, and the restock when it is time."""
        chance, plan = self._chance, self._plan
        moves = []
        for _ in range(int(plan.deltas_per_s * TURN_S)):
            sku, node = plan.sku(chance.randrange(plan.skus)), chance.choice(NODES)
            if chance.random() < 0.8:
                moves.append(self._move(stk.DELTA_TYPE_RECEIPT, sku, node, chance.randint(1, 20)))
            else:
                moves.append(self._move(stk.DELTA_TYPE_ADJUSTMENT, sku, node, -1))
        if not self._restocked and second >= plan.restock_at_s:
            self._restocked = True
            moves += [self._move(stk.DELTA_TYPE_RECEIPT, sku, NODES[1], plan.restock) for sku in plan.hot]
        return moves

    def _allocation(self, order: str, sku: str, node: str, units: int) -> stk.Delta:
        self._erp_sequence += 1
        now = Timestamp()
        now.GetCurrentTime()
        return stk.Delta(
            source=ERP, stream="orders", source_sequence=self._erp_sequence,
            type=stk.DELTA_TYPE_ORDER_ALLOCATED, sku=sku, node=node, quantity=units,
            order_source=CHANNEL, order_ref=order, occurred_time=now,
            allocation_basis=stk.ALLOCATION_BASIS_CUMULATIVE,
        )  # fmt: skip

    def _new_orders(self) -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
        """Yield the orders that shoppers have paid since the last look, from what their processes write."""
        for path in Path(self._plan.out).glob("shoppers-*.jsonl"):
            with path.open("rb") as journal:
                journal.seek(self._places.get(path, 0))
                for line in journal:
                    if not line.endswith(b"\n"):
                        break  # half written
                    self._places[path] = self._places.get(path, 0) + len(line)
                    if b'"commit"' in line:
                        found = json.loads(line)
                        units: Counter[tuple[str, str]] = Counter()
                        for sku, node, quantity in found["lines"]:
                            units[sku, node] += quantity
                        yield found["order"], [(sku, node, count) for (sku, node), count in units.items()]
