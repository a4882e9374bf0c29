"""Results as a page and as pictures. Knows rows and plots, not what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Found, Plot, Row

WIDTH, HEIGHT, DPI = 7.0, 4.0, 110
TICKS_MAX = 10
"""So many measured places are named on the axis themselves."""


def write_plots(folder: Path, plots: Sequence[Plot]) -> None:
    """Draw each plot as a PNG named after it; older pictures of the folder go."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for plot in plots:
        figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
        if plot.bars:
            names, values = list(plot.lines), [points[0][1] for points in plot.lines.values()]
            drawn = axes.barh(names, values, color="#3b6ea5")
            axes.bar_label(drawn, labels=[f"{value:,.0f}" for value in values], padding=3, fontsize=8)
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.set_xlabel(plot.y)
            axes.margins(x=0.15)
        else:
            for name, points in plot.lines.items():
                axes.plot(
                    [x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name
                )
            if plot.log_x:
                axes.set_xscale(
                    "log", base=2 if max(x for line in plot.lines.values() for x, _ in line) < 1_000 else 10
                )
            measured = sorted({x for line in plot.lines.values() for x, _ in line})
            if len(measured) <= TICKS_MAX:
                axes.set_xticks(measured, [f"{x:,.10g}" for x in measured])
                axes.minorticks_off()
            if plot.log_y:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.set_xlabel(plot.x)
            axes.set_ylabel(plot.y)
            axes.legend(fontsize=8)
        axes.grid(visible=True, alpha=0.3)
        axes.set_title(plot.title, fontsize=10)
        figure.savefig(folder / f"{plot.name}.png", dpi=DPI)
        pyplot.close(figure)


def write_results(
    path: Path,
    command: str,
    machine: Mapping[str, Any],
    found: Mapping[str, Sequence[Found]],
    subjects: Mapping[str, str],
) -> None:
    """Write the page: what it was measured on, one table a subject, and the pictures."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        "# Results",
        "",
        f"The last output of `{command}`, {machine['seconds']} s; the raw numbers are in `results.json`.",
        "",
        f"- Machine: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, Linux {machine['kernel']}",
        f"- Python {machine['python']}, {machine['redis']}; {packages}",
        f"- Commit {machine['commit']}; load {machine['load_before']} before and {machine['load_after']} after",
        f"- A fixed loop took {machine['slowdown_before']:.2f} × its own best processor time before and "
        f"{machine['slowdown_after']:.2f} × after: what neighbours on the machine cost",
        "",
        "Client, server and Redis share the cores. Ratios are medians of blocks that ran in turns: compare those.",
        "",
    ]
    for name, some in found.items():
        lines += [
            f"## {subjects[name]}",
            "",
            "| measure | figure | ratio | target | met |",
            "|---|---|---|---|---|",
        ]
        for one in some:
            if isinstance(one, Row):
                lines.append("| " + " | ".join(_cells(one)) + " |")
        lines.append("")
        for one in some:
            if isinstance(one, Plot):
                lines += [f"![{one.title}](plots/{one.name}.png)", ""]
    path.write_text("\n".join(lines).rstrip() + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = "" if row.met is None else "yes" if row.met else "**no**"
    return tuple(
        cell.strip().replace("|", "\\|") for cell in (row.measure, row.figure, ratio, row.target, met)
    )
