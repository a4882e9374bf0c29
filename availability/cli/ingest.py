"""`availability ingest …`: files into the ledger, what they would do, and what could not be applied."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_REFUSED, CommandError, usage
from availability.cli.observe import LogFormat, LogLevel, MetricsListen, logged, observed
from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile, connect
from availability.cli.output import console, counted, print_json, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from availability.v1 import stock_pb2 as stk
    from ingest.app import IngestDesk
    from ingest.letters import KeptLetter
    from ingest.runs import Progress as CarryProgress

app = typer.Typer(
    help="Stock and orders from ERP and WMS: files, mappings, dead letters.", no_args_is_help=True
)
letters_app = typer.Typer(
    help="What could not be applied, until somebody replays or discards it.", no_args_is_help=True
)
app.add_typer(letters_app, name="letters")

Sources = Annotated[
    Path, typer.Option("--sources", envvar="AVAIL_INGEST_SOURCES", help="Folder with one TOML file a source.")
]
Database = Annotated[
    str,
    typer.Option(
        "--database", envvar="AVAIL_INGEST_DATABASE", help="SQLAlchemy URL, or the path of a SQLite file."
    ),
]
SourceOption = Annotated[str, typer.Option("--source", "-s", help="Source, as its file names it.")]
DEFAULT_SOURCES = Path("sources")
DEFAULT_DATABASE = "ingest.db"


@contextmanager
def _desk(
    sources: Path, database: str, target: str, token_file: Path | None, tls_ca: Path | None
) -> Iterator[IngestDesk]:
    from ingest.app import desk

    with logged(), desk(sources, database, connect(target, token_file, tls_ca)) as opened:
        yield opened


@app.command()
def run(
    sources: Sources = DEFAULT_SOURCES,
    database: Database = DEFAULT_DATABASE,
    once: Annotated[bool, typer.Option("--once", help="Carry what is there now, and end.")] = False,
    http: Annotated[
        str, typer.Option("--http", metavar="HOST:PORT", help="Take webhooks here as well; port 0: any.")
    ] = "",
    metrics: MetricsListen = "",
    log_format: LogFormat = "",
    log_level: LogLevel = "INFO",
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Fetch feeds, and carry files from the drop folders into the ledger, each once, until stopped."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    tasks: dict[str, TaskID] = {}

    def watch(name: str, progress: CarryProgress) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=None, said="")
        said = f"{progress.applied:,} applied, {progress.refused:,} refused"
        bar.update(
            tasks[name],
            description=f"{name}: {progress.name}",
            total=progress.bytes_total or None,
            completed=progress.bytes_read,
            said=said,
        )

    def told(line: str) -> None:
        bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    with ExitStack() as stack:
        desk = stack.enter_context(_desk(sources, database, target, token_file, tls_ca))
        stack.enter_context(observed(metrics, desk.metrics.registry, log_format, log_level))
        stack.enter_context(bar)
        if http:
            told(f"webhooks at {stack.enter_context(desk.doors(http))}/events/SOURCE")
        desk.run(once=once, stopped=stop.is_set, watch=watch, told=told)


@app.command()
def stream(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, allow_dash=True, help="JSON lines; -: standard input."),
    ],
    source: SourceOption,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Send a gapless, numbered feed of deltas from where the ledger is. Exit code 3 where some are refused."""
    from ingest.sources.stream_client import send_feed

    def refused(delta: stk.Delta, reason: str, sentence: str) -> None:
        print(f"{delta.stream} {delta.source_sequence}: {reason}: {sentence}", file=sys.stderr)

    with ExitStack() as stack:
        feed = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
        client = stack.enter_context(connect(target, token_file, tls_ca))
        sent = send_feed(client, source, feed, refused=refused)
    print(
        f"{sent.lines:,} lines: {sent.applied:,} applied, {sent.settled:,} had been settled,"
        f" {sent.repeated:,} repeated, {sent.refused:,} refused"
    )
    if sent.refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A file as the source delivers it.")
    ],
    source: SourceOption,
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Show what a file would do, without doing it. Exit code 3 where rows would be refused."""
    from ingest.check import check as checked
    from ingest.rows import ArtifactRefused

    with _dry(sources) as desk:
        try:
            effects = checked(desk.pipeline(source), file)
        except ArtifactRefused as error:
            raise CommandError("ARTIFACT_REFUSED", str(error), EXIT_REFUSED) from error
    out = console()
    rows = table("type", "node", "rows", "units", right=("rows", "units"))
    for (kind, node), count in sorted(effects.movements.items()):
        rows.add_row(kind, node, f"{count:,}", f"{effects.units[kind, node]:,}")
    out.print(rows)
    what = f"{counted(effects.rows, 'row')}, {counted(len(effects.skus), 'sku')}"
    out.print(f"{what}, {effects.ignored:,} ignored by their code")
    if effects.refusals:
        refused = table("category", "reason", "rows", "line", "what is wrong", right=("rows", "line"))
        for key, count in effects.refusals.most_common():
            for number, (position, message) in enumerate(effects.examples[key]):
                first = (*key, f"{count:,}") if number == 0 else ("", "", "")
                refused.add_row(*first, str(position), message)
        out.print(refused)
        raise typer.Exit(EXIT_REFUSED)


@app.command("test")
def prove_samples(sources: Sources = DEFAULT_SOURCES) -> None:
    """Prove each mapping by its golden samples. Exit code 3 where one differs."""
    from ingest.check import prove

    with _dry(sources) as desk:
        count, problems = 0, []
        for name, settings in desk.sources.items():
            for sample in settings.samples:
                count += 1
                problems += [f"{name}: {problem}" for problem in prove(desk.pipeline(name), sample, sources)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{counted(count, 'sample')}, {counted(len(problems), 'difference')}")
    if problems:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def runs(
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 20,
) -> None:
    """List the latest runs."""
    with _dry(sources, database) as desk:
        found = desk.runs(limit)
    rows = table(
        "source", "file", "state", "applied", "repeated", "refused", "ignored", "run", "begun",
        right=("applied", "repeated", "refused", "ignored"),
    )  # fmt: skip
    for one in found:
        counts = (f"{value:,}" for value in (one.applied, one.repeated, one.refused, one.ignored))
        state = f"{one.state}: {one.reason}" if one.reason else one.state
        rows.add_row(one.source, one.name, state, *counts, one.run_id, _time(one.begun_at))
    console().print(rows)


# --- Dead letters -----------------------------------------------------------------------------------------

Letter = Annotated[str, typer.Argument(metavar="LETTER", help="A letter's id, or its beginning.")]
OnlySource = Annotated[str, typer.Option("--source", "-s", help="Only of this source.")]
OnlyCategory = Annotated[str, typer.Option("--category", help="Only of this category.")]
OnlyRun = Annotated[str, typer.Option("--run", help="Only of this run.")]
AllOf = Annotated[bool, typer.Option("--all", help="All that the filters leave.")]
LETTERS_MAX = 100_000


@letters_app.command("list")
def letters_list(
    source: OnlySource = "",
    category: OnlyCategory = "",
    run: OnlyRun = "",
    state: Annotated[str, typer.Option("--state", help="WAITING, REPLAYED or DISCARDED.")] = "WAITING",
    limit: Annotated[int, typer.Option("--limit", min=1, max=LETTERS_MAX)] = 100,
    as_json: AsJson = False,
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """List dead letters, the oldest first."""
    with _dry(sources, database) as desk:
        found = desk.letters.find(source=source, category=category, run_id=run, state=state, limit=limit)
        nothing = "no dead letters" if found or desk.runs(1) else f"nothing has run yet with {database}"
    if as_json:
        print_json([_plain(letter) for letter in found])
        return
    rows = table(
        "letter",
        "source",
        "file",
        "line",
        "category",
        "reason",
        "what is wrong",
        "seen",
        right=("line", "seen"),
    )
    for letter in found:
        rows.add_row(
            letter.letter_id[:12],
            letter.source,
            letter.artifact,
            str(letter.position),
            letter.category,
            letter.reason,
            letter.message,
            f"{letter.count}×",
        )
    if found:
        console().print(rows)
    else:
        print(nothing)


@letters_app.command("show")
def letters_show(
    letter: Letter, database: Database = DEFAULT_DATABASE, sources: Sources = DEFAULT_SOURCES
) -> None:
    """Show one letter with its row as it came."""
    with _dry(sources, database) as desk:
        print_json(_plain(_one(desk, letter)))


@letters_app.command("replay")
def letters_replay(
    letter: Annotated[str, typer.Argument(metavar="[LETTER]")] = "",
    all_of: AllOf = False,
    source: OnlySource = "",
    category: OnlyCategory = "",
    run: OnlyRun = "",
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Apply letters by the mappings as they are now, each with one effect. Exit code 3 where some stay."""
    with _desk(sources, database, target, token_file, tls_ca) as desk:
        outcome = desk.replay(_chosen(desk, letter, all_of, source, category, run))
    print(
        f"{outcome.applied} applied, {outcome.repeated} had been applied, {len(outcome.refused or ())} stay"
    )
    for letter_id, why in outcome.refused or ():
        print(f"{letter_id[:12]}: {why}", file=sys.stderr)
    if outcome.refused:
        raise typer.Exit(EXIT_REFUSED)


