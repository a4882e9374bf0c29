"""Sources of one test over one database and a real server, and what the ledger says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from availability.client import Client
from availability.v1 import policy_pb2 as pol
from availability.v1 import stock_pb2 as stk
from ingest.app import IngestDesk
from ingest.database import open_database
from ingest.runs import Outcome
from ingest.settings import SourceSettings, read_source
from tests.conftest import Names, Server
from tests.ingest_lab import plain_source

ORDERS = 'order_ref = "order"\nline = "line"\noccurred_time = "at"\n'
"""Columns of a source that tells of orders."""
AT = "2026-11-01T08:00:00Z"


class Works:
    """Sources of one test over one database, their folders, and what the ledger says."""

    def __init__(self, folder: Path, server: Server, names: Names) -> None:
        self.folder, self.names = folder, names
        self.client = Client(server.grpc)
        self.engine = open_database(str(folder / "ingest.db"))
        self.sources: dict[str, SourceSettings] = {}
        self.node = names.node("east")
        self.channel = names.channel("all")
        self._count = 0

    def source(self, name: str, *, top: str = "", columns: str = "", more: str = "") -> str:
        source = self.names.id(name)
        path = self.folder / f"{name}.toml"
        text = plain_source(
            source, top=f"batch_deltas = 10\n{top}", columns=columns, folder=source, more=more
        )
        path.write_text(text)
        self.sources[source] = read_source(path)
        return source

    @property
    def desk(self) -> IngestDesk:
        return IngestDesk(self.sources, self.engine, self.client)

    def write(self, source: str, *rows: str) -> Path:
        drop = self.sources[source].drop
        assert drop is not None
        drop.folder.mkdir(exist_ok=True)
        self._count += 1
        columns = self.sources[source].mapping.columns.values()
        path = drop.folder / f"{self._count:03d}.csv"
        path.write_text("\n".join((",".join(columns), *rows, "")))
        return path

    def carry(self, source: str, *rows: str) -> Outcome:
        return self.desk.pipeline(source).carry(self.write(source, *rows))

    def on_hand(self, sku: str) -> int:
        return self.nodes(sku)[0]

    def nodes(self, sku: str) -> tuple[int, int, int]:
        terms = self.client.explain(self.channel, sku).terms.nodes
        mine = [node for node in terms if node.node == self.node]
        return (
            sum(node.on_hand for node in mine),
            sum(node.quarantined for node in mine),
            sum(node.committed for node in mine),
        )

    def kit(self, kit: str, **components: int) -> str:
        code = self.names.sku(kit)
        parts = [pol.KitComponent(sku=self.names.sku(sku), units=units) for sku, units in components.items()]
        self.client.call(
            self.client.policies.SetKit,
            pol.SetKitRequest(reason="test", kit_sku=code, components=parts),
        )
        return code

    def order(self, source: str, ref: str) -> Counter[str]:
        found = self.client.call(
            self.client.stock.GetOrder, stk.GetOrderRequest(order_source=source, order_ref=ref)
        )
        ordered: Counter[str] = Counter()
        for line in found.lines:
            ordered[line.sku] += line.ordered
        return ordered


@pytest.fixture
def works(tmp_path: Path, server: Server, names: Names) -> Iterator[Works]:
    made = Works(tmp_path, server, names)
    yield made
    made.client.close()
