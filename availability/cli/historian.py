"""`availability historian`: the process that writes the history, and what an operator asks of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.observe import MetricsListen
from availability.cli.output import console, print_json, table

if TYPE_CHECKING:
    from availability.config import Settings

app = typer.Typer(no_args_is_help=True, help="The history: the log of the ledger, kept in a database.")

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="AVAIL_CONFIG", help="TOML file; the environment and options win over it."
    ),
]
Redis = Annotated[str | None, typer.Option("--redis", metavar="URL", help="The Redis; else the settings'.")]
ReadyFile = Annotated[
    Path | None,
    typer.Option("--ready-file", help="A server's ready file: its Redis is followed (of --embedded, say)."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where history.sqlite is, unless a database is set.")
]


def settings_of(
    config: Path | None, data_dir: Path | None, redis: str | None = None, ready_file: Path | None = None
) -> Settings:
    """Load settings; what an option says wins."""
    from availability.config import load_settings
    from availability.history.app import with_redis

    settings = load_settings(config)
    if data_dir is not None:
        settings = settings.model_copy(update={"data_dir": data_dir})
    if redis is None and ready_file is not None:
        redis = json.loads(ready_file.read_text())["redis"]
    return with_redis(settings, redis)


@app.command("run")
def run(
    redis: Redis = None,
    ready_file: ReadyFile = None,
    data_dir: DataDir = None,
    metrics: MetricsListen = "",
    once: Annotated[bool, typer.Option("--once", help="End when everything is written.")] = False,
    config: Config = None,
) -> int:
    """Write the log into the history until SIGTERM or Ctrl-C."""
    from availability.history import app as history_app

    return history_app.run(
        settings_of(config, data_dir, redis, ready_file), metrics_listen=metrics, once=once
    )


@app.command("status")
def status(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: Config = None,
) -> None:
    """Say how far the history reaches, day by day, and what is missing in it."""
    from availability.history.app import history_engine
    from availability.history.database import SQLITE_FILE
    from availability.history.overview import overview

    settings = settings_of(config, data_dir)
    engine = history_engine(settings)
    try:
        found = overview(engine)
    finally:
        engine.dispose()
    if as_json:
        print_json(found.as_json())
        return
    screen = console()
    if found.place is None:
        where = "the database of history.database_url"
        if not settings.history.database_url.get_secret_value():
            where = str(settings.data_dir / SQLITE_FILE)
        screen.print(
            f"nothing is written yet in {where}: start `availability historian run`",
            markup=False,
            soft_wrap=True,
        )
        return
    screen.print(f"written up to [bold]{found.place}[/] ({found.clock})")
    rows = table("day", "records", "first", "last", "state", "seal", right=("records",))
    for day in found.days:
        rows.add_row(day.day, f"{day.records:,}", day.first, day.last, day.state, day.seal)
    screen.print(rows)
    for remark in found.remarks:
        screen.print(remark)


@app.command("retain")
def retain(
    keep_days: Annotated[
        int | None, typer.Option("--keep-days", min=1, help="Days that stay; else the settings'.")
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Let old days leave the database: archived as Parquet, or dropped, as the settings say. For a nightly job."""
    from availability.history.app import archive_dir, history_engine
    from availability.history.retention import Retention
    from availability.history.seal import Sealer

    settings = settings_of(config, data_dir)
    limits = settings.history
    engine = history_engine(settings)
    try:
        done = Retention(
            engine,
            Sealer.from_file(limits.seal_key_file),
            keep_days=limits.keep_days if keep_days is None else keep_days,
            archive_dir=archive_dir(settings) if limits.archive else None,
        ).run_by_clock()
    finally:
        engine.dispose()
    screen = console()
    if not done.days:
        screen.print("no day is old enough to leave")
        return
    what = "archived" if done.archived else "dropped"
    screen.print(
        f"{what}: {', '.join(done.days)}; {done.positions:,} positions stand as of then", markup=False
    )


@app.command("forget")
def forget(redis: Redis = None, ready_file: ReadyFile = None, config: Config = None) -> None:
    """Give the log free: no historian will come back. What it has not written then may be trimmed."""
    from availability.history.app import ledger_side

    with ledger_side(settings_of(config, None, redis, ready_file)) as side:
        side.forget()
    console().print("the ledger keeps no records for a historian any more")
