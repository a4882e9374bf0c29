"""`token …`: edit the file of hashed tokens that servers read. A token is shown once, when it is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_REFUSED, CommandError, usage
from availability.cli.options import parse_duration_s
from availability.cli.output import console, print_json, table

if TYPE_CHECKING:
    from availability.service.auth import Token

app = typer.Typer(
    help="Make, list and revoke bearer tokens. Servers read the file again by themselves.",
    no_args_is_help=True,
)

TokensFile = Annotated[
    Path,
    typer.Option(
        "--file", envvar="AVAIL_AUTH__TOKENS_FILE", help="The servers' token file (auth.tokens_file)."
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Who holds it, for instance checkout-eu.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("create")
def create(
    id: Id,
    file: TokensFile,
    scope: Annotated[list[str], typer.Option("--scope", help="read, reserve, ingest, admin; repeatable.")],
    expires_in: Annotated[
        str, typer.Option("--expires-in", metavar="DURATION", help="720h and so on; never where none.")
    ] = "",
    channel: Annotated[
        list[str] | None, typer.Option("--channel", help="It may speak for these channels only; repeatable.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="… for these sources only; repeatable.")
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option("--node", help="… for these nodes only; repeatable.")
    ] = None,
    calls_per_s: Annotated[
        float | None,
        typer.Option("--calls-per-s", help="Its own limit of calls; 0: none. Else limits.token_calls_per_s."),
    ] = None,
    burst: Annotated[int | None, typer.Option("--burst", help="As many calls at once.")] = None,
    certificate: Annotated[
        str,
        typer.Option("--certificate", metavar="CN", help="Client certificate that is as good as the token."),
    ] = "",
) -> None:
    """Make a token and print it: the only time that it is seen."""
    from datetime import UTC, datetime, timedelta

    from availability.service.auth import Scope, add_token
    from availability.service.bounds import bounds_of

    words = [word for one in scope for word in one.split(",") if word]
    unknown = [word for word in words if word not in set(Scope)]
    if unknown:
        raise usage(f"no scope {unknown[0]!r}: use {', '.join(Scope)}")
    ends = datetime.now(UTC) + timedelta(seconds=parse_duration_s(expires_in)) if expires_in else None
    try:
        secret = add_token(
            file,
            id=id,
            scopes={Scope(word) for word in words},
            not_after=ends,
            bounds=bounds_of(channel or None, source or None, node or None),
            calls_per_s=calls_per_s,
            burst=burst,
            certificate=certificate,
        )
    except ValueError as error:
        raise usage(str(error)) from None
    print(secret, flush=True)
    if sys.stderr.isatty():
        print("Keep it: only its hash is stored, and it is not shown again.", file=sys.stderr)


@app.command("list")
def list_all(file: TokensFile, as_json: AsJson = False) -> None:
    """List tokens: whose, what they may do, until when. Never the tokens."""
    from availability.service.auth import list_tokens

    if not file.exists():
        raise usage(f"{file}: there is no such file; `availability token create` makes one")
    tokens = list_tokens(file)
    rows = [
        {
            "id": token.id,
            "fingerprint": token.fingerprint,
            "scopes": sorted(token.scopes),
            "not_after": token.not_after.isoformat() if token.not_after else None,
            **_bounds(token),
            "calls_per_s": token.calls_per_s,
            "burst": token.burst,
            "certificate": token.certificate or None,
        }
        for token in tokens
    ]
    if as_json:
        print_json(rows)
        return
    from rich.markup import escape

    shown = table("id", "fingerprint", "scopes", "bound to", "until")
    for token in tokens:
        shown.add_row(
            escape(token.id),
            token.fingerprint,
            ", ".join(sorted(token.scopes)),
            escape(
                "; ".join(f"{what} {', '.join(names)}" for what, names in _bounds(token).items() if names)
            ),
            token.not_after.isoformat(timespec="minutes") if token.not_after else "it is revoked",
        )
    console().print(shown)


def _bounds(token: Token) -> dict[str, list[str] | None]:
    bounds = token.bounds
    return {
        what: None if bounds is None or names is None else sorted(names)
        for what in ("channels", "sources", "nodes")
        for names in (getattr(bounds, what, None),)
    }


@app.command("revoke")
def revoke(
    id: Id,
    file: TokensFile,
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="One of several tokens of this id; all where none.")
    ] = "",
) -> None:
    """Take tokens out of the file; servers refuse them within a second."""
    from availability.service.auth import revoke_token

    try:
        count = revoke_token(file, id, fingerprint or None)
    except ValueError as error:
        raise usage(str(error)) from None
    if not count:
        which = f"{id} with fingerprint {fingerprint}" if fingerprint else id
        raise CommandError("TOKEN_NOT_FOUND", f"no token of {which} in {file}", EXIT_REFUSED)
    print(f"REVOKED: {count} token{'s' if count > 1 else ''} of {id}")
