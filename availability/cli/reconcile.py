"""`availability reconcile …`: snapshots against the ledger, every night or by hand; causes, approval, reports."""

from __future__ import annotations

import getpass
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_REFUSED, CommandError, usage
from availability.cli.historian import settings_of
from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile, connect
from availability.cli.output import console, print_json, table

if TYPE_CHECKING:
    from availability.client import Client
    from ingest.reconcile.book import ClientLedger
    from ingest.reconcile.desk import Desk
    from ingest.reconcile.explaining import Place
    from ingest.reconcile.nightly import Nightly, OneAtATime
    from ingest.reconcile.settings import SnapshotSettings
    from ingest.reconcile.store import KeptVariance, Run, Store

app = typer.Typer(
    help="What sources say they have, beside the ledger: causes, corrections, approval, reports.",
    no_args_is_help=True,
    epilog="Exit codes: 0 all is well, 3 a snapshot was refused, 5 a run waits for approval, 6 another one is going on,"
    " 7 a snapshot has not come, 4 unreachable.",
)

Snapshots = Annotated[
    Path,
    typer.Option(
        "--snapshots", envvar="AVAIL_RECONCILE_SNAPSHOTS", help="Folder with one TOML file a snapshot."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="AVAIL_CONFIG", help="TOML file with the history's database; else the environment."
    ),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where runs keep their frames and reports.")]
IngestSources = Annotated[
    Path | None,
    typer.Option(
        "--sources",
        envvar="AVAIL_INGEST_SOURCES",
        help="Folder of ingest's sources: what waits there as a dead letter is not corrected as well.",
    ),
]
IngestDatabase = Annotated[
    str, typer.Option("--database", envvar="AVAIL_INGEST_DATABASE", help="Ingest's database, with --sources.")
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")]
DEFAULT_SNAPSHOTS = Path("snapshots")
VARIANCES_SHOWN = 50
LETTERS_MAX = 10_000


@dataclass(frozen=True)
class Parts:
    """What the commands work with."""

    store: Store
    desk: Desk
    ledger: ClientLedger
    client: Client
    lock: OneAtATime
    snapshots: dict[str, SnapshotSettings]
    folder: Path

    def nightly(self, told: Callable[[str], None]) -> Nightly:
        from ingest.reconcile.nightly import Nightly

        return Nightly(
            self.desk, self.store, self.ledger, self.client, self.snapshots, self.folder, time.time, told
        )


@contextmanager
def _opened(
    config: Path | None,
    data_dir: Path | None,
    snapshots: Path | None,
    target: str = DEFAULT_TARGET,
    token_file: Path | None = None,
    tls_ca: Path | None = None,
    tell: Callable[[str, int, int], None] = lambda *_: None,
    letters: Callable[[str], dict[Place, list[tuple[int, str]]]] = lambda _: {},
) -> Iterator[Parts]:
    from availability.history.app import history_engine
    from ingest.reconcile.book import ClientLedger
    from ingest.reconcile.comparing import Watch
    from ingest.reconcile.desk import Desk
    from ingest.reconcile.journal import Journal
    from ingest.reconcile.nightly import OneAtATime
    from ingest.reconcile.settings import read_snapshots
    from ingest.reconcile.store import Store

    found = read_snapshots(snapshots) if snapshots is not None else {}
    settings = settings_of(config, data_dir)
    engine = history_engine(settings)
    folder = settings.data_dir / "reconcile"
    try:
        store = Store(engine)
        lock = OneAtATime(store, time.time)
        with connect(target, token_file, tls_ca) as client:
            ledger = ClientLedger(client)
            desk = Desk(
                store,
                Journal(engine),
                ledger,
                folder,
                snapshots=found.values(),
                now=time.time,
                new_run_id=lambda: uuid.uuid4().hex,
                sleep=time.sleep,
                watch=Watch(tell=tell, beat=lock.beat),
                letters=letters,
            )
            yield Parts(store, desk, ledger, client, lock, found, folder)
    finally:
        engine.dispose()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show how far it is: bars on a terminal, nothing else."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    tasks: dict[str, TaskID] = {}

    def tell(stage: str, done: int, total: int) -> None:
        for other, task in tasks.items():
            if other != stage:
                bar.update(task, visible=False)
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=None)
        bar.update(tasks[stage], completed=done, total=total or None, visible=True)

    with bar:
        yield tell


def _waiting_letters(
    sources: Path | None, database: str, connected: Callable[[], Client]
) -> Callable[[str], dict[Place, list[tuple[int, str]]]]:
    """Return what tells which units wait as dead letters, by position."""
    if sources is None:
        return lambda _: {}
    folder = sources

    def waiting(source: str) -> dict[Place, list[tuple[int, str]]]:
        from availability.domain.snapshots import stock_change
        from ingest.app import desk
        from ingest.rows import RowRefused

        found: dict[Place, list[tuple[int, str]]] = {}
        with desk(folder, database, connected()) as letters_desk:
            if source not in letters_desk.sources:
                return {}
            pipeline = letters_desk.pipeline(source)
            for letter in letters_desk.letters.find(source=source, limit=LETTERS_MAX):
                try:
                    deltas = pipeline.replayed(letter)
                except RowRefused:  # it says nothing that can be understood yet
                    continue
                for delta in deltas:
                    units = stock_change(delta.type, delta.quantity, delta.state, delta.reason)[0]
                    if units:
                        found.setdefault((delta.sku, delta.node), []).append((units, letter.letter_id))
        return found

    return waiting


# --- Running ----------------------------------------------------------------------------------------------


@app.command()
def nightly(
    snapshots: Snapshots = DEFAULT_SNAPSHOTS,
    sources: IngestSources = None,
    database: IngestDatabase = "ingest.db",
    data_dir: DataDir = None,
    config: Config = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Take every snapshot that has arrived, correct, look at shops, audit, and write the report. For a timer."""
    from ingest.reconcile.nightly import Ended, LockHeld

    letters = _waiting_letters(sources, database, lambda: connect(target, token_file, tls_ca))
    with (
        _progress() as tell,
        _opened(config, data_dir, snapshots, target, token_file, tls_ca, tell, letters) as parts,
    ):
        try:
            with parts.lock:
                night = parts.nightly(print).run()
                report = _write_report(parts, night.findings)
        except LockHeld as held:
            raise CommandError("ANOTHER_RUNS", str(held), Ended.ANOTHER_RUNS) from None
    print(f"report: {report}")
    if night.ended:
        raise typer.Exit(int(night.ended))


@app.command("run")
def run_file(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A snapshot as its source delivers it.")
    ],
    snapshot: Annotated[str, typer.Option("--snapshot", "-s", help="Snapshot, as its TOML file names it.")],
    as_of: Annotated[
        list[str] | None,
        typer.Option(
            "--as-of", metavar="STREAM=NUMBER", help="Last number it contains; once for each stream."
        ),
    ] = None,
    snapshot_id: Annotated[str, typer.Option("--snapshot-id", help="As `snapshot begin` printed it.")] = "",
    snapshots: Snapshots = DEFAULT_SNAPSHOTS,
    data_dir: DataDir = None,
    config: Config = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Run one file, and leave it where it is. Without a point it is only compared and reported."""
    from ingest.reconcile.nightly import Ended, LockHeld
    from ingest.reconcile.points import Point, read_point
    from ingest.reconcile.store import HELD, REFUSED

    with (
        _progress() as tell,
        _opened(config, data_dir, snapshots, target, token_file, tls_ca, tell) as parts,
    ):
        settings = _snapshot(parts, snapshot)
        beside = Path(str(file) + settings.files.point_suffix)
        point = Point(as_of=_as_of(as_of or []), snapshot_id=snapshot_id)
        if as_of and snapshot_id:
            raise usage("--as-of or --snapshot-id, not both")
        if not point.given and beside.exists():
            point = read_point(beside)
        try:
            with parts.lock:
                run, known = parts.nightly(print).one(settings, file, point)
        except LockHeld as held:
            raise CommandError("ANOTHER_RUNS", str(held), Ended.ANOTHER_RUNS) from None
        _show(parts.store, run, known=known)
    if run.state == REFUSED:
        raise typer.Exit(EXIT_REFUSED)
    if run.state == HELD:
        raise typer.Exit(int(Ended.WAITS_FOR_APPROVAL))


def _as_of(given: list[str]) -> dict[str, int]:
    found = {}
    for one in given:
        stream, equals, number = one.rpartition("=")
        if not equals or not number.isascii() or not number.isdigit():
            raise usage(f"{one!r} is no point: use STREAM=NUMBER")
        found[stream] = int(number)
    return found


def _snapshot(parts: Parts, name: str) -> SnapshotSettings:
    if name not in parts.snapshots:
        raise usage(
            f"no file describes the snapshot {name!r}; there are {', '.join(sorted(parts.snapshots))}"
        )
    return parts.snapshots[name]


@app.command()
def approve(
    run: RunId,
    reason: Annotated[str, typer.Option("--reason", help="Why it is right; it is kept.")],
    data_dir: DataDir = None,
    config: Config = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    author: Annotated[str, typer.Option("--author", help="Who approves; you.")] = "",
    within_hours: Annotated[
        float, typer.Option("--within-hours", help="Oldest run that can be approved.")
    ] = 48.0,
) -> None:
    """Let a run go on that waits for approval, and correct what it found."""
    from ingest.reconcile.nightly import Ended, LockHeld

    with _progress() as tell, _opened(config, data_dir, None, target, token_file, tls_ca, tell) as parts:
        try:
            with parts.lock:
                found = _run(parts.store, run)
                done, approved = parts.desk.approve(found, author or getpass.getuser(), reason, within_hours)
        except LockHeld as held:
            raise CommandError("ANOTHER_RUNS", str(held), Ended.ANOTHER_RUNS) from None
        print(f"{approved:,} approved")
        _show(parts.store, done)


# --- Looking ----------------------------------------------------------------------------------------------


@app.command()
def runs(
    snapshot: Annotated[str, typer.Option("--snapshot", "-s", help="Only of this snapshot.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """List the latest runs."""
    with _store(config, data_dir) as store:
        found = store.runs(snapshot, limit)
        states = {run.run_id: store.states(run.run_id) for run in found}
    if as_json:
        print_json([_plain(run) | {"variances": states[run.run_id]} for run in found])
        return
    rows = table("run", "snapshot", "file", "state", "positions", "corrected", "held", "reported", "begun", right=(
        "positions", "corrected", "held", "reported"))  # fmt: skip
    for run in found:
        counted = (f"{states[run.run_id].get(name, 0):,}" for name in ("CORRECTED", "HELD", "REPORTED"))
        rows.add_row(
            run.run_id[:8],
            run.snapshot,
            run.file,
            run.state,
            f"{run.positions:,}",
            *counted,
            _time(run.begun_at),
        )
    console().print(rows if found else "no runs")


@app.command()
def show(
    run: RunId,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Variances, the largest first.")
    ] = (VARIANCES_SHOWN),
    sku: Annotated[str, typer.Option("--sku", help="Only this sku, with all its evidence.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Show a run: what differed, why, and what became of it."""
    with _store(config, data_dir) as store:
        found = _run(store, run)
        if as_json:
            variances = [
                {name: getattr(one, name) for name in one.__slots__ if name not in ("delta", "parts")}
                | {"parts": [_part(part) for part in store.parts(found.run_id, one.number)]}
                for one in store.variances(found.run_id, limit=limit, worst=True)
                if not sku or one.sku == sku
            ]
            print_json(_plain(found) | {"variances": variances})
            return
        _show(store, found, limit=limit, sku=sku)


def _show(
    store: Store, run: Run, *, known: bool = False, limit: int = VARIANCES_SHOWN, sku: str = ""
) -> None:
    from ingest.reconcile.explaining import HOLDS

    out = console()
    states = store.states(run.run_id)
    out.print(
        f"run {run.run_id[:8]} of {run.snapshot} ({run.source}, {run.kind.lower()}): {run.state}"
        + (" (run before: nothing was done)" if known else ""),
        style="bold",
    )
    point = (
        ", ".join(f"{stream} {number:,}" for stream, number in run.as_of.items()) or run.snapshot_id or "none"
    )
    beside = f", {run.positions:,} in the ledger" if run.positions or run.state != "REFUSED" else ""
    out.print(f"{run.file}: {run.rows:,} rows{beside}, point: {point}")
    for finding in run.findings:
        out.print(
            f"{finding['severity']} {finding['code']}: {finding['sentence']}", markup=False, style="red"
        )
    for one in run.counts.get("refused_examples", ())[:5]:
        out.print(f"row {one['position']}: {one['category']} {one['reason']}: {one['message']}", markup=False)
    for who, why, count, when in store.approvals(run.run_id):
        out.print(f"approved by {who} at {_time(when)}: {count:,} variances: {why}", markup=False)
    if not states:
        return
    found = store.variances(run.run_id, limit=limit if not sku else 1_000_000, worst=True)
    shown = [one for one in found if not sku or one.sku == sku]
    rows = table("sku", "node", "source", "ledger", "variance", "cause", "state", "why", right=(
        "source", "ledger", "variance"))  # fmt: skip
    for one in shown:
        parts = store.parts(run.run_id, one.number)
        why = "; ".join(sentence for _, _, sentence, _ in parts)
        why = one.message or (f"{HOLDS.get(one.hold, one.hold)}. {why}" if one.hold else why)
        rows.add_row(
            one.sku, _where(one), f"{one.said:,}", f"{one.ledger:,}", f"{one.variance:+,}",
            " + ".join(dict.fromkeys(cause for cause, *_ in parts)) or one.cause, one.state, why,
        )  # fmt: skip
    out.print(rows)
    left = sum(states.values()) - len(shown)
    if left > 0 and not sku:
        out.print(f"and {left:,} more: --limit, or the report")
    if sku:
        for one in shown:
            for _, _, sentence, evidence in store.parts(run.run_id, one.number):
                out.print(f"{sentence}: {evidence}" if json.loads(evidence) else sentence, markup=False)


def _where(one: KeptVariance) -> str:
    where = one.node or "all"
    if one.kind == "QUARANTINED":
        return f"{where} ({one.reason})"
    return f"{where}, order {one.order_ref}" if one.order_ref else where


@app.command()
def report(
    html: Annotated[Path | None, typer.Option("--html", help="Write the page here.")] = None,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", help="Write all variances of the days here.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=400)] = 14,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Write the report: trend by day, by cause, by node, worst skus, shops. Without options: a table."""
    from ingest.reconcile.report import figures, write_parquet
    from ingest.reconcile.report_page import page

    with _store(config, data_dir) as store:
        found = figures(store.engine, time.time(), days)
        if html is not None:
            html.write_text(page(found), encoding="utf-8")
            print(html)
        if parquet is not None:
            write_parquet(store.engine, time.time(), days, parquet)
            print(parquet)
    if html is None and parquet is None:
        rows = table("day", "runs", "cause", "variances", "units", right=("runs", "variances", "units"))
        for day in found.days:
            for number, (cause, (count, units)) in enumerate(sorted(day.causes.items())):
                first = (day.day, f"{day.runs:,}") if number == 0 else ("", "")
                rows.add_row(*first, cause, f"{count:,}", f"{units:,}")
            if not day.causes:
                rows.add_row(day.day, f"{day.runs:,}", "-", "0", "0")
        console().print(rows if found.days else "no runs in these days")


def _write_report(parts: Parts, findings: object) -> Path:
    from ingest.reconcile.nightly import day_of
    from ingest.reconcile.report import figures, write_parquet
    from ingest.reconcile.report_page import page

    now = time.time()
    folder = parts.folder / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{day_of(now)}.html"
    found = figures(parts.store.engine, now, 30, findings=findings)  # type: ignore[arg-type]  # as the night has it
    written = target.with_suffix(".part")
    written.write_text(page(found), encoding="utf-8")
    written.replace(target)
    write_parquet(parts.store.engine, now, 1, target.with_suffix(".parquet"))
    return target


@contextmanager
def _store(config: Path | None, data_dir: Path | None) -> Iterator[Store]:
    from availability.history.app import history_engine
    from ingest.reconcile.store import Store

    engine = history_engine(settings_of(config, data_dir))
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def _run(store: Store, prefix: str) -> Run:
    found = store.beginning_with(prefix)
    if len(found) != 1:
        said = "no run begins so" if not found else "several runs begin so"
        raise CommandError("RUN_NOT_FOUND", said, EXIT_REFUSED)
    return found[0]


def _plain(run: Run) -> dict[str, object]:
    found = {name: getattr(run, name) for name in run.__slots__}
    for name in ("begun_at", "compared_at", "ended_at", "point_at"):
        found[name] = _time(found[name]) if found[name] is not None else None
    return found


def _part(part: tuple[str, int, str, str]) -> dict[str, object]:
    cause, units, sentence, evidence = part
    return {"cause": cause, "units": units, "sentence": sentence, "evidence": json.loads(evidence)}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