@letters_app.command("discard")
def letters_discard(
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept.")],
    letter: Annotated[str, typer.Argument(metavar="[LETTER]")] = "",
    all_of: AllOf = False,
    source: OnlySource = "",
    category: OnlyCategory = "",
    run: OnlyRun = "",
    database: Database = DEFAULT_DATABASE,
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Give letters up."""
    with _dry(sources, database) as desk:
        print(f"{desk.discard(_chosen(desk, letter, all_of, source, category, run), reason)} discarded")


def _chosen(
    desk: IngestDesk, letter: str, all_of: bool, source: str, category: str, run: str
) -> list[KeptLetter]:
    if bool(letter) == all_of:
        raise usage("name one letter, or say --all (with filters)")
    if letter:
        return [_one(desk, letter)]
    return desk.letters.find(source=source, category=category, run_id=run, limit=LETTERS_MAX)


def _one(desk: IngestDesk, letter: str) -> KeptLetter:
    found = desk.letters.find(letter_id=letter, state="", limit=2)
    if len(found) != 1:
        raise CommandError(
            "LETTER_NOT_FOUND", "none begins so" if not found else "several begin so", EXIT_REFUSED
        )
    return found[0]


def _plain(letter: KeptLetter) -> dict[str, object]:
    found = {name: getattr(letter, name) for name in letter.__slots__}
    found["raw"] = letter.raw.decode("utf-8", "backslashreplace")
    found["context"] = letter.context.decode("utf-8", "backslashreplace")
    for name in ("first_seen_at", "last_seen_at", "closed_at"):
        found[name] = _time(found[name]) if found[name] is not None else None
    return found


def _dry(sources: Path, database: str = "sqlite://") -> AbstractContextManager[IngestDesk]:
    """A desk of commands that send nothing: nobody needs to be there."""
    return _desk(sources, database, DEFAULT_TARGET, None, None)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
