"""The replay benchmark, on a small file as dirty as the real one, against a real server."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

REPLAY = Path(__file__).resolve().parent.parent / "benchmarks" / "replay.py"
ORDERS = 60
SKUS = ["POST", "BANK CHARGES", "85123a", "85123A", *(f"2{number:04}" for number in range(80))]
COUNTRIES = ["Home"] * 6 + ["EIRE", "Norway", "Channel Islands"]
TIMEOUT_S = 60
LOG_TAIL_CHARACTERS = 4000

Row = tuple[str, str, int, datetime, str]


def test_a_dirty_orders_file_replays_with_every_balance_exact(tmp_path: Path, seed: int) -> None:
    """Cancelled, negative, repeated and oversized lines are played, and the recomputation agrees."""
    orders = tmp_path / "orders.parquet"
    columns = ["order_id", "sku", "quantity", "timestamp", "country"]
    frame = pl.DataFrame(dirty_rows(seed), schema=columns, orient="row")
    frame.with_columns(pl.col("timestamp").dt.replace_time_zone(None)).write_parquet(orders)
    folder = str(tmp_path / "ledger")
    played = replay("--orders", str(orders), "--clients", "3", "--seed", str(seed), "--data-dir", folder)
    log = (tmp_path / "ledger" / "serve.log").read_text()
    assert played.returncode == 0, played.stdout + played.stderr + log[-LOG_TAIL_CHARACTERS:]
    assert played.stdout.splitlines()[-1] == f"oversold 0, 0 differences over {len(SKUS):,} skus"


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_an_unreadable_orders_file_is_one_clear_line(tmp_path: Path, content: bytes | None) -> None:
    """A missing file and one of another kind end with exit 2, before any server is started."""
    orders = tmp_path / "orders.parquet"
    if content is not None:
        orders.write_bytes(content)
    refused = replay("--orders", str(orders))
    assert refused.returncode == 2
    assert str(orders) in refused.stdout.replace("\n", "")
    assert "Traceback" not in refused.stderr


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPLAY), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def dirty_rows(seed: int) -> list[Row]:
    """Three weeks of orders with the dirt of the real file: see data/README.md beside it."""
    chance = random.Random(seed)
    now = datetime(2011, 1, 3, 8, tzinfo=UTC)
    rows: list[Row] = []
    for number in range(ORDERS):
        now += timedelta(hours=chance.randint(1, 14))
        country = chance.choice(COUNTRIES)
        size = 620 if number == 7 else chance.randint(1, 8)  # more lines than one reservation takes
        bought = [(chance.choice(SKUS), chance.choice([1, 2, 6, 12, 144])) for _ in range(size)]
        if number == 20:
            bought = [("20007", 74_215)]
        rows += [(str(536_000 + number), sku, quantity, now, country) for sku, quantity in bought]
        if number % 4 == 0 or number == 20:  # cancelled minutes later, or when it has shipped
            later = now + timedelta(minutes=16) if number % 8 else now + timedelta(days=9)
            kept = bought if number % 3 else bought[:1]
            rows += [
                (f"C{536_000 + number}", sku, -max(1, units // 2 if number % 5 else units), later, country)
                for sku, units in kept
            ]
        if number % 9 == 0:
            rows.append((f"{600_000 + number}", chance.choice(SKUS), -chance.randint(1, 30), now, country))
    rows.append(("C699999", "85123a", -9_360, now, "Nowhere"))  # no order ever wanted it
    rows += [("700000", sku, 1, now, "Home") for sku in SKUS]
    return sorted(rows, key=lambda row: row[3])
