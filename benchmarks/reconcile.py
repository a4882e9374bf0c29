"""A snapshot of 5 M rows against 5 M positions, beside the bare polars join of the same two files in the same run.

Each arm runs in a process of its own, in turns, so that its most memory is its own; ratios are of processor time,
imports not counted. The bare join reads both files, joins them and keeps what differs; ours translates the rows by the
mapping, writes them down, looks for doubled ones, compares, counts what the guard needs, and names every variance.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Row, Size, say

ROWS = 5_000_000
NODES = 5
DIFFERENT = 5_000
SECONDS_MAX = 20.0
BYTES_MAX = 3e9
RATIO_MAX = 2.0
ARMS = ("bare", "parquet", "csv", "bare csv")


def make(folder: Path, rows: int) -> None:
    """Write a snapshot (Parquet and CSV) and the ledger's side, in different orders; some positions differ."""
    import numpy as np
    import polars as pl

    places = pl.DataFrame({"i": np.random.default_rng(1).permutation(rows)}).select(
        sku=pl.format("SKU-{}", pl.col("i") // NODES + 1_000_000),
        node=pl.format("node-{}", pl.col("i") % NODES),
        on_hand=(pl.col("i") % 997).cast(pl.Int64),
    )
    every = max(1, rows // DIFFERENT)
    said = places.with_columns(
        on_hand=pl.col("on_hand") + (pl.int_range(pl.len()) % every == 0).cast(pl.Int64)
    )
    said.write_parquet(folder / "said.parquet")
    said.write_csv(folder / "said.csv")
    book = places.sample(fraction=1.0, shuffle=True, seed=2)
    book.with_columns(
        quarantined=pl.lit(0, pl.Int64),
        confirmed=pl.lit(0, pl.Int64),
        settled=pl.lit(True),
        confirmed_settled=pl.lit(True),
        reserved=pl.lit(0, pl.Int64),
        committed=pl.col("on_hand") % 3,
        on_hand_now=pl.col("on_hand"),
    ).write_parquet(folder / "book.parquet")


def bare(folder: Path, *, csv: bool) -> int:
    """Join, and keep what differs."""
    import polars as pl

    said = pl.scan_csv(folder / "said.csv") if csv else pl.scan_parquet(folder / "said.parquet")
    book = pl.scan_parquet(folder / "book.parquet").select("sku", "node", ledger="on_hand")
    joined = said.join(book, on=["sku", "node"], how="full", coalesce=True)
    return joined.filter(pl.col("on_hand") != pl.col("ledger")).collect(engine="streaming").height


def ours(folder: Path, kind: str) -> int:
    """Stage and compare as a run does."""
    import polars as pl

    from ingest.reconcile.compare import Rules, compare_positions
    from ingest.reconcile.settings import SnapshotSettings
    from ingest.reconcile.staging import stage

    nodes = tuple(f"node-{number}" for number in range(NODES))
    settings = SnapshotSettings.model_validate(
        {
            "name": "stock", "source": "erp", "format": {"kind": kind}, "files": {"folder": str(folder)},
            "nodes": nodes, "absent": "ZERO",
            "mapping": {"version": "1", "columns": {"sku": "sku", "node": "node", "quantity": "on_hand"}},
        }
    )  # fmt: skip
    staged = stage(folder / f"said.{kind}", settings, folder / f"staged-{kind}.parquet")
    if not staged.by_columns:
        raise RuntimeError("the file was not read in columns")
    reasons = pl.LazyFrame(
        schema={"sku": pl.String, "node": pl.String, "reason": pl.String, "quantity": pl.Int64}
    )
    compared = compare_positions(
        pl.scan_parquet(staged.path),
        pl.scan_parquet(folder / "book.parquet"),
        reasons,
        Rules(nodes=nodes, absent="ZERO"),
    )
    if compared.counts.matched != compared.counts.positions:
        raise RuntimeError(f"{compared.counts}")
    return compared.variances.height


def child(arm: str, folder: Path) -> None:
    """Run one arm once; print its seconds, processor seconds, bytes at most, and variances."""
    import polars  # noqa: F401 -- importing is nobody's work

    import ingest.reconcile.compare
    import ingest.reconcile.settings
    import ingest.reconcile.staging  # noqa: F401 -- as above

    began, cpu = time.perf_counter(), time.process_time()
    found = bare(folder, csv=arm == "bare csv") if arm.startswith("bare") else ours(folder, arm)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps([took, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, found]))


def run(size: Size) -> list[Row]:
    """Measure; rows for the table."""
    rows = ROWS if size.blocks >= 7 else ROWS // 20
    turns = 3 if size.blocks >= 7 else 1
    told: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make(folder, rows)
        for turn in range(turns):
            for arm in ARMS if turn % 2 else tuple(reversed(ARMS)):
                command = [sys.executable, "-m", "benchmarks.reconcile", arm, str(folder)]
                told[arm].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
                took, cpu, memory, _ = told[arm][-1]
                say(f"{arm}: {took:.1f} s, processor {cpu:.1f} s, {memory / 1e9:.2f} GB")
    found = []
    for arm, against in (("parquet", "bare"), ("csv", "bare csv")):
        if {one[3] for one in told[arm]} != {one[3] for one in told[against]}:
            raise RuntimeError(f"the two arms found different variances: {told}")
        ratios = sorted(mine[1] / theirs[1] for mine, theirs in zip(told[arm], told[against], strict=True))
        took = sorted(one[0] for one in told[arm])
        memory = max(one[2] for one in told[arm])
        ratio = ratios[len(ratios) // 2]
        said = f"{took[len(took) // 2]:.1f} s ({took[0]:.1f}–{took[-1]:.1f}), {memory / 1e9:.2f} GB"
        met = (
            None
            if rows < ROWS
            else ratio <= RATIO_MAX and took[len(took) // 2] <= SECONDS_MAX and memory <= BYTES_MAX
        )
        found.append(
            Row(
                measure=f"snapshot of {rows / 1e6:g} M rows, {arm}, over the bare join (processor time)",
                figure=said,
                ratio=ratio,
                target=f"≤ {RATIO_MAX:g} ×, {SECONDS_MAX:g} s, {BYTES_MAX / 1e9:g} GB",
                met=met,
            )
        )
    return found


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
