"""`availability explain --at` and `availability history`: the past, as the journal tells it; no server is asked."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from availability.cli.errors import usage
from availability.cli.historian import Config, DataDir, settings_of
from availability.cli.options import AsJson
from availability.cli.output import console, plain, print_json, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from sqlalchemy.engine import Engine

    from availability.domain.version import Version
    from availability.history.origin import Origin
    from availability.history.past import PastTerms
    from availability.history.story import Chapter

CHANGES = ("on_hand", "quarantined", "reserved", "committed")


@contextmanager
def opened(data_dir: Path | None, config: Path | None) -> Iterator[Engine]:
    """Open the history database of the settings."""
    from availability.history.app import history_engine

    engine = history_engine(settings_of(config, data_dir))
    try:
        yield engine
    finally:
        engine.dispose()


def read_at(text: str | None) -> Version | int | None:
    """Read --at. Raises the error of a usage."""
    from availability.history.moment import parse_at

    if text is None or text == "now":
        return None
    try:
        return parse_at(text)
    except ValueError as error:
        raise usage(str(error)) from None


def explain_past(
    sku: str, channel: str, at: str, *, as_json: bool, data_dir: Path | None, config: Path | None
) -> None:
    """Show the whole sum behind an answer of the past, and which record last set each term."""
    from availability.history.past import Past

    point = read_at(at)
    with opened(data_dir, config) as engine:
        answer = Past(engine).explain(channel, sku, point)
    if as_json:
        print_json(_as_json(answer))
    else:
        _draw(answer, console())


def _as_json(answer: PastTerms) -> dict[str, Any]:  # Any: JSON's own types
    from availability.service.terms_view import terms_message

    return {
        "sku": answer.terms.sku,
        "channel": answer.terms.channel,
        "as_of": {"version": str(answer.terms.version), "ledger_clock_ms": answer.clock_ms},
        "channel_declared": answer.declared,
        "terms": plain(terms_message(answer.terms, {})),
        "last_set": [
            {"node": node, "figure": figure, **asdict(origin)}
            for (node, figure), origin in sorted(answer.origins.items())
        ],
        "parts": [_as_json(part) for part in answer.parts],
    }


def _draw(answer: PastTerms, screen: Console) -> None:
    from availability.cli.explain import draw
    from availability.history.overview import clock_text
    from availability.service.terms_view import terms_message
    from availability.v1 import availability_pb2 as av

    terms = answer.terms
    message = av.ExplainAvailabilityResponse(
        sku=terms.sku, channel=terms.channel, terms=terms_message(terms, {})
    )
    draw(message, screen)
    if answer.origins:
        screen.print("\n[bold]last set by[/]")
        screen.print(_last_set(answer))
    if not answer.declared:
        screen.print(
            "the channel had no policy then: it sold from every node if unknown channels could (auto_create)",
            style="bright_black",
        )
    screen.print(
        f"as of {terms.version}, {clock_text(answer.clock_ms)}, from the journal", style="bright_black"
    )
    for part in answer.parts:
        screen.print()
        _draw(part, screen)


def _last_set(answer: PastTerms) -> Any:  # Any: rich's table
    from rich.markup import escape

    from availability.history.overview import clock_text

    rows = table(
        "node", "figure", "value", "event", "told by", "author", "because", "at", "when", right=("value",)
    )
    for node in answer.terms.nodes:
        for figure in (*CHANGES, "safety_stock"):
            origin = answer.origins.get((node.node, figure))
            if origin is None:
                continue
            cells = (node.node, figure, str(getattr(node, figure)), origin.event, who(origin), origin.author)
            rows.add_row(*map(escape, (*cells, origin.reason, origin.version)), clock_text(origin.clock_ms))
    return rows


def who(origin: Origin) -> str:
    """Say in a few words where a record came from: source and number, order, reservation."""
    parts = []
    if origin.source:
        number = f" {origin.stream}#{origin.source_sequence}" if origin.source_sequence else ""
        parts.append(origin.source + (number or (f" {origin.event_id}" if origin.event_id else "")))
    if origin.order_ref:
        parts.append(
            f"order {origin.order_source}:{origin.order_ref}"
            if origin.order_source
            else f"order {origin.order_ref}"
        )
    if origin.reservation_id:
        parts.append(f"hold {origin.reservation_id}")
    if origin.reference:
        parts.append(origin.reference)
    if origin.more:
        parts.append(f"and {origin.more} more")
    return ", ".join(parts)


def history(
    sku: Annotated[str, typer.Argument(help="Sellable unit code.")],
    node: Annotated[str, typer.Option("--node", "-n", help="Node.")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME|VERSION", help="Up to then; else up to now.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="VERSION", help="The next page: what was before it.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, max=1000, help="Changes on a page.")] = 30,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Tell what happened to a position, newest first: each change, what it left, and who told it."""
    from availability.domain.version import Version
    from availability.history.story import Story

    point = read_at(at)
    try:
        earlier = Version.parse(before) if before else None
    except ValueError as error:
        raise usage(str(error)) from None
    with opened(data_dir, config) as engine:
        page = Story(engine).page(sku, node, at=point, before=earlier, size=size)
    if as_json:
        print_json({"sku": sku, "node": node, **asdict(page)})
        return
    screen = console()
    if not page.chapters:
        screen.print(f"nothing is known of {sku} at {node}", markup=False)
        return
    from rich.markup import escape

    screen.print(f"[bold]{escape(sku)}[/] at [bold]{escape(node)}[/], newest first\n")
    screen.print(_chapters(page.chapters))
    if page.before:
        screen.print(f"older ones: --before {page.before}", style="bright_black")


def _chapters(chapters: tuple[Chapter, ...]) -> Any:  # Any: rich's table
    from rich.markup import escape

    from availability.history.overview import clock_text

    rows = table("when", "at", "event", "change", *CHANGES, "told by", "author", "because", right=CHANGES)
    for one in chapters:
        origin = one.origin
        changes = [(name, getattr(one, f"{name}_change")) for name in CHANGES]
        moved = ", ".join(f"{name} {change:+d}" for name, change in changes if change)
        figures = (str(getattr(one, name)) for name in CHANGES)
        told = (who(origin), origin.author, origin.reason)
        rows.add_row(
            clock_text(origin.clock_ms), origin.version, origin.event, moved, *figures, *map(escape, told)
        )
    return rows
