"""`exceptions list`, `exceptions ack` and `exceptions watch`: what a person must see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile, connect
from availability.cli.output import console, plain, print_json, table, while_somebody_reads, word

if TYPE_CHECKING:
    from availability.v1 import exception_pb2 as exc

app = typer.Typer(
    help="What is wrong, who has it in hand.", no_args_is_help=True, pretty_exceptions_enable=False
)

SEVERITY_STYLES = {"CRITICAL": "bold red", "WARNING": "yellow", "INFO": "bright_black"}


class Category(StrEnum):
    """Categories as they are typed."""

    OVERSOLD = "oversold"
    NEGATIVE_ON_HAND = "negative-on-hand"
    ORDER_UNCONFIRMED = "order-unconfirmed"
    NODE_OFFLINE_WITH_HOLDS = "node-offline-with-holds"
    FEED_STALE = "feed-stale"
    PARKED_STREAM = "parked-stream"
    DEAD_LETTER = "dead-letter"
    VARIANCE = "variance"
    PUBLISH_FAILED = "publish-failed"
    SHORT_PICK = "short-pick"
    DAMAGE = "damage"
    UNKNOWN_SKU = "unknown-sku"
    FEED_FAILED = "feed-failed"


class Life(StrEnum):
    """States as they are typed."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


Categories = Annotated[
    list[Category] | None, typer.Option("--category", help="Only this category; may be given again.")
]


@app.command("list")
def list_all(
    categories: Categories = None,
    state: Annotated[
        Life | None, typer.Option("--state", help="Only this state; else all that is not over.")
    ] = None,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """List what is wrong, the most severe first, then the oldest."""
    from availability.v1 import exception_pb2 as exc

    wanted = exc.ExceptionState.Value(f"EXCEPTION_STATE_{state.name if state else 'UNSPECIFIED'}")
    with connect(target, token_file, tls_ca) as client:
        found = client.list_exceptions(categories=_numbers(categories), state=wanted)
    if as_json:
        print_json(found)
        return
    from rich.markup import escape

    rows = table("id", "severity", "age", "state", "by", "owner", "at risk", "what", right=("age", "at risk"))
    for one in found:
        severity = word(exc.ExceptionSeverity, one.severity)
        rows.add_row(
            one.exception_id,
            f"[{SEVERITY_STYLES.get(severity, '')}]{severity}[/]",
            _age(one.age_ms),
            word(exc.ExceptionState, one.state),
            escape(one.acknowledged_by),
            one.owner,
            str(len(one.at_risk)) if one.at_risk else "",
            escape(one.message + (f" ({one.note})" if one.note else "")),
        )
    console().print(rows)


@app.command("ack")
def acknowledge(
    exception_id: Annotated[str, typer.Argument(metavar="ID", help="Id, as `exceptions list` shows it.")],
    note: Annotated[str, typer.Option("--note", help="What is being done.")] = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Take an exception in hand."""
    with connect(target, token_file, tls_ca) as client:
        answer = client.acknowledge_exception(exception_id, note)
    if as_json:
        print_json(answer)
    else:
        print(f"{'DONE BEFORE' if answer.replayed else 'DONE'}: {answer.exception.message}")


@app.command("report")
def report(
    source: Annotated[str, typer.Option("--source", "-s", help="For which source it is reported.")],
    category: Annotated[
        Category,
        typer.Option("--category", help="dead-letter, variance, publish-failed, unknown-sku or feed-failed."),
    ],
    subject: Annotated[
        list[str],
        typer.Option("--subject", help="What it is about; may be given again. Names the exception."),
    ],
    message: Annotated[str, typer.Option("--message", help="What is wrong, in a sentence.")] = "",
    over: Annotated[bool, typer.Option("--over", help="It is over.")] = False,
    sku: Annotated[str, typer.Option("--sku", help="Sellable unit code, where it is about one.")] = "",
    node: Annotated[str, typer.Option("--node", help="Node, where it is about one.")] = "",
    quantity: Annotated[int, typer.Option("--quantity", help="Units in question.")] = 0,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Report what a program of your own sees is wrong, or is over. To say it again is the same exception."""
    from availability.v1 import exception_pb2 as exc

    one = exc.ReportedException(
        category=_numbers([category])[0],
        subject=subject,
        message=message,
        sku=sku,
        node=node,
        quantity=quantity,
    )
    with connect(target, token_file, tls_ca) as client:
        answer = client.report_exceptions(source, () if over else (one,), (one,) if over else ())
    if as_json:
        print_json(answer)
    elif over:
        print("OVER" if answer.resolved_count else "NOT KNOWN")
    else:
        said = "OPENED" if answer.opened_count else "NO ROOM" if answer.left_out_count else "KNOWN"
        print(f"{said}: {answer.exception_ids[0]}")


@app.command("watch")
def watch(
    categories: Categories = None,
    resume_version: Annotated[
        str, typer.Option("--resume", metavar="VERSION", help="Go on after this version.")
    ] = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Print what is open, then each change as it happens, until Ctrl-C."""
    from availability.v1 import exception_pb2 as exc

    screen = console()
    with connect(target, token_file, tls_ca) as client, while_somebody_reads():
        try:
            stream = client.watch_exceptions(categories=_numbers(categories), resume_version=resume_version)
            for message in stream:
                for one in message.exceptions:
                    if as_json:
                        print(json.dumps(plain(one), ensure_ascii=False), flush=True)
                    else:
                        screen.print(_line(exc, one), soft_wrap=True)
        except KeyboardInterrupt:
            return


def _line(exc_module: Any, one: exc.Exception) -> str:  # Any: the generated module, which is loaded late
    from rich.markup import escape

    severity = word(exc_module.ExceptionSeverity, one.severity)
    state = word(exc_module.ExceptionState, one.state)
    by = f" by {one.acknowledged_by}" if one.acknowledged_by else ""
    style = SEVERITY_STYLES.get(severity, "")
    return (
        f"[{style}]{severity:8}[/] {state}{escape(by)}  {escape(one.message)}  [bright_black]{one.version}[/]"
    )


def _numbers(categories: Sequence[Category] | None) -> list[exc.ExceptionCategory.ValueType]:
    from availability.v1 import exception_pb2 as exc

    return [exc.ExceptionCategory.Value(f"EXCEPTION_CATEGORY_{one.name}") for one in categories or ()]


def _age(ms: int) -> str:
    seconds = ms // 1000
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"
