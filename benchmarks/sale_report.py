"""The report of a flash sale: figures of the business beside the technical ones, with plots, in one HTML file."""

from __future__ import annotations

import csv
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 760, 220, 46
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #1f2937; padding: 0 1rem; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; } td, th { padding: .25rem .8rem; text-align: left; }
tr { border-bottom: 1px solid #e5e7eb; } td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; }
.good { color: #047857; font-weight: 600; } .bad { color: #b91c1c; font-weight: 600; } svg { max-width: 100%; }
text { font: 11px system-ui, sans-serif; fill: #4b5563; } figure { margin: 0 0 1.4rem; } .note { color: #6b7280; }
"""

Line = tuple[str, Sequence[tuple[float, float]]]


def plot(title: str, unit: str, lines: Sequence[Line], marks: Mapping[str, float] | None = None) -> str:
    """Draw lines over seconds as SVG. ``marks``: named moments."""
    points = [point for _, line in lines for point in line]
    if not points:
        return ""
    x_max = max(x for x, _ in points) or 1.0
    y_max = max(y for _, y in points) or 1.0
    scale_x, scale_y = (WIDTH - 2 * MARGIN) / x_max, (HEIGHT - 2 * MARGIN) / y_max

    def at(x: float, y: float) -> str:
        return f"{MARGIN + x * scale_x:.1f},{HEIGHT - MARGIN - y * scale_y:.1f}"

    parts = [
        f"<figure><figcaption><b>{html.escape(title)}</b> ({html.escape(unit)})</figcaption>",
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
    ]
    for share in (0, 0.5, 1):
        y = HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{share * y_max:,.4g}</text>')
        x = MARGIN + share * (WIDTH - 2 * MARGIN)
        parts.append(
            f'<text x="{x}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{share * x_max:.0f} s</text>'
        )
    for name, second in (marks or {}).items():
        x = MARGIN + min(second, x_max) * scale_x
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{MARGIN - 8}" y2="{HEIGHT - MARGIN}" '
            'stroke="#9ca3af" stroke-dasharray="3"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{MARGIN - 12}" text-anchor="middle">{html.escape(name)}</text>')
    for number, (name, line) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(at(x, y) for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(
            f'<text x="{MARGIN + number * 150}" y="{HEIGHT - 6}" style="fill:{colour}">{html.escape(name)}</text>'
        )
    return "".join([*parts, "</svg></figure>"])


def history(path: Path) -> list[dict[str, str]]:
    """Return the rows of locust's history of all calls together."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]


def locust_lines(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Line]]:
    """Return the technical lines of locust's history: shoppers, calls a second, times."""
    if not rows:
        return {}
    first = float(rows[0]["Timestamp"])

    def line(column: str) -> list[tuple[float, float]]:
        return [
            (float(row["Timestamp"]) - first, float(row[column]))
            for row in rows
            if row[column] not in ("", "N/A")
        ]

    return {
        "shoppers": [("shoppers", line("User Count"))],
        "calls": [("calls/s", line("Requests/s")), ("failures/s", line("Failures/s"))],
        "times": [("p50", line("50%")), ("p95", line("95%")), ("p99", line("99%"))],
    }


def calls_table(path: Path) -> str:
    """Return locust's table of calls as HTML."""
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = ("Name", "Request Count", "Failure Count", "50%", "95%", "99%", "99.9%", "Requests/s")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in cells)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_short(row.get(name, '')))}</td>" for name in cells) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _short(text: str) -> str:
    try:
        return f"{float(text):,.4g}" if "." in text else f"{int(text):,}"
    except ValueError:
        return text


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Put sections (heading, HTML) into a page that needs nothing else."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{inside}" for heading, inside in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def facts(rows: Sequence[tuple[str, str, bool | None]]) -> str:
    """Return (what, figure, good or bad or neither) as a table."""
    cells = []
    for what, figure, good in rows:
        mark = "" if good is None else ' class="good"' if good else ' class="bad"'
        cells.append(f"<tr><td>{html.escape(what)}</td><td{mark}>{html.escape(figure)}</td></tr>")
    return f"<table>{''.join(cells)}</table>"
