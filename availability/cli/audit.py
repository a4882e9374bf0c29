"""`audit`: does the ledger add up, what was forgotten; `audit release` frees it."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_BROKEN, EXIT_FORGOTTEN, EXIT_REFUSED, usage
from availability.cli.options import (
    DEFAULT_TARGET,
    AsJson,
    Target,
    TlsCa,
    TokenFile,
    connect,
    parse_duration_s,
)
from availability.cli.output import console, counted, plain, print_json, table, word

if TYPE_CHECKING:
    from availability.v1 import stock_pb2 as stk

app = typer.Typer(
    name="audit",
    help="Look for what does not add up in the ledger, and for what was forgotten.",
    epilog="Exit codes: 0 nothing found, 5 something was forgotten, 6 sums do not add up (a bug: tell us).",
    invoke_without_command=True,
)


@app.callback()
def run(
    ctx: typer.Context,
    unconfirmed: Annotated[
        str, typer.Option("--unconfirmed", help="Orders that nobody confirmed or shipped for so long.")
    ] = "1h",
    stuck: Annotated[
        str, typer.Option("--stuck", help="Orders with open units of which nothing was heard for so long.")
    ] = "7d",
    silent: Annotated[str, typer.Option("--silent", help="Sources silent for so long.")] = "1d",
    overdue: Annotated[str, typer.Option("--overdue", help="Holds past their deadline for so long.")] = "5s",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Look at the whole ledger; scope ingest."""
    if ctx.invoked_subcommand is not None:
        return
    from availability.audit import AuditLimits, audit

    limits = AuditLimits(
        unconfirmed_ms=_ms(unconfirmed), stuck_ms=_ms(stuck), silent_ms=_ms(silent), overdue_ms=_ms(overdue)
    )
    with connect(target, token_file, tls_ca) as client:
        found = audit(client, limits)
    if as_json:
        print_json({"broken": plain(found.broken), "forgotten": plain(found.forgotten)})
    else:
        _show([*found.broken, *found.forgotten])
    if found.broken:
        raise typer.Exit(EXIT_BROKEN)
    if found.forgotten:
        raise typer.Exit(EXIT_FORGOTTEN)


@app.command("release")
def release(
    reason: Annotated[str, typer.Option("--reason", help="Why; it goes into the log.")],
    reservation: Annotated[str, typer.Option("--reservation", metavar="ID", help="End this hold.")] = "",
    order: Annotated[
        tuple[str, str],
        typer.Option("--order", metavar="SOURCE REF", help="Cancel what this order wants still."),
    ] = ("", ""),
    author: Annotated[str, typer.Option("--author", help="Who decides; else the user of this machine.")] = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Free what a forgotten hold or order keeps, by an ordinary call with a reason."""
    from availability.audit import release_hold, release_order

    if bool(reservation) == bool(order[1]):
        raise usage("give either --reservation ID or --order SOURCE REF")
    with connect(target, token_file, tls_ca) as client:
        if reservation:
            freed = release_hold(client, reservation, reason)
        else:
            event_id = f"release {client.new_request_id()}"
            freed = release_order(
                client, *order, reason, author=author or getpass.getuser(), event_id=event_id
            )
    if as_json:
        print_json({"what": freed.what, "units": freed.units, "version": freed.version})
    else:
        done = "FREED" if freed.units else "NOTHING TO FREE"
        print(f"{done}: {freed.what}, {counted(freed.units, 'unit')}")
    if not freed.units:
        raise typer.Exit(EXIT_REFUSED)


def _ms(text: str) -> int:
    value = round(parse_duration_s(text) * 1000)
    if value <= 0:
        raise usage(f"{text!r} is no time to wait: use 5m, 2h, 7d")
    return value


def _show(findings: list[stk.AuditFinding]) -> None:
    from rich.markup import escape

    from availability.v1 import stock_pb2 as stk

    if not findings:
        print("OK: everything adds up, nothing was forgotten")
        return
    rows = table("what", "units", "should be", "since", "in words", right=("units", "should be", "since"))
    for one in findings:
        rows.add_row(
            word(stk.AuditKind, one.kind),
            str(one.quantity),
            str(one.expected_quantity) if one.sku else "",
            f"{one.age_ms / 3_600_000:.1f} h" if one.age_ms else "",
            escape(one.message),
        )
    console().print(rows)
