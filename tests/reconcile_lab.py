"""What the tests of reconciliation share: a real server, its journal, a source with its own books, its snapshots."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from availability.client import Client
from availability.config import load_settings
from availability.history.app import LedgerSide, build, ledger_side, with_redis
from availability.history.database import open_database
from availability.history.historian import Historian
from availability.history.seal import Sealer
from availability.telemetry import HistoryMetrics
from availability.v1 import stock_pb2 as pb
from ingest.reconcile.book import ClientLedger
from ingest.reconcile.desk import Desk
from ingest.reconcile.journal import Journal
from ingest.reconcile.nightly import Night, Nightly
from ingest.reconcile.points import Point
from ingest.reconcile.settings import SnapshotSettings
from ingest.reconcile.store import Run, Store
from tests.conftest import Server

STREAM = "moves"
HISTORIAN_STEPS = 2_000


class Lab:
    """One server with its history, and a desk. ``now`` is moved by the tests."""

    def __init__(self, server: Server, folder: Path, snapshots: dict[str, SnapshotSettings]) -> None:
        self.server = server
        self.folder = folder
        self.snapshots = snapshots
        self.now = 0.0
        self._stack = ExitStack()
        self.client = self._stack.enter_context(Client(server.grpc))
        self.engine: Engine = open_database("", folder)
        self._stack.callback(self.engine.dispose)
        self.store = Store(self.engine)
        self.ledger = ClientLedger(self.client)
        self.said: list[str] = []
        self._historian: Historian | None = None
        self._side: LedgerSide
        self.run_ids = iter(f"run{number:06}" for number in range(1, 1_000))

    def close(self) -> None:
        self._stack.close()

    def desk(self, ledger: Any = None) -> Desk:  # Any: whatever stands in for the server
        return Desk(
            self.store,
            Journal(self.engine),
            ledger or self.ledger,
            self.folder / "reconcile",
            snapshots=self.snapshots.values(),
            now=lambda: self.now,
            new_run_id=lambda: next(self.run_ids),
            sleep=lambda _: None,
        )

    def nightly(self) -> Night:
        """Run a night, the history first."""
        self.write_history()
        night = Nightly(
            self.desk(), self.store, self.ledger, self.client, self.snapshots, self.folder / "reconcile",
            lambda: self.now, self.said.append,
        )  # fmt: skip
        return night.run()

    def run(self, name: str, file: Path, point: Point, ledger: Any = None) -> Run:  # Any: as above
        self.write_history()
        return self.desk(ledger).run(self.snapshots[name], file, point).run

    def write_history(self) -> None:
        """Let a historian write everything that has happened."""
        if self._historian is None:
            settings = with_redis(load_settings(), self.server.redis)
            self._side = self._stack.enter_context(ledger_side(settings))
            self._historian = build(
                settings, self._side, self.engine, Sealer(b"k" * 40), HistoryMetrics(), threading.Event()
            )
        head = self._side.ledger.head().version
        for _ in range(HISTORIAN_STEPS):
            self._historian.step()
            if self._historian.place is not None and self._historian.place.version >= head:
                return
        raise AssertionError("the historian does not catch up")

    def stock(self, nodes: tuple[str, ...]) -> dict[tuple[str, str], tuple[int, int, int, int]]:
        """Return on_hand, quarantined, reserved and committed of the ledger now, by position."""
        found = {}
        request = pb.ReadPositionsRequest(point=pb.SnapshotPoint(source="anybody", nodes=nodes))
        for page in self.ledger.positions(request):
            columns = page.positions
            for row, (sku, node) in enumerate(zip(columns.sku_indexes, columns.node_indexes, strict=True)):
                found[columns.skus[sku], columns.nodes[node]] = (
                    columns.on_hand_now[row],
                    columns.quarantined[row],
                    columns.reserved[row],
                    columns.committed[row],
                )
        return found


@dataclass
class Books:
    """A source: what it has, and what it tells of it, numbered without gaps. ``lost`` and ``doubled`` name moves."""

    source: str
    stock: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    sequence: int = 0
    untold: list[pb.Delta] = field(default_factory=list)
    faults: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    off: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """What was told less what is true, in units of on_hand: faults of one position may make up for each other."""

    def move(
        self, kind: str, sku: str, node: str, quantity: int, occurred_us: int, fault: str = "", **more: Any
    ) -> None:
        """Book a move, and tell it: right, not at all (LOST), twice (DOUBLED) or in another unit (CASES)."""
        sign = {"RECEIPT": 1, "ADJUSTMENT": 1, "RETURN_RECEIVED": 1, "SHIPMENT": -1}.get(kind, 0)
        self.stock[sku, node] += sign * quantity
        if fault:
            self.faults[sku, node].append(fault)
        told = quantity // 12 if fault == "CASES" else quantity
        times = {"LOST": 0, "DOUBLED": 2}.get(fault, 1)
        self.off[sku, node] += sign * (told * times - quantity)
        for _ in range(times):
            self.sequence += 1
            delta = pb.Delta(
                source=self.source, stream=STREAM, source_sequence=self.sequence, sku=sku, node=node, quantity=told,
                type=pb.DeltaType.Value(f"DELTA_TYPE_{kind}"), **more,
            )  # fmt: skip
            delta.occurred_time.FromMicroseconds(occurred_us)
            self.untold.append(delta)

    def tell(self, client: Client) -> None:
        """Send what was not told yet; all of it must be taken."""
        while self.untold:
            batch, self.untold = self.untold[:1_000], self.untold[1_000:]
            answer = client.apply_deltas(self.source, batch)
            assert set(answer.results) == {pb.DELTA_RESULT_APPLIED}, answer.details

    def write(self, file: Path, *, only: Callable[[str, str], bool] = lambda *_: True) -> Point:
        """Write all positions as CSV, and the point; return it."""
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{sku},{node},{units}" for (sku, node), units in sorted(self.stock.items()) if only(sku, node)
        ]
        file.write_text("\n".join(["sku,node,quantity", *lines]) + "\n", encoding="utf-8")
        point = Point(as_of={STREAM: self.sequence})
        Path(f"{file}.point").write_text(json.dumps({"as_of": {STREAM: self.sequence}}), encoding="utf-8")
        return point


def snapshot(source: str, folder: Path, nodes: tuple[str, ...], **more: Any) -> SnapshotSettings:
    """Return the settings of a snapshot of a source's stock."""
    given: dict[str, Any] = {
        "name": "stock",
        "source": source,
        "format": {"kind": "csv"},
        "files": {"folder": str(folder), "pattern": "*.csv", "settle_ms": 0},
        "nodes": nodes,
        "absent": "ZERO",
        "streams": [STREAM],
        "mapping": {
            "version": "1",
            "columns": {"sku": "sku", "node": "node", "quantity": "quantity"},
            "units": {"factors": {"CS": "12"}},
        },
    }
    return SnapshotSettings.model_validate(given | more)
