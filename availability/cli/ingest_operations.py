"""`availability ingest …`: how sources fare, and what an operator does about it."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_REFUSED, CommandError, usage
from availability.cli.ingest import (
    DEFAULT_DATABASE,
    DEFAULT_SOURCES,
    Database,
    SourceOption,
    Sources,
    _desk,
    _time,
)
from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile
from availability.cli.output import console, print_json, table

if TYPE_CHECKING:
    from ingest.opening import Opening

app = typer.Typer()
gap_app = typer.Typer(help="Numbers that a source owes.", no_args_is_help=True)
shadow_app = typer.Typer(help="Sources that are compared, not applied.", no_args_is_help=True)
app.add_typer(gap_app, name="gap")
app.add_typer(shadow_app, name="shadow")

Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept.")]
SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help="Source, as its file names it.")]
SHOWN_MAX = 1_000


@app.command()
def status(
    as_json: AsJson = False,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Show each source's streams, their ages, and what waits. Exit code 3 where a stream is parked."""
    with _desk(sources, database, target, token_file, tls_ca) as desk:
        found = [desk.operations.status(settings) for settings in desk.sources.values()]
    parked = any(stream.parked_s is not None for one in found for stream in one.streams)
    if as_json:
        print_json(
            [
                {
                    "source": one.source,
                    "mode": one.mode,
                    "files_waiting": one.files,
                    "letters_waiting": one.letters,
                    "feeds": [
                        {
                            "kind": feed.kind,
                            "worked": _time(feed.worked_at) if feed.worked_at else None,
                            "failing_since": _time(feed.failing_since) if feed.failing_since else None,
                            "failures": feed.failures,
                            "reason": feed.reason,
                            "message": feed.message,
                        }
                        for feed in one.feeds
                    ],
                    "streams": [
                        {
                            "stream": stream.stream,
                            "last_sequence": stream.last_sequence,
                            "age_s": stream.age_s,
                            "parked_s": stream.parked_s,
                            "waits_for": stream.waits_for,
                            "was_reset": stream.was_reset,
                            "watermark": _time(stream.watermark) if stream.watermark else None,
                        }
                        for stream in one.streams
                    ],
                }
                for one in found
            ]
        )
    else:
        rows = table(
            "source", "mode", "files", "letters", "stream", "last", "age", "parked for", "waits for",
            "watermark", right=("files", "letters", "last", "age", "parked for", "waits for"),
        )  # fmt: skip
        for one in found:
            first = (
                one.source,
                one.mode,
                "" if one.files is None else f"{one.files:,}",
                f"{one.letters:,}",
            )
            if not one.streams:
                rows.add_row(*first, "", "", "", "", "", "")
            for stream in one.streams:
                rows.add_row(
                    *first,
                    stream.stream or "(events)",
                    "reset"
                    if stream.was_reset
                    else f"{stream.last_sequence:,}"
                    if stream.last_sequence
                    else "",
                    _lasting(stream.age_s),
                    _lasting(stream.parked_s),
                    f"{stream.waits_for:,}" if stream.waits_for else "",
                    _time(stream.watermark) if stream.watermark else "",
                )
                first = ("", "", "", "")
        console().print(rows)
        if any(one.feeds for one in found):
            from rich.markup import escape

            fetched = table("source", "feed", "worked", "fails since", "failures", "why", right=("failures",))
            for one in found:
                for feed in one.feeds:
                    fetched.add_row(
                        one.source,
                        feed.kind,
                        _time(feed.worked_at) if feed.worked_at else "never",
                        _time(feed.failing_since) if feed.failing_since else "",
                        f"{feed.failures:,}" if feed.failures else "",
                        escape(f"{feed.reason}: {feed.message}" if feed.reason else ""),
                    )
            console().print(fetched)
    if parked:
        raise typer.Exit(EXIT_REFUSED)


