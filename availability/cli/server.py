"""`serve`, `demo` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import CommandError
from availability.cli.output import console, print_json, table

if TYPE_CHECKING:
    from availability.config import Settings

SEVERITY_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="AVAIL_CONFIG", help="TOML file; the environment and options win over it."
    ),
]


def serve(
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start a Redis of our own; for trying out and small shops.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Address to serve at; port 0: any free one."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the embedded ledger lives.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option("--ready-file", help="Gets JSON (grpc, redis, pid) once it serves.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let everybody do everything; loopback addresses only.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=64, help="Processes that share the port; one memory each."),
    ] = None,
    config: Config = None,
) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from availability import app
    from availability.workers import app as workers_app

    settings = _settings(config, listen=listen, data_dir=data_dir, no_auth=no_auth, workers=workers)
    run_server = app.serve if settings.workers == 1 else workers_app.serve
    return run_server(settings, embedded=embedded, ready_file=ready_file)


def demo(
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=1.0, max=3600.0, help="Length of the show; the audit follows it."),
    ] = 22.0,
    seed: Annotated[int, typer.Option("--seed", help="Everybody's luck.")] = 7,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server up afterwards, and print commands to try.")
    ] = False,
) -> int:
    """Play a small company against a real server, then recompute every balance and compare."""
    from availability.demo.run import run as run_demo

    return run_demo(seconds=seconds, seed=seed, keep=keep)


def doctor(
    redis: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="The Redis; else the settings'.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="demo, single-strict, ha, ha-confirmed; else the settings'."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="First part of our keys; else the settings'.")
    ] = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check the settings, version and clock of a Redis, and say what to change."""
    from availability.ledger.preflight import inspect

    settings = _settings(config)
    findings = inspect(
        redis or settings.redis.url.get_secret_value(),
        profile or settings.redis.profile,
        prefix or settings.redis.prefix,
    )
    if as_json:
        print_json(
            [
                {"severity": one.severity, "what": one.what, "found": one.found, "advice": one.advice}
                for one in findings
            ]
        )
    else:
        from rich.markup import escape

        rows = table("", "check", "found", "what to change")
        for one in findings:
            style = SEVERITY_STYLES.get(one.severity, "")
            rows.add_row(
                f"[{style}]{one.severity}[/]", escape(one.what), escape(one.found), escape(one.advice)
            )
        console().print(rows)
    errors = sum(one.severity == "error" for one in findings)
    if errors:
        raise CommandError("NOT_FIT", f"{errors} of {len(findings)} checks failed; a server would not start")
    return 0


def _settings(
    config: Path | None,
    *,
    listen: str | None = None,
    data_dir: Path | None = None,
    no_auth: bool = False,
    workers: int | None = None,
) -> Settings:
    """Load settings; what an option says wins over the environment and the file."""
    from availability.config import AuthSettings, load_settings

    settings = load_settings(config)
    changes: dict[str, object] = {}
    if listen is not None:
        changes["listen"] = listen
    if data_dir is not None:
        changes["data_dir"] = data_dir
    if workers is not None:
        changes["workers"] = workers
    if no_auth:
        changes["auth"] = AuthSettings(no_auth=True)
    return settings.model_copy(update=changes)
