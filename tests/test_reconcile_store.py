"""What reconciliation keeps, on both databases; the lock, shops side by side, the report, and the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from availability.history.database import open_database, writing
from availability.history.shop_tables import shop_skus
from ingest.reconcile.nightly import LEASE_S, LockHeld, OneAtATime
from ingest.reconcile.report import figures, write_parquet
from ingest.reconcile.report_page import page, trend
from ingest.reconcile.shops import ShopSku, differences, keep_sides, kept_sides, read_shops
from ingest.reconcile.store import (
    CORRECTED,
    CORRECTING,
    DONE,
    HELD,
    OPEN,
    PENDING,
    REFUSED,
    REPORTED,
    SUPERSEDED,
    KeptVariance,
    Run,
    Store,
)
from tests.postgres import database_url, postgres, postgres_url

__all__ = ["database_url", "postgres", "postgres_url"]

NOW = 1_795_000_000.0
EVIL = "<script>alert('sku')</script>"


def run(run_id: str, **more: Any) -> Run:
    made = Run(
        run_id=run_id, snapshot="stock", source="wms", kind="POSITIONS", state=OPEN, file="stock.csv", checksum=run_id,
        snapshot_id="", as_of={"moves": 3}, point_kind="SEQUENCES", point_version=7, point_at=None, nodes=("berlin",),
        rank=1, absent="ZERO", rows=10, positions=10, counts={}, findings=(), reason="", folder="/nowhere",
        begun_at=NOW, compared_at=None, ended_at=None,
    )  # fmt: skip
    return replace(made, **more)


def variance(number: int, state: str = PENDING, **more: Any) -> KeptVariance:
    parts = (("MISSED_DELTA", 3, "it was missed", "[]"), ("DUPLICATE_DELTA", 2, "twice", '[{"a": 1}]'))
    made = KeptVariance(
        number=number, kind="ON_HAND", sku=f"sku {number}", node="berlin", said=1, ledger=6, variance=5,
        cause="MISSED_DELTA", state=state, delta=b"x", parts=parts,
    )  # fmt: skip
    return replace(made, **more)


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Any:
    engine = open_database(database_url, tmp_path)
    yield Store(engine)
    engine.dispose()


def test_a_run_and_its_variances_come_back_as_they_were_kept(store: Store) -> None:
    """On SQLite and PostgreSQL; keeping again replaces what a killed attempt had written."""
    store.begin(run("a"))
    store.keep("a", [variance(0), variance(1)], state=CORRECTING, counts={"rows": 2})
    store.keep(
        "a", [variance(0), variance(1, HELD), variance(2, REPORTED)], state=CORRECTING, counts={"rows": 3}
    )
    assert store.run("a") == run("a", state=CORRECTING, counts={"rows": 3})
    assert [replace(one, parts=()) for one in store.variances("a")] == [
        replace(variance(number, state), parts=())
        for number, state in ((0, PENDING), (1, HELD), (2, REPORTED))
    ]
    assert store.parts("a", 1) == list(variance(1).parts)
    assert store.states("a") == {PENDING: 1, HELD: 1, REPORTED: 1}
    store.settle("a", [(0, CORRECTED, "")])
    assert store.not_agreed("a", [("sku 0", "berlin"), ("sku 1", "berlin")]) == {
        ("sku 1", "berlin"), ("sku 2", "berlin")} & {("sku 1", "berlin")}  # fmt: skip
    assert [one.run_id for one in store.beginning_with("a")] == ["a"]


def test_a_newer_run_supersedes_one_that_waits(store: Store) -> None:
    """Two approvals of the same difference would correct it twice; but a refused file says nothing of it."""
    store.begin(run("a"))
    store.keep("a", [variance(0, HELD)], state=HELD)
    store.begin(run("b", begun_at=NOW + 1))
    store.keep("b", [variance(0, REPORTED)], state=REFUSED)
    store.begin(run("c", snapshot="other", begun_at=NOW + 1))
    store.keep("c", [], state=CORRECTING)
    assert (store.run("a").state, store.states("a")) == (HELD, {HELD: 1})
    store.begin(run("d", begun_at=NOW + 2))
    store.keep("d", [variance(0, HELD)], state=HELD)
    assert (store.run("a").state, store.states("a")) == (SUPERSEDED, {REPORTED: 1})
    assert (store.run("d").state, store.states("d")) == (HELD, {HELD: 1})


def test_an_approval_lets_on_what_is_held_but_for_what_is_kept_back(store: Store) -> None:
    """Who, why and how many are kept."""
    store.begin(run("a"))
    store.keep("a", [variance(0, HELD), variance(1, HELD), variance(2, REPORTED)], state=HELD)
    assert store.approve("a", "anna", "counted", NOW, [1]) == 1
    assert store.states("a") == {PENDING: 1, REPORTED: 2}
    assert store.approvals("a") == [("anna", "counted", 1, NOW)]
    assert store.unfinished()[0].run_id == "a"


def test_one_run_at_a_time(store: Store) -> None:
    """The lock is held until it is given back, is lost, or its process is gone."""
    now = [NOW]
    mine = OneAtATime(store, lambda: now[0], pid=os.getpid())
    other = OneAtATime(store, lambda: now[0], pid=1)
    with mine:
        with pytest.raises(LockHeld):
            other.__enter__()
        now[0] += LEASE_S - 1
        mine.beat()
        now[0] += LEASE_S - 1
        with pytest.raises(LockHeld):
            other.__enter__()
        now[0] += LEASE_S
        with other, pytest.raises(LockHeld, match="lost"):
            mine.beat()
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    with OneAtATime(store, lambda: now[0], pid=int(ended.stdout)), mine:
        """Whoever was killed on this machine holds nothing."""


def test_what_shops_show_beside_source_and_ledger(store: Store) -> None:
    """Other numbers, nothing acknowledged, blocked; what is on its way is no difference."""
    skus = [
        ShopSku(channel="web", sku="right", sellable=5, wanted=5, acked=5, shown=5),
        ShopSku(channel="web", sku="other", sellable=5, wanted=5, acked=5, shown=4),
        ShopSku(
            channel="web", sku="on its way", sellable=5, wanted=5, acked=4, shown=4, pending=True, waiting_s=9
        ),
        ShopSku(
            channel="web", sku="stuck", sellable=5, wanted=5, acked=4, shown=None, pending=True, waiting_s=999
        ),
        ShopSku(channel="web", sku="never", sellable=5, wanted=5, acked=None, shown=None),
        ShopSku(channel="web", sku="blocked", sellable=5, wanted=5, acked=5, shown=5, blocked=True),
    ]
    found = differences(skus, {"other": 9})
    assert [(one.sku, one.difference, one.source_on_hand) for one in found] == [
        ("other", "OTHER_NUMBER", 9),
        ("stuck", "NOT_ACKNOWLEDGED", None),
        ("never", "NOT_SHOWN", None),
        ("blocked", "BLOCKED", None),
    ]
    keep_sides(store.engine, "2026-11-21", found)
    keep_sides(store.engine, "2026-11-21", found[:2])
    assert {one.sku for one in kept_sides(store.engine, "2026-11-21")} == {"other", "stuck"}
    with writing(store.engine) as connection:
        connection.execute(
            shop_skus.insert().values(
                channel="web", sku="s", sellable=3, wanted=2, wanted_version="1-1", wanted_since=NOW - 60,
                blocked=False, pending=True, asked=False, acked_version="", shown_status="", sending_owner="",
            )
        )  # fmt: skip
    (one,) = read_shops(store.engine, NOW)
    assert (one.sellable, one.wanted, one.acked, one.waiting_s) == (3, 2, None, 60.0)


def test_the_report_tells_what_happened(store: Store, tmp_path: Path) -> None:
    """By day, cause and node, the worst first; text from outside is text, and the same stands in Parquet."""
    for day in range(3):
        store.begin(run(f"r{day}", begun_at=NOW - day * 86_400))
        found = [variance(number, CORRECTED) for number in range(day)]
        if day == 2:
            found.append(
                variance(7, CORRECTED, sku=EVIL, variance=500, parts=(("UNEXPLAINED", 500, EVIL, "[]"),))
            )
        store.keep(f"r{day}", found, state=DONE, ended_at=NOW - day * 86_400)
    store.begin(run("refused", begun_at=NOW))
    store.keep("refused", [variance(0, REPORTED)], state=REFUSED, reason=EVIL)
    told = figures(store.engine, NOW, 14)
    assert [(day.runs, day.variances) for day in told.days][-3:] == [(1, 5), (1, 2), (2, 0)]
    assert told.causes == {"MISSED_DELTA": (3, 9), "DUPLICATE_DELTA": (3, 6), "UNEXPLAINED": (1, 500)}
    assert told.nodes == {"berlin": (4, 515)}
    assert (told.worst[0].sku, told.worst[0].units) == (EVIL, 500)
    html = page(told)
    assert EVIL not in html
    assert "&lt;script&gt;" in html
    heights = [box.height for box in trend(told.days).boxes]
    assert heights
    assert max(heights) <= 220
    write_parquet(store.engine, NOW, 14, tmp_path / "all.parquet")
    rows = pl.read_parquet(tmp_path / "all.parquet")
    assert rows.filter(pl.col("run_id") != "refused")["units"].abs().sum() == 515


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AVAIL_DATA_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "availability", "reconcile", *words],
        capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=Path(__file__).parent.parent,
    )  # fmt: skip


def test_commands_say_one_clear_line(tmp_path: Path) -> None:
    """Nothing to show, an unknown run, settings that are wrong: a line and an exit code."""
    shown = command(tmp_path, "show", "nothing")
    assert (shown.returncode, shown.stderr) == (3, "RUN_NOT_FOUND: no run begins so\n")
    assert json.loads(command(tmp_path, "runs", "--json").stdout) == []
    nightly = command(tmp_path, "nightly", "--snapshots", str(tmp_path))
    assert nightly.returncode == 1
    assert len(nightly.stderr.splitlines()) == 1
    assert "no *.toml of a snapshot is here" in nightly.stderr
