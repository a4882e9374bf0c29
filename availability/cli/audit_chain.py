"""`availability audit verify-chain`: is the history as it was written? Reads the database, asks no server."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from availability.cli.errors import EXIT_BROKEN, CommandError, usage
from availability.cli.historian import Config, DataDir, settings_of
from availability.cli.options import AsJson
from availability.cli.output import console, counted, print_json, table


def verify_chain(
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="DAY", help="Walk the records of days from 2026-11-21 on only."),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> int:
    """Prove chain, columns, counts and seals of the history; name every row that was altered."""
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from availability.history.app import archive_dir, history_engine
    from availability.history.partitions import day_number
    from availability.history.prove import prove
    from availability.history.seal import Sealer

    try:
        first_day = day_number(since) if since else 0
    except ValueError:
        raise usage(f"{since!r} is no day: use 2026-11-21") from None
    settings = settings_of(config, data_dir)
    sealer = Sealer.from_file(settings.history.seal_key_file)
    engine = history_engine(settings)
    screen = console()
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} records"), TimeElapsedColumn())
    hidden = as_json or not screen.is_terminal
    try:
        with Progress(*columns, console=screen, transient=True, disable=hidden) as bar:
            task = bar.add_task("records", total=None)
            proof = prove(
                engine,
                sealer,
                archive_dir=archive_dir(settings),
                first_day=first_day,
                progress=lambda records: bar.advance(task, records),
            )
    finally:
        engine.dispose()
    if not (proof.records or proof.days or proof.count or first_day):
        raise CommandError(
            "NOT_IN_HISTORY", "nothing is written yet, so nothing is proven: is this its database?"
        )
    if as_json:
        print_json(asdict(proof))
    else:
        sealed = "sealed with the key" if proof.keyed else "sealed without a key: against accidents only"
        screen.print(
            f"{counted(proof.records, 'record')} of {counted(proof.days, 'day')}, {proof.sealed_days} of them {sealed}",
            markup=False,
        )
        if proof.findings:
            rows = table("table", "where", "what")
            for one in proof.findings:
                rows.add_row(one.table, escape(one.where), escape(one.what))
            screen.print(rows)
        screen.print(
            "nothing was altered"
            if not proof.count
            else f"{proof.count} findings: this is not what was written"
        )
    return EXIT_BROKEN if proof.count else 0
