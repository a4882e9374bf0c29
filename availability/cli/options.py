"""Options that many commands share, and how they become a client."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import usage

if TYPE_CHECKING:
    from availability.client import Client

DEFAULT_TARGET = "127.0.0.1:7443"
TOKEN_VARIABLE = "AVAIL_TOKEN"  # the name of a variable, not a token
ATTEMPTS_MAX = 3
"""A person waits: better to say soon that nobody is there."""

_PANEL = "Connection"
Target = Annotated[
    str, typer.Option("--target", envvar="AVAIL_TARGET", help="Server, host:port.", rich_help_panel=_PANEL)
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help=f"File with the bearer token; else {TOKEN_VARIABLE}.", rich_help_panel=_PANEL
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", help="PEM file of the authority to trust; turns TLS on.", rich_help_panel=_PANEL
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with the names of the API.")]
Channel = Annotated[str, typer.Option("--channel", "-c", help="Channel.")]

CLIENT_CERTIFICATE: ContextVar[tuple[Path | None, Path | None]] = ContextVar(
    "client certificate", default=(None, None)
)
"""Certificate and key to show to the server: options of the root command, the same for every command."""

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def connect(target: str, token_file: Path | None, tls_ca: Path | None) -> Client:
    """Return a client for the shared options."""
    from availability.client import Client, Retry

    cert, key = CLIENT_CERTIFICATE.get()
    token = token_file.read_text().strip() if token_file else os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        return Client(
            target,
            token or None,
            tls_ca,
            tls_cert=cert,
            tls_key=key,
            retry=Retry(attempts_max=ATTEMPTS_MAX),
        )
    except ValueError as error:
        raise usage(str(error)) from None


def parse_duration_s(text: str) -> float:
    """Read `15m`, `90s`, `1h30m`, `7d` or plain seconds."""
    found = _DURATION.fullmatch(text.strip())
    if not text.strip() or found is None:
        raise usage(f"{text!r} is no duration: use 90s, 15m, 1h30m")
    days, hours, minutes, seconds = found.groups()
    return int(days or 0) * 86_400 + int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


def parse_lines(arguments: Sequence[str]) -> dict[str, int]:
    """Read `SKU=QTY` arguments, adding up equal skus. The last `=` counts: a sku may hold others."""
    lines: dict[str, int] = {}
    for argument in arguments:
        sku, equals, quantity = argument.rpartition("=")
        if not equals or not re.fullmatch(r"-?\d+", quantity):
            raise usage(f"{argument!r} is no line: use SKU=QUANTITY")
        lines[sku] = lines.get(sku, 0) + int(quantity)
    return lines
