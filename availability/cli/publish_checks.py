"""`availability publish verify`, `resync`, `shadow`, `approve` and `orders`: does a shop show what it should?"""

from __future__ import annotations

import getpass
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_REFUSED, CommandError, usage
from availability.cli.options import (
    DEFAULT_TARGET,
    AsJson,
    Target,
    TlsCa,
    TokenFile,
    connect,
    parse_duration_s,
)
from availability.cli.output import console, counted, print_json, table
from availability.cli.publish import DEFAULT_SHOPS, Config, DataDir, OnlyChannel, Shops, open_desk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from publisher.app import PublisherDesk
    from publisher.settings import ShopSettings
    from publisher.verify import Report

app = typer.Typer()

Limit = Annotated[int, typer.Option("--limit", min=0, help="Differences that are listed, at most.")]
Settle = Annotated[str, typer.Option("--settle", help="What differs is looked at once more after so long.")]
OneShop = Annotated[str, typer.Argument(metavar="CHANNEL", help="The shop.")]


@contextmanager
def _reading(channel: str) -> Iterator[Callable[[int], None]]:
    """Show how far a shop was read: a bar on a terminal, nothing without."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"reading {channel}", total=None)
        yield lambda count: bar.update(task, description=f"reading {channel}: {count:,} listings")


def _surveyed(desk: PublisherDesk, channel: str, settle_s: float) -> Report:
    with _reading(channel) as progress:
        return desk.survey(channel, settle_s=settle_s, progress=progress)


def _readable(desk: PublisherDesk, channel: str) -> list[str]:
    if channel:
        desk.shop(channel)
        return [channel]
    return [name for name, shop in desk.shops.items() if shop.kind == "woocommerce"]


@app.command()
def verify(
    channel: OnlyChannel = "",
    limit: Limit = 50,
    settle: Settle = "3s",
    as_json: AsJson = False,
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Read shops back and tell what differs from the ledger, by cause. Exit code 3 where something does."""
    settle_s = parse_duration_s(settle)
    with open_desk(shops, config, data_dir, connect(target, token_file, tls_ca)) as desk:
        reports = {name: _surveyed(desk, name, settle_s) for name in _readable(desk, channel)}
    if as_json:
        print_json([_plain(name, report, limit) for name, report in reports.items()])
    else:
        for name, report in reports.items():
            _print(name, report, limit)
    if any(report.differences for report in reports.values()):
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def resync(
    channel: OnlyChannel = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be asked for.")] = False,
    settle: Settle = "3s",
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Have the running publisher write what differs once more, and nothing else."""
    settle_s = parse_duration_s(settle)
    with open_desk(shops, config, data_dir, connect(target, token_file, tls_ca)) as desk:
        for name in _readable(desk, channel):
            report = _surveyed(desk, name, settle_s)
            _print(name, report, 0)
            if dry_run:
                print(f"{name}: nothing was asked for (--dry-run)")
            else:
                print(f"{name}: {desk.resync(name, report):,} asked for")


@app.command()
def shadow(
    channel: OneShop,
    every: Annotated[
        str, typer.Option("--every", help="Compare again and again, so long apart; else once.")
    ] = "",
    times: Annotated[int, typer.Option("--times", min=1, help="So often, with --every.")] = 1_000_000,
    limit: Limit = 50,
    settle: Settle = "3s",
    as_json: AsJson = False,
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Tell what publishing would write, and write nothing: before a shop goes live."""
    settle_s, every_s = parse_duration_s(settle), parse_duration_s(every) if every else 0.0
    with open_desk(shops, config, data_dir, connect(target, token_file, tls_ca)) as desk:
        for number in range(times if every else 1):
            if number:
                time.sleep(every_s)
            report = _surveyed(desk, channel, settle_s)
            if as_json:
                print_json(_plain(channel, report, limit) | {"would_write": _writes(report)})
            else:
                _print(channel, report, limit)
                _print_writes(desk.shop(channel), report)


@app.command()
def approve(
    channel: OneShop,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with your name.")],
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Let the zeros go that wait because they are too many at once. It holds for an hour."""
    from publisher.app import now

    if not reason.strip():
        raise usage("give a reason")
    with open_desk(shops, config, data_dir) as desk:
        found = desk.approvals(channel).approve(_who(), reason, now())
    if found is None:
        raise CommandError("NOTHING_WAITS", f"nothing of {channel} waits for approval", EXIT_REFUSED)
    print(f"{channel}: {found.held:,} of {found.on_sale:,} skus may go to 0 now")


@app.command()
def orders(
    channel: OneShop,
    retell: Annotated[
        int,
        typer.Option(
            "--retell", metavar="ORDER", help="Read this order and tell the ledger all of it again."
        ),
    ] = 0,
    as_json: AsJson = False,
    shops: Shops = DEFAULT_SHOPS,
    config: Config = None,
    data_dir: DataDir = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Show how a shop's orders come in, and those of which the ledger refused a word. Exit code 3 for these."""
    if retell:
        with open_desk(shops, config, data_dir, connect(target, token_file, tls_ca)) as desk:
            refused = desk.retell(channel, retell)
        if refused:
            raise CommandError("REFUSED", f"order {retell}: {refused}", EXIT_REFUSED)
        print(f"order {retell} was told")
        return
    with open_desk(shops, config, data_dir) as desk:
        book = desk.orders(channel)
        figures, waiting = book.figures(), book.refused(1_000)
    if as_json:
        print_json(
            {**figures, "refused_orders": [{"order": one, "reason": why} for one, why in waiting.items()]}
        )
    else:
        words = {name: name.removesuffix("s") if count == 1 else name for name, count in figures.items()}
        print(", ".join(f"{count:,} {words[name]}" for name, count in figures.items()))
        rows = table("order", "what the ledger refused")
        for order_id, why in waiting.items():
            rows.add_row(str(order_id), why)
        if waiting:
            console().print(rows)
    if waiting:
        raise typer.Exit(EXIT_REFUSED)


def _who() -> str:
    """Return the name of whoever asks; a container's user may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


def _print(name: str, report: Report, limit: int) -> None:
    if not report.differences:
        print(f"{name}: {counted(report.compared, 'sku')} compared, all as they should be")
        return
    causes = ", ".join(f"{count:,} {cause.value}" for cause, count in report.by_cause().items())
    print(f"{name}: {counted(report.compared, 'sku')} compared, {len(report.differences):,} differ: {causes}")
    if not limit:
        return
    rows = table(
        "sku",
        "cause",
        "should show",
        "shows",
        "acknowledged",
        "",
        right=("should show", "shows", "acknowledged"),
    )
    for one in report.differences[:limit]:
        rows.add_row(
            one.sku, one.cause.value, f"{one.wanted:,}", _number(one.shown), _number(one.acked), one.detail
        )
    console().print(rows)
    if len(report.differences) > limit:
        print(f"… and {len(report.differences) - limit:,} more")


def _print_writes(settings: ShopSettings, report: Report) -> None:
    writes = report.writes()
    print(
        f"publishing would write {writes.all:,}: {writes.to_zero:,} to 0, {writes.from_zero:,} back into stock, "
        f"{writes.up:,} up, {writes.down:,} down"
    )
    limit = max(settings.zero_guard_min, report.on_sale * settings.zero_guard_percent // 100)
    if writes.to_zero > limit:
        print(
            f"the {writes.to_zero:,} zeros would wait for `availability publish approve`: at most {limit:,} go at once"
        )


def _writes(report: Report) -> dict[str, int]:
    writes = report.writes()
    return {name: getattr(writes, name) for name in writes.__slots__}


def _plain(name: str, report: Report, limit: int) -> dict[str, object]:
    return {
        "channel": name,
        "compared": report.compared,
        "differ": len(report.differences),
        "on_sale": report.on_sale,
        "unknown": report.unknown,
        "by_cause": {cause.value: count for cause, count in report.by_cause().items()},
        "differences": [
            {
                "sku": one.sku,
                "cause": one.cause.value,
                "wanted": one.wanted,
                "shown": one.shown,
                "acknowledged": one.acked,
                "detail": one.detail,
            }
            for one in report.differences[: limit or None]
        ],
    }


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
