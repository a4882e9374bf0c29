"""The report as one HTML page that needs nothing else: styles and plots (SVG) are in it, all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from availability.v1 import stock_pb2 as pb
from ingest.reconcile.report import Day, Figures

TEMPLATE = Path(__file__).with_name("report.html.j2")
COLOURS = {
    "MISSED_DELTA": "#0072b2",
    "DUPLICATE_DELTA": "#e69f00",
    "LATE_DELTA": "#56b4e9",
    "UNIT_OR_MAPPING": "#cc79a7",
    "ORDER_UNCONFIRMED": "#009e73",
    "LEAKED_RESERVATION": "#7a5195",
    "UNKNOWN_SKU": "#a6761d",
    "NEGATIVE": "#d55e00",
    "UNEXPLAINED": "#7f7f7f",
}
"""A colour for each cause, told apart by people who see few colours as well (after Okabe and Ito)."""
PLOT_WIDTH, PLOT_HEIGHT, LEFT, BOTTOM, TOP = 920, 220, 56, 28, 10
BAR_WIDTH = 380
TICKS = 4


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a plot, with what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str


@dataclass(frozen=True, slots=True)
class Label:
    """A text of a plot."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Trend:
    """Stacked bars, a day each."""

    boxes: tuple[Box, ...]
    days: tuple[Label, ...]
    ticks: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class BarRow:
    """One bar of a list, and its figures."""

    name: str
    width: float
    colour: str
    count: int
    units: int


def page(figures: Figures) -> str:
    """Return the page."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": _number,
        "time": _time,
        "words": _words,
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        figures=figures,
        trend=trend(figures.days),
        causes=_bars(figures.causes),
        nodes=_bars(figures.nodes, "#0072b2"),
        colours=COLOURS,
        used=[cause for cause in COLOURS if cause in figures.causes],
        plot={"width": PLOT_WIDTH, "height": PLOT_HEIGHT, "left": LEFT, "bottom": BOTTOM},
        bar_width=BAR_WIDTH,
        findings=_findings(figures.findings),
    )


def trend(days: Sequence[Day]) -> Trend:
    """Lay out the days: variances stacked by cause."""
    most = max((day.variances for day in days), default=0)
    top = _round_up(most)
    height, width = PLOT_HEIGHT - BOTTOM - TOP, PLOT_WIDTH - LEFT
    step = width / max(1, len(days))
    boxes, labels = [], []
    every = -(-len(days) // 12)
    for number, day in enumerate(days):
        x, floor = LEFT + number * step + step * 0.12, float(PLOT_HEIGHT - BOTTOM)
        for cause in (*COLOURS, *sorted(set(day.causes) - set(COLOURS))):
            count, units = day.causes.get(cause, (0, 0))
            if not count:
                continue
            tall = height * count / top
            floor -= tall
            said = f"{day.day}: {count:,} × {_words(cause)}, {units:,} units"
            boxes.append(
                Box(_r(x), _r(floor), _r(step * 0.76), _r(tall), COLOURS.get(cause, "#444444"), said)
            )
        if day.runs and not day.causes:  # a day on which all agreed is told from one without a run
            title = f"{day.day}: {day.runs} runs, nothing differed"
            boxes.append(Box(_r(x), floor - 3, _r(step * 0.76), 3, "#2e8b57", title))
        if (len(days) - 1 - number) % every == 0:
            labels.append(Label(_r(x + step * 0.38), PLOT_HEIGHT - BOTTOM + 18, day.day[5:]))
    ticks = [
        Label(
            LEFT - 8,
            _r(PLOT_HEIGHT - BOTTOM - height * tick / TICKS),
            f"{top * tick // TICKS:,}".replace(",", "\u202f"),
        )
        for tick in range(TICKS + 1)
    ]
    return Trend(tuple(boxes), tuple(labels), tuple(ticks))


def _round_up(most: int) -> int:
    """Return a number of which a quarter is whole and plain, not below ``most``."""
    size = TICKS
    while True:
        for tenths in (10, 15, 20, 30, 40, 50, 60, 80):
            if size * tenths >= most * 10 and size * tenths % (10 * TICKS) == 0:
                return size * tenths // 10
        size *= 10


def _bars(values: Mapping[str, tuple[int, int]], colour: str = "") -> list[BarRow]:
    most = max((count for count, _ in values.values()), default=1)
    return [
        BarRow(name, _r(BAR_WIDTH * count / most), colour or COLOURS.get(name, "#444444"), count, units)
        for name, (count, units) in values.items()
    ]


def _findings(found: Sequence[pb.AuditFinding]) -> list[tuple[str, int, str]]:
    """Return each kind of an audit's findings, how many there are, and the first in words."""
    kinds: dict[str, list[str]] = {}
    for one in found:
        kinds.setdefault(pb.AuditKind.Name(one.kind).removeprefix("AUDIT_KIND_"), []).append(one.message)
    return [(kind, len(messages), messages[0]) for kind, messages in sorted(kinds.items())]


def _r(value: float) -> float:
    return round(value, 1)


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def _words(name: str) -> str:
    return name.replace("_", " ").lower()


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
