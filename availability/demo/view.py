"""What a person sees while the demo runs: a live picture on a terminal, plain lines anywhere else.

The picture is drawn from the service's own answers (Watch for each channel, Explain for the nodes) and the
journal's news; nothing here decides anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import grpc
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from availability.client import ClientError
from availability.demo.catalogue import BUFFER_WORDS, CHANNELS, FLASH, NODES, SKUS
from availability.demo.story import Story
from availability.v1 import availability_pb2 as av

FRAMES_A_SECOND = 8
EXPLAIN_EVERY_S = 0.4
CHANGE_SHOWN_S = 1.0
BAR_CELLS, BAR_CELLS_NARROW = 12, 4
NEWS_MIN, NEWS_MAX = 7, 14
WIDTH_MAX, WIDTH_NARROW = 116, 96
COUNTERS_WIDTH = 38
FREE, HELD, ORDERED, SET_ASIDE = "green", "yellow", "blue", "red"
ALL_NODES_CHANNEL = "web"
SIGNS = {
    "stock": ("+", "green"),
    "order": ("✔", "default"),
    "abandon": ("…", "yellow"),
    "release": ("↩", "yellow"),
    "erp": ("≡", "blue"),
    "ship": ("→", "cyan"),
    "return": ("←", "magenta"),
    "count": ("#", "green"),
    "damage": ("!", "red"),
    "cancel": ("✖", "magenta"),
    "twice": ("²", "bold magenta"),
    "fence": ("‖", "blue"),
    "file": ("▤", "cyan"),
    "letter": ("✉", "bold red"),
    "flash": ("★", "bold yellow"),
    "offline": ("▼", "bold red"),
    "online": ("▲", "bold green"),
}
PLAIN_KINDS = frozenset(SIGNS) - {"order", "abandon", "release", "erp", "ship"}
"""News that is worth a line of its own where nothing can be redrawn; the rest is counted."""


@dataclass(slots=True)
class _Sellable:
    units: int = 0
    moved: int = 0
    changed_s: float = 0.0


@dataclass(slots=True)
class Gauges:
    """The service's latest answers, kept current by threads of their own."""

    story: Story
    sellable: dict[tuple[str, str], _Sellable] = field(default_factory=dict)
    terms: dict[tuple[str, str], av.NodeTerms] = field(default_factory=dict)
    version: str = ""
    _closed: threading.Event = field(default_factory=threading.Event)
    _calls: dict[str, grpc.Call] = field(default_factory=dict)

    def start(self) -> None:
        """Watch every channel, and ask for the nodes' terms a few times a second."""
        for channel in CHANNELS:
            self._run(partial(self._watch, channel))
        self._run(self._explain)

    def close(self) -> None:
        """End the watches."""
        self._closed.set()
        for call in list(self._calls.values()):
            call.cancel()

    def _run(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except ClientError as error:
                if not self._closed.is_set():
                    self.story.fail(f"the view: {error}")

        threading.Thread(target=guarded, name="view", daemon=True).start()

    def _watch(self, channel: str) -> None:
        def opened(call: grpc.Call) -> None:
            self._calls[channel] = call

        for message in self.story.client.watch(channel, opened=opened):
            self.version = message.as_of.version
            for change in message.changes:
                cell = self.sellable.setdefault((change.sku, channel), _Sellable())
                if not message.initial and change.sellable_quantity != cell.units:
                    cell.moved = change.sellable_quantity - cell.units
                    cell.changed_s = time.monotonic()
                cell.units = change.sellable_quantity

    def _explain(self) -> None:
        while not self._closed.wait(EXPLAIN_EVERY_S):
            for sku in SKUS:
                for term in self.story.client.explain(ALL_NODES_CHANNEL, sku).terms.nodes:
                    self.terms[sku, term.node] = term


# --- The live picture -------------------------------------------------------------------------------------


def show_live(story: Story, console: Console, show: Callable[[], None]) -> None:
    """Draw while ``show`` runs; the last picture stays on the screen."""
    gauges = Gauges(story)
    gauges.start()
    done = threading.Event()

    def draw() -> None:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while not done.wait(1 / FRAMES_A_SECOND):
                live.update(picture(story, gauges, console), refresh=True)
            live.update(picture(story, gauges, console), refresh=True)

    painter = threading.Thread(target=draw, name="painter", daemon=True)
    painter.start()
    try:
        show()
    finally:
        done.set()
        painter.join()
        gauges.close()


def picture(story: Story, gauges: Gauges, console: Console) -> RenderableType:
    """Return one frame."""
    width = min(console.width, WIDTH_MAX)
    news_shown = max(NEWS_MIN, min(NEWS_MAX, console.height - len(SKUS) - 9))
    lower = Table.grid()
    lower.add_column(width=width - COUNTERS_WIDTH)
    lower.add_column(width=COUNTERS_WIDTH)
    lower.add_row(_news(story, width - COUNTERS_WIDTH, news_shown), _counters(story, news_shown))
    return Group(_headline(story, gauges, width), Text(), _stock(story, gauges, width), _legend(), lower)


def _headline(story: Story, gauges: Gauges, width: int) -> Text:
    elapsed_s = min(story.length_s, time.monotonic() - story.begin_s)
    cells = max(10, width - 62)
    full = round(cells * elapsed_s / story.length_s)
    line = Text(" availability demo ", style="bold reverse")
    line.append(f" {elapsed_s:4.0f} s ", style="bold")
    line.append("━" * full, style="cyan").append("━" * (cells - full), style="bright_black")
    line.append("  the ledger is at version ", style="bright_black").append(gauges.version or "…")
    return line


def _stock(story: Story, gauges: Gauges, width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, border_style="bright_black", padding=(0, 1))
    wide = width >= WIDTH_NARROW
    bar_cells = BAR_CELLS if wide else BAR_CELLS_NARROW
    table.add_column("sku", no_wrap=True)
    for node in NODES:
        down = node in story.journal.offline
        heading = Text(f"{node}\n{'OFFLINE' if down else ''}", style="bold red" if down else "bold")
        table.add_column(heading, no_wrap=True, min_width=bar_cells + 4)
    for channel in CHANNELS:
        heading = Text(channel, style="bold")
        heading.append(f"\n{'keeps ' if wide else '−'}{BUFFER_WORDS[channel]}", style="bright_black")
        table.add_column(heading, justify="right", no_wrap=True, min_width=9 if wide else 6)
    most = max((term.on_hand for term in gauges.terms.values()), default=1)
    for sku in SKUS:
        cells: list[RenderableType] = [Text(sku, style="bold yellow" if sku == FLASH.sku else "")]
        cells += [_position(gauges.terms.get((sku, node)), most, bar_cells) for node in NODES]
        cells += [_sellable(gauges.sellable.get((sku, channel)), wide=wide) for channel in CHANNELS]
        table.add_row(*cells)
    return table


def _legend() -> Text:
    marks = ((FREE, "free"), (HELD, "held"), (ORDERED, "ordered"), (SET_ASIDE, "set aside"))
    line = Text(no_wrap=True, style="bright_black")
    for style, word in marks:
        line.append(" ■ ", style=style).append(f"{word} ")
    return line.append("   right: sellable now, by channel")


def _position(term: av.NodeTerms | None, most: int, bar_cells: int) -> Text:
    """Draw a position: its free units as a number, all of it as a bar."""
    if term is None or term.on_hand <= 0:
        return Text("  ·", style="bright_black")
    free = Text(f"{term.free:3d} ", style="" if term.counted else "bright_black strike")
    cells = max(1, round(bar_cells * term.on_hand / max(1, most)))
    parts = (
        (ORDERED, term.committed),
        (HELD, term.reserved),
        (SET_ASIDE, term.on_hand - term.give),
        (FREE, term.free),
    )
    drawn, counted = 0, 0
    for style, units in parts:
        counted += units
        until = min(cells, round(cells * counted / term.on_hand))
        if units and until == drawn and drawn < cells:
            until += 1  # the smallest part shows too
        free.append("■" * (until - drawn), style=style if term.counted else "bright_black")
        drawn = until
    return free


def _sellable(cell: _Sellable | None, *, wide: bool) -> Text:
    if cell is None:
        return Text("·", style="bright_black")
    if cell.changed_s and time.monotonic() - cell.changed_s < CHANGE_SHOWN_S:
        colour = "green" if cell.moved > 0 else "red"
        moved = f"{cell.moved:+d} " if wide else ""
        return Text.assemble((moved, colour), (f"{cell.units:3d}", f"bold {colour}"))
    return Text(f"{cell.units:3d}", style="" if cell.units else "bright_black")


def _news(story: Story, width: int, shown: int) -> Panel:
    lines = Text(no_wrap=True, overflow="ellipsis")
    fresh, _ = story.journal.news_since(max(0, story.journal.news_total - shown))
    for news in fresh:
        sign, style = SIGNS[news.kind]
        lines.append(f"{news.at_s:5.1f} ", style="bright_black")
        lines.append(f"{sign} {news.text[: width - 14]}\n", style=style)
    return Panel(lines, title="news", title_align="left", border_style="bright_black", height=shown + 2)


def _counters(story: Story, shown: int) -> Panel:
    counts, flash = story.journal.counts, story.journal.flash
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="bright_black")
    table.add_column(justify="right")
    table.add_column(style="bright_black")
    table.add_column(justify="right")
    rows = (
        ("held", "reserved", "refused", "refused"),
        ("orders", "orders", "walked off", "abandoned"),
        ("cancelled", "cancelled", "shipped", "shipped"),
        ("deltas", "deltas", "duplicates", "duplicates"),
    )
    for left, left_key, right, right_key in rows:
        table.add_row(left, str(counts[left_key]), right, str(counts[right_key]))
    both = story.journal.latency_percentiles()
    speed = Text("a hold takes ", style="bright_black")
    speed.append(f"{both[0]:.0f} ms (p99 {both[1]:.0f})" if both else "…", style="default")
    sale = Text(f"★ {FLASH.sku} ", style="bold yellow")
    if flash.buyers:
        sold, asked = counts["flash sold"], counts["flash sold"] + counts["flash refused"]
        sale.append("■" * sold, style="yellow").append("□" * (flash.units - sold), style="bright_black")
        sale.append(f" {sold}/{flash.units} sold\n")
        cells = 20
        full = cells * asked // flash.buyers
        sale.append("━" * full, style="red").append("━" * (cells - full), style="bright_black")
        sale.append(f" {asked}/{flash.buyers} asked", style="default")
    else:
        sale.append("the flash sale is about to open\n", style="bright_black")
    return Panel(
        Group(table, speed, sale),
        title="so far",
        title_align="left",
        border_style="bright_black",
        height=shown + 2,
    )


# --- Plain lines ------------------------------------------------------------------------------------------


def show_plain(story: Story, show: Callable[[], None]) -> None:
    """Print a line for what is worth one, and a count every few seconds, while ``show`` runs."""
    done = threading.Event()
    printer = threading.Thread(target=_print_lines, args=(story, done), name="printer", daemon=True)
    printer.start()
    try:
        show()
    finally:
        done.set()
        printer.join()


def _print_lines(story: Story, done: threading.Event) -> None:
    seen, next_count_s = 0, 2.0
    while True:
        last = done.wait(0.2)
        fresh, seen = story.journal.news_since(seen)
        for news in fresh:
            if news.kind in PLAIN_KINDS:
                print(f"{news.at_s:5.1f} s  {news.text}", flush=True)
        elapsed_s = time.monotonic() - story.journal.started_s
        if elapsed_s >= next_count_s and not last:
            next_count_s += 2.0
            counts = story.journal.counts
            words = ("reserved", "refused", "orders", "abandoned", "shipped", "deltas")
            print(f"{elapsed_s:5.1f} s  " + ", ".join(f"{counts[word]} {word}" for word in words), flush=True)
        if last:
            return
