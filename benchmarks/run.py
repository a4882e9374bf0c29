"""Measure everything and write it down: `benchmarks/RESULTS.md`, its plots, and the raw numbers as JSON.

``python -m benchmarks.run [--quick] [NAME …]``: some half an hour, ``--quick`` seven minutes. With names only those are
measured and shown, and nothing is written unless ``--out`` says where. Exit code 1: a target was not met, or a
benchmark failed. Figures of a machine that others use too are noisy: ratios are of blocks that ran in turns.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from availability.ledger.embedded import find_server
from benchmarks.common import FULL, QUICK, Found, Plot, Row, say, slowdown
from benchmarks.results import write_plots, write_results

HERE = Path(__file__).resolve().parent
SUBJECTS = {
    "reads": "Reads beside an empty echo",
    "reserves": "Reserves: Redis function, engine, service",
    "deltas": "Deltas as a stream",
    "lag": "Read-after-write lag",
    "growth": "Cost after ten times the history",
    "bootstrap": "Loading the memory",
    "shares": "Where the time goes",
    "latency": "Latencies, open-loop arrivals, mixed load",
    "peers": "Beside PostgreSQL, a small Redis function and an empty echo",
    "h2load": "Reads driven by h2load",
    "workers": "Server processes on one port",
    "positions": "Start-up and memory",
    "ingest": "Files, webhooks",
    "history": "The history: what the historian writes, and explanations of the past",
    "reconcile": "Snapshots beside a bare join",
    "publish": "Into a shop that takes its time",
}
"""Modules with a ``run(size)``, in order of running, and what each is about."""
PACKAGES = ("grpcio", "protobuf", "numpy", "polars", "redis", "hiredis", "psycopg", "sqlalchemy")


def machine() -> dict[str, Any]:
    """Tell what the figures were measured on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "redis": _redis_version(),
        "packages": versions,
        "commit": commit.stdout.strip(),
        "load_before": round(os.getloadavg()[0], 1),
        "slowdown_before": round(slowdown(), 2),
    }


def _redis_version() -> str:
    told = subprocess.run([find_server().path, "--version"], capture_output=True, text=True, check=False)
    return " ".join(told.stdout.split()[:3])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument(
        "--out", type=Path, help="folder of RESULTS.md, plots and JSON; default: this folder, for all"
    )
    parser.add_argument("name", nargs="*", help=", ".join(SUBJECTS) + "; all where none is named")
    options = parser.parse_args(arguments)
    unknown = set(options.name) - set(SUBJECTS)
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; there are {', '.join(SUBJECTS)}")
    size = QUICK if options.quick else FULL
    names = [name for name in SUBJECTS if not options.name or name in options.name]
    told = machine()
    say(
        f"Python {told['python']}, {told['cores']} cores, load {told['load_before']} at the start, "
        f"a fixed loop takes {told['slowdown_before']:.1f} × its best processor time"
    )
    began = time.monotonic()
    found = measure(names, size)
    told["load_after"], told["slowdown_after"] = round(os.getloadavg()[0], 1), round(slowdown(), 2)
    told["seconds"] = round(time.monotonic() - began)
    rows = [row for one in found.values() for row in one if isinstance(row, Row)]
    print_table(rows)
    say(f"{told['seconds']} s, load {told['load_after']} at the end")
    out = options.out or (None if options.name else HERE)
    if out is not None:
        command = shlex.join(
            ["python", "-m", "benchmarks.run", *(sys.argv[1:] if arguments is None else arguments)]
        )
        write(out, command, told, found)
        say(f"written: {out / 'RESULTS.md'}")
    return 1 if any(row.met is False for row in rows) else 0


def measure(names: list[str], size: Any) -> dict[str, list[Found]]:
    """Run the modules, one after the other; one that fails is told and leaves the others theirs."""
    found: dict[str, list[Found]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=SUBJECTS[name])
            say(f"== {name}: {SUBJECTS[name]}")
            try:
                found[name] = list(importlib.import_module(f"benchmarks.{name}").run(size))
            except Exception:  # the others' figures are worth having
                traceback.print_exc()
                found[name] = [Row(measure=name, figure="failed", met=False)]
            progress.advance(task)
    return found


def write(out: Path, command: str, told: dict[str, Any], found: dict[str, list[Found]]) -> None:
    """Write RESULTS.md, the plots and the raw JSON."""
    out.mkdir(parents=True, exist_ok=True)
    raw = {
        "command": command,
        "machine": told,
        "found": {
            name: [{"kind": type(one).__name__, **asdict(one)} for one in some]
            for name, some in found.items()
        },
    }
    (out / "results.json").write_bytes(
        orjson.dumps(raw, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    )
    plots = [one for some in found.values() for one in some if isinstance(one, Plot)]
    write_plots(out / "plots", plots)
    write_results(out / "RESULTS.md", command, told, found, SUBJECTS)


def print_table(rows: list[Row]) -> None:
    """Print the rows as one table."""
    table = Table("measure", "figure", "ratio", "target", "met")
    for row in rows:
        table.add_row(
            row.measure,
            row.figure,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.target,
            "" if row.met is None else "yes" if row.met else "NO",
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    sys.exit(main())
