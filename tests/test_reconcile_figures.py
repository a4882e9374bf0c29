"""What the metrics say of reconciliation is what its tables hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.history.database import open_database
from availability.history.reconcile_figures import reconcile_figures
from availability.history.reconcile_tables import reconcile_parts, reconcile_runs, reconcile_variances
from availability.telemetry import HistoryMetrics

NOW = 1_000_000.0


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database("", tmp_path)
    yield engine
    engine.dispose()


def put(engine: Engine, table: sa.Table, **given: object) -> None:
    """Insert a row; columns that nobody names are empty."""
    row: dict[str, object] = {}
    for column in table.columns:
        kind = column.type.python_type
        row[column.name] = given.get(column.name, None if column.nullable else kind())
    with engine.begin() as connection:
        connection.execute(sa.insert(table).values(row))


def run(
    engine: Engine, name: str, at: float, *, state: str = "DONE", ended: bool = True, **more: object
) -> None:
    put(
        engine, reconcile_runs, run_id=name, state=state, begun_at=at, ended_at=at + 60 if ended else None,
        **{"kind": "POSITIONS", "source": "wms", "snapshot": "wms berlin", "positions": 100, **more},
    )  # fmt: skip


def variance(engine: Engine, run_id: str, number: int, sku: str, cause: str, units: int) -> None:
    put(engine, reconcile_variances, run_id=run_id, number=number, sku=sku, node="berlin", cause=cause)
    put(engine, reconcile_parts, run_id=run_id, number=number, part=0, cause=cause, units=units)


def test_the_latest_run_of_each_snapshot_counts(engine: Engine) -> None:
    """Two houses of one source are added up; older runs, refused ones and those of orders are not in it."""
    run(engine, "old", NOW - 200_000)
    variance(engine, "old", 1, "tea", "LOST", 50)
    run(engine, "berlin", NOW - 3_660)
    variance(engine, "berlin", 1, "tea", "LOST", -5)
    variance(engine, "berlin", 2, "tea", "DAMAGE", 2)
    variance(engine, "berlin", 3, "cup", "LOST", 3)
    run(engine, "bonn", NOW - 7_260, snapshot="wms bonn", positions=300)
    run(engine, "refused", NOW - 60, state="REFUSED")
    run(engine, "orders", NOW - 60, kind="ORDERS", snapshot="orders")
    run(engine, "erp", NOW - 600, source="erp", snapshot="erp", state="HELD", ended=False)
    erp, wms = reconcile_figures(engine, NOW)
    assert (wms.source, wms.age_s, wms.positions, wms.variance_positions) == ("wms", 7_200, 400, 2)
    assert wms.variance_units == (("DAMAGE", 2), ("LOST", 8))
    assert not wms.held
    assert (erp.source, erp.age_s, erp.held) == ("erp", None, True)


def test_they_are_metrics(engine: Engine) -> None:
    """Accuracy is the share of positions that were equal; without a run there is nothing to tell."""
    metrics = HistoryMetrics()
    metrics.watch_reconcile(lambda: reconcile_figures(engine, NOW))
    scrape = metrics.registry.get_sample_value
    assert scrape("availability_reconcile_figures_up") == 1
    assert scrape("availability_inventory_accuracy_ratio", {"source": "wms"}) is None
    run(engine, "berlin", NOW - 60)
    variance(engine, "berlin", 1, "tea", "LOST", -5)
    assert scrape("availability_inventory_accuracy_ratio", {"source": "wms"}) == pytest.approx(0.99)
    assert scrape("availability_reconcile_variance_units", {"source": "wms", "cause": "LOST"}) == 5
    engine.dispose()
