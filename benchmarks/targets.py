"""Run every benchmark and print one table: what, figure, ratio, target, met.

``python -m benchmarks.targets [--quick] [NAME …]``; names are those of the modules. Figures of a machine that others
use too are noisy: ratios are of blocks that ran in turns; each progress line tells how busy others were.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
import traceback

from rich.console import Console
from rich.table import Table

from benchmarks.common import FULL, QUICK, Row, say, slowdown

MODULES = ("reads", "reserves", "deltas", "lag", "growth", "bootstrap", "shares", "workers", "ingest")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 when every target was met, 1 when not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("name", nargs="*", help=", ".join(MODULES) + "; all where none is named")
    options = parser.parse_args(arguments)
    unknown = set(options.name) - set(MODULES)
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}")
    size = QUICK if options.quick else FULL
    say(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, "
        f"a fixed loop takes {slowdown():.1f} × its best processor time"
    )
    began = time.monotonic()
    rows: list[Row] = []
    for name in MODULES:
        if not options.name or name in options.name:
            say(f"== {name}")
            try:
                rows += importlib.import_module(f"benchmarks.{name}").run(size)
            except Exception:  # the others' figures are worth having
                traceback.print_exc()
                rows.append(Row(measure=name, figure="failed", met=False))
    print_table(rows)
    say(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    return 1 if any(row.met is False for row in rows) else 0


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