@gap_app.command("skip")
def gap_skip(
    source: SourceArgument,
    stream: Annotated[str, typer.Argument(metavar="STREAM")],
    next_sequence: Annotated[
        int, typer.Argument(metavar="NEXT", min=1, help="The number to go on with; all before are given up.")
    ],
    reason: Reason,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Give up missing numbers of a stream, for a reason. What waits goes on by itself."""
    with _desk(sources, database, target, token_file, tls_ca) as desk:
        now = desk.operations.skip_gap(source, stream, next_sequence, reason)
    print(f"{source} {stream}: goes on with {now.last_sequence + 1}")


@gap_app.command("reset")
def gap_reset(
    source: SourceArgument,
    stream: Annotated[str, typer.Argument(metavar="STREAM")],
    reason: Reason,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Forget where a stream stands, for a reason: the source counts anew, and its next number is the first."""
    with _desk(sources, database, target, token_file, tls_ca) as desk:
        desk.operations.reset_stream(source, stream, reason)
    print(f"{source} {stream}: was reset; its next number is its first")


# --- Swapping a source ------------------------------------------------------------------------------------


@shadow_app.command("report")
def shadow_report(
    source: SourceArgument,
    every: Annotated[bool, typer.Option("--all", help="Positions that agree as well.")] = False,
    as_json: AsJson = False,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Compare what a source in shadow says of on_hand with the ledger. Exit code 3 where something differs."""
    from ingest.operations import CutoverRefused

    with _desk(sources, database, target, token_file, tls_ca) as desk:
        try:
            found = desk.operations.shadow(desk.settings(source)).report(time.time())
        except CutoverRefused as error:
            raise CommandError("NOT_IN_SHADOW", str(error), EXIT_REFUSED) from error
    differing = [one for one in found if one.difference]
    shown = found if every else differing
    if as_json:
        print_json(
            [
                {
                    "sku": one.sku,
                    "node": one.node,
                    "says": one.says,
                    "ledger": one.ledger,
                    "difference": one.difference,
                    "based_on": one.based_on,
                    "rows": one.rows,
                }
                for one in shown
            ]
        )
    else:
        rows = table(
            "sku", "node", "source says", "ledger has", "difference", "based on", "rows",
            right=("source says", "ledger has", "difference", "rows"),
        )  # fmt: skip
        for one in shown[:SHOWN_MAX]:
            rows.add_row(
                one.sku,
                one.node,
                f"{one.says:,}",
                f"{one.ledger:,}",
                f"{one.difference:+,}",
                one.based_on,
                f"{one.rows:,}",
            )
        if shown:
            console().print(rows)
        print(f"{len(found):,} positions compared, {len(differing):,} differ")
    if differing:
        raise typer.Exit(EXIT_REFUSED)


@shadow_app.command("rebase")
def shadow_rebase(
    source: SourceArgument,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Compare from the ledger's figures of this moment on: when both sources are quiet."""
    from ingest.operations import CutoverRefused

    with _desk(sources, database, target, token_file, tls_ca) as desk:
        try:
            count = desk.operations.shadow(desk.settings(source)).rebase(time.time())
        except CutoverRefused as error:
            raise CommandError("NOT_IN_SHADOW", str(error), EXIT_REFUSED) from error
    print(f"{count:,} positions begin with what the ledger has")


@app.command()
def cutover(
    from_source: Annotated[str, typer.Option("--from", help="Source that speaks for them until its point.")],
    to_source: Annotated[str, typer.Option("--to", help="Source that speaks for them after its point.")],
    reason: Reason,
    nodes: Annotated[list[str] | None, typer.Option("--nodes", help="A node; again for more.")] = None,
    skus: Annotated[
        Path | None, typer.Option("--skus", exists=True, dir_okay=False, help="File of skus, one a line.")
    ] = None,
    at_sequence: Annotated[
        int, typer.Option("--at-sequence", min=-1, help="Last number of the old source that counts.")
    ] = -1,
    stream: Annotated[str, typer.Option("--stream", help="Its stream; any where none is named.")] = "",
    to_sequence: Annotated[
        int, typer.Option("--to-sequence", min=-1, help="Last number of the new source that does not count.")
    ] = -1,
    to_stream: Annotated[str, typer.Option("--to-stream", help="Its stream; any where none is named.")] = "",
    at_time: Annotated[
        datetime | None, typer.Option("--at-time", help="Point of events without a number, UTC.")
    ] = None,
    accept_differences: Annotated[
        bool, typer.Option("--accept-differences", help="Although shadow and ledger differ.")
    ] = False,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Move the authority over nodes, or skus, from one source to another at a stated point of each."""
    from datetime import UTC

    from ingest.authority import Cutover, Point
    from ingest.operations import CutoverRefused

    time_at = at_time.replace(tzinfo=at_time.tzinfo or UTC).timestamp() if at_time is not None else 0.0
    named = [line.strip() for line in skus.read_text("utf-8").splitlines()] if skus is not None else []
    one = Cutover(
        from_source=from_source,
        from_point=Point(stream=stream, sequence=at_sequence, at_time=time_at),
        to_source=to_source,
        to_point=Point(stream=to_stream, sequence=to_sequence, at_time=time_at),
        nodes=frozenset(nodes or ()),
        skus=frozenset(sku for sku in named if sku),
        reason=reason,
        made_at=time.time(),
    )
    with _desk(sources, database, target, token_file, tls_ca) as desk:
        try:
            accepted = desk.operations.cut_over(
                one, desk.settings(to_source), accept_differences=accept_differences
            )
        except CutoverRefused as error:
            raise CommandError("CUTOVER_REFUSED", str(error), EXIT_REFUSED) from error
    said = f", {len(accepted)} differences accepted" if accepted else ""
    print(f"{to_source} speaks for {_scope(one.nodes, one.skus)} instead of {from_source}{said}")


# --- Undo and first load ----------------------------------------------------------------------------------


@app.command("reverse")
def reverse_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept.")] = "",
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what it would do, and do nothing.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("--file", exists=True, dir_okay=False, help="The run's file, where not in the archive."),
    ] = None,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Book the stock deltas that a run applied back, once. Exit code 3 where rows stay."""
    from ingest.reverse import ReverseRefused, find_run
    from ingest.rows import ArtifactRefused

    if not reason and not preview:
        raise usage("--reason is required to reverse a run")
    with _desk(sources, database, target, token_file, tls_ca) as desk:
        try:
            source = find_run(desk.engine, run).source
            reverser, path = desk.operations.reverser(run, desk.sources.get(source), file, reason)
            if preview:
                found = reverser.preview(path)
            else:
                found = reverser.book(
                    path, lambda deltas: desk.client.apply_deltas(source, deltas), time.time
                )
        except (ReverseRefused, ArtifactRefused) as error:
            raise CommandError("REVERSE_REFUSED", str(error), EXIT_REFUSED) from error
    rows = table("sku", "node", "on_hand", "quarantined", right=("on_hand", "quarantined"))
    for sku, node in sorted({*found.on_hand, *found.quarantined})[:SHOWN_MAX]:
        rows.add_row(sku, node, f"{found.on_hand[sku, node]:+,}", f"{found.quarantined[sku, node]:+,}")
    console().print(rows)
    for why, count in sorted(found.stays_count.items()):
        places = ", ".join(map(str, found.stays[why]))
        print(f"{count:,} rows: {why} (first at {places})")
    if found.letters_replayed:
        print(f"{found.letters_replayed:,} letters of the run were replayed: these stay")
    if not preview:
        print(f"{found.applied:,} booked back, {found.repeated:,} had been")
    for line in found.refused:
        print(line, file=sys.stderr)
    if found.stays_count or found.refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def opening(
    stock_file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What lies where.")],
    orders_file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Open orders.")],
    source: SourceOption,
    orders_source: Annotated[
        str, typer.Option("--orders-source", help="Source whose file describes the orders; SOURCE if none.")
    ] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Although the source has brought something.")
    ] = False,
    new_nodes: Annotated[bool, typer.Option("--new-nodes", help="Nodes need not be known.")] = False,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Load stock and open orders before go-live: everything is checked first, both go in or neither."""
    from ingest.operations import OpeningRefused

    with _desk(sources, database, target, token_file, tls_ca) as desk:
        stock = desk.settings(source)
        orders = desk.settings(orders_source) if orders_source else stock
        try:
            found = desk.operations.open(
                stock_file, orders_file, stock, orders, again=again, new_nodes=new_nodes
            )
        except OpeningRefused as error:
            if error.found is not None:
                _print_problems(error.found)
            raise CommandError("OPENING_REFUSED", str(error), EXIT_REFUSED) from error
    print(f"{found.positions:,} positions with {found.units:,} units")
    print(f"{found.orders:,} orders of {found.ordered_units:,} units")
    refused = 0
    for outcome in found.outcomes:
        progress = outcome.progress
        refused += progress.refused
        known = " (loaded before)" if outcome.known else ""
        print(
            f"{progress.name}: {progress.applied:,} applied, {progress.repeated:,} had been, "
            f"{progress.refused:,} refused{known}"
        )
    if refused:
        raise typer.Exit(EXIT_REFUSED)


def _print_problems(found: Opening) -> None:
    rows = table("file", "line", "what is wrong", right=("line",))
    for file, position, what in found.problems[:SHOWN_MAX]:
        rows.add_row(file, str(position), what)
    console().print(rows)


def _scope(nodes: frozenset[str], skus: frozenset[str]) -> str:
    parts = [", ".join(sorted(nodes))] if nodes else []
    parts += [f"{len(skus):,} skus"] if skus else []
    return " of ".join(reversed(parts))


def _lasting(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
