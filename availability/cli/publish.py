"""`availability publish …`: numbers into storefronts, how they fare, and what a shop would not take."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_REFUSED, CommandError, usage
from availability.cli.observe import LogFormat, LogLevel, MetricsListen, logged
from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile, connect
from availability.cli.output import console, print_json, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from availability.client import Client
    from availability.telemetry.spans import Spans
    from publisher.app import PublisherDesk
    from publisher.letters import KeptLetter

app = typer.Typer(help="Storefronts: publish to them, and see how they fare.", no_args_is_help=True)
letters_app = typer.Typer(
    help="Numbers that a shop would not take, until somebody replays or discards them.", no_args_is_help=True
)
app.add_typer(letters_app, name="letters")

Shops = Annotated[
    Path, typer.Option("--shops", envvar="AVAIL_PUBLISH_SHOPS", help="TOML file with the storefronts.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="AVAIL_CONFIG", help="TOML file that names the history's database."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where history.sqlite is, unless a database is set.")
]
OnlyChannel = Annotated[str, typer.Option("--channel", "-c", help="Only this shop.")]
OnlyCategory = Annotated[str, typer.Option("--category", help="Only of this category.")]
AllOf = Annotated[bool, typer.Option("--all", help="All that the filters leave.")]
Letter = Annotated[str, typer.Argument(metavar="[LETTER]", help="A letter's id, or its beginning.")]
DEFAULT_SHOPS = Path("shops.toml")
LETTERS_MAX = 100_000
SHOWN_MAX = 200


@contextmanager
def open_desk(
    shops: Path,
    config: Path | None,
    data_dir: Path | None,
    client: Client | None = None,
    *,
    log_format: str = "",
    log_level: str = "WARNING",
) -> Iterator[PublisherDesk]:
    """Open a desk, with logs of this level on stderr meanwhile: stdout is for what a command answers."""
    from availability.config import load_settings
    from publisher.app import desk

    settings = load_settings(config)
    database = settings.history.database_url.get_secret_value()
    with (
        logged(log_format, log_level),
        desk(shops, database, data_dir or settings.data_dir, client) as opened,
    ):
        yield opened


@contextmanager
def _spans(config: Path | None) -> Iterator[Spans | None]:
    """Make spans where tracing.otlp_endpoint says so."""
    from availability.app import spans_of
    from availability.config import load_settings

    spans = spans_of(load_settings(config), "availability-publisher")
    try:
        yield spans
    finally:
        if spans is not None:
            spans.shutdown()


@app.command()
def run(
    shops: Shops = DEFAULT_SHOPS,
    channel: Annotated[
        list[str] | None, typer.Option("--channel", "-c", help="Only these shops; else all of the file.")
    ] = None,
    metrics: MetricsListen = "",
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Take the shops' webhooks in there.")
    ] = "",
    log_format: LogFormat = "",
    log_level: LogLevel = "INFO",
    config: Config = None,
    data_dir: DataDir = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Publish until stopped. Of several processes on one shop one works, and the others stand by."""

    def stopped(stop: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop())

    with (
        open_desk(
            shops,
            config,
            data_dir,
            connect(target, token_file, tls_ca),
            log_format=log_format,
            log_level=log_level,
        ) as desk,
        _spans(config) as spans,
    ):
        desk.run(
            channels=channel or [],
            stopped=stopped,
            metrics_listen=metrics,
            listen=listen,
            spans=spans,
            told=lambda text: print(text, file=sys.stderr, flush=True),
        )


@app.command()
def status(
    as_json: AsJson = False,
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show how each shop fares. Exit code 3 where one is stopped, or nobody publishes to it."""
    with open_desk(shops, config, data_dir) as desk:
        known = {one.channel: one for one in desk.statuses()}
        channels = list(dict.fromkeys([*desk.shops, *known]))
        modes = {channel: shop.mode.value for channel, shop in desk.shops.items()}
    if as_json:
        print_json(
            [
                {"channel": channel, "mode": modes.get(channel)}
                | (
                    {name: getattr(known[channel], name) for name in known[channel].__slots__}
                    if channel in known
                    else {"publishing": False, "state": "NEVER"}
                )
                for channel in channels
            ]
        )
    else:
        rows = table(
            "shop", "mode", "state", "skus", "waiting", "lag", "letters", "listings", "acknowledged", "heard",
            right=("skus", "waiting", "lag", "letters", "listings", "acknowledged", "heard"),
        )  # fmt: skip
        for channel in channels:
            one = known.get(channel)
            mode = modes.get(channel, "not in the file")
            if one is None:
                rows.add_row(channel, mode, "NEVER", "", "", "", "", "", "", "")
                continue
            state = one.state if one.publishing else "NOBODY PUBLISHES"
            if one.held:
                state = f"{state}, {one.held:,} zeros wait for `publish approve`"
            rows.add_row(
                channel,
                mode,
                f"{state}: {one.reason}" if one.reason else state,
                f"{one.skus:,}",
                f"{one.backlog:,}",
                _lasting(one.lag_s) if one.backlog else "",
                f"{one.letters:,}",
                f"{one.listings:,}",
                _lasting(one.last_acked_s),
                _lasting(one.heard_s),
            )
        console().print(rows)
    if any(
        channel not in known or not known[channel].publishing or known[channel].state == "STOPPED"
        for channel in modes
    ):
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def catalogue(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="The shop.")],
    extra: Annotated[
        bool, typer.Option("--extra", help="The shop's skus that the ledger does not sell there, instead.")
    ] = False,
    as_json: AsJson = False,
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """List the ledger's skus that have no place in the shop, and why. Exit code 3 where there are some."""
    with open_desk(shops, config, data_dir) as desk:
        desk.shop(channel)
        if extra:
            found = desk.not_in_ledger(channel)
            if as_json:
                print_json(found)
            else:
                console().print("\n".join(found) or "none")
            return
        problems = desk.problems(channel)
    if as_json:
        print_json(
            [{"sku": one.sku, "trouble": one.trouble.value, "message": one.message} for one in problems]
        )
    else:
        rows = table("sku", "trouble", "what is wrong")
        for one in problems[:SHOWN_MAX]:
            rows.add_row(one.sku, one.trouble.value, one.message)
        console().print(rows if problems else "every sku has its place")
        if len(problems) > SHOWN_MAX:
            console().print(f"… and {len(problems) - SHOWN_MAX:,} more; --json lists all")
    if problems:
        raise typer.Exit(EXIT_REFUSED)


# --- Dead letters -----------------------------------------------------------------------------------------


@letters_app.command("list")
def letters_list(
    channel: OnlyChannel = "",
    category: OnlyCategory = "",
    state: Annotated[
        str, typer.Option("--state", help="WAITING, REPLAYED, DISCARDED or RESOLVED.")
    ] = "WAITING",
    limit: Annotated[int, typer.Option("--limit", min=1, max=LETTERS_MAX)] = 100,
    as_json: AsJson = False,
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """List dead letters, the oldest first."""
    with open_desk(shops, config, data_dir) as desk:
        found = desk.letters.find(channel=channel, category=category, state=state, limit=limit)
    if as_json:
        print_json([_plain(letter) for letter in found])
        return
    rows = table("letter", "shop", "sku", "category", "reason", "what is wrong", "quantity", "seen",
                 right=("quantity", "seen"))  # fmt: skip
    for one in found:
        rows.add_row(
            one.letter_id[:12],
            one.channel,
            one.sku,
            one.category,
            one.reason,
            one.message,
            f"{one.quantity:,}",
            f"{one.count}×",
        )
    console().print(rows if found else "no dead letters")


@letters_app.command("show")
def letters_show(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="A letter's id, or its beginning.")],
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show one letter."""
    with open_desk(shops, config, data_dir) as desk:
        print_json(_plain(_one(desk, letter)))


@letters_app.command("replay")
def letters_replay(
    letter: Letter = "",
    all_of: AllOf = False,
    channel: OnlyChannel = "",
    category: OnlyCategory = "",
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Have the running publisher write these skus again, with the numbers that are current then."""
    from publisher.app import now

    with open_desk(shops, config, data_dir) as desk:
        chosen = _chosen(desk, letter, all_of, channel, category)
        print(f"{desk.letters.replay(chosen, now()):,} asked for")


@letters_app.command("discard")
def letters_discard(
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept.")],
    letter: Letter = "",
    all_of: AllOf = False,
    channel: OnlyChannel = "",
    category: OnlyCategory = "",
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Give letters up; a sku is tried again when its number changes."""
    from publisher.app import now

    with open_desk(shops, config, data_dir) as desk:
        chosen = _chosen(desk, letter, all_of, channel, category)
        print(f"{desk.letters.discard(chosen, reason, now()):,} discarded")


def _chosen(desk: PublisherDesk, letter: str, all_of: bool, channel: str, category: str) -> list[KeptLetter]:
    if bool(letter) == all_of:
        raise usage("name one letter, or say --all (with filters)")
    if letter:
        return [_one(desk, letter)]
    return desk.letters.find(channel=channel, category=category, limit=LETTERS_MAX)


def _one(desk: PublisherDesk, letter: str) -> KeptLetter:
    found = desk.letters.find(letter_id=letter, state="", limit=2)
    if len(found) != 1:
        said = "none begins so" if not found else "several begin so"
        raise CommandError("LETTER_NOT_FOUND", said, EXIT_REFUSED)
    return found[0]


def _plain(letter: KeptLetter) -> dict[str, object]:
    found: dict[str, object] = {name: getattr(letter, name) for name in letter.__slots__}
    for name in ("first_seen_at", "last_seen_at", "closed_at"):
        at = getattr(letter, name)
        found[name] = None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    return found


def _lasting(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7_200 else f"{seconds / 3600:,.0f} h"
