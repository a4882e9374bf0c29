"""`get`, `explain` and `watch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import usage
from availability.cli.historian import Config, DataDir
from availability.cli.options import DEFAULT_TARGET, AsJson, Channel, Target, TlsCa, TokenFile, connect
from availability.cli.output import console, plain, print_json, table, while_somebody_reads, word
from availability.cli.past import explain_past

if TYPE_CHECKING:
    from rich.text import Text

    from availability.v1 import availability_pb2 as av
    from availability.v1 import common_pb2 as common

STATE_STYLES = {"IN_STOCK": "green", "LOW_STOCK": "yellow", "OVERSELLING": "magenta", "BLOCKED": "red"}


def get(
    skus: Annotated[list[str], typer.Argument(metavar="SKU...", help="Sellable unit codes.")],
    channel: Channel,
    nodes: Annotated[bool, typer.Option("--nodes", help="Show the channel's nodes.")] = False,
    strong: Annotated[
        bool, typer.Option("--strong", help="At or after the ledger's present version.")
    ] = False,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Say how many a channel can sell now."""
    from availability.v1 import availability_pb2 as av

    with connect(target, token_file, tls_ca) as client:
        if nodes or len(skus) == 1:
            answers = [client.get(channel, sku, include_nodes=nodes, strong=strong) for sku in skus]
        else:
            batch = client.batch_get(channel, skus, strong=strong)
            answers = [
                av.Availability(
                    sku=sku, channel=channel, sellable_quantity=units, state=state, as_of=batch.as_of
                )
                for sku, units, state in zip(skus, batch.sellable_quantities, batch.states, strict=True)
            ]
    if as_json:
        print_json(answers)
        return
    from rich.markup import escape

    rows = table("sku", "sellable", "state", right=("sellable",))
    if nodes:
        rows.add_column("from")
    for answer in answers:
        cells = [escape(answer.sku), str(answer.sellable_quantity), _state(answer.state)]
        if nodes:
            cells.append(escape(", ".join(f"{one.node} {one.sellable_quantity}" for one in answer.nodes)))
        rows.add_row(*cells)
    console().print(rows)
    console().print(_as_of(answers[-1].as_of), style="bright_black")


def explain(
    sku: Annotated[str, typer.Argument(help="Sellable unit code.")],
    channel: Channel,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME|VERSION",
            help="As it was then, from the history's database: 1-42, 2026-11-21T18:00Z, now.",
        ),
    ] = None,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Show the whole sum behind an answer, and who is behind each number."""
    from availability.cli.explain import draw

    if at is not None:
        explain_past(sku, channel, at, as_json=as_json, data_dir=data_dir, config=config)
        return

    with connect(target, token_file, tls_ca) as client:
        answer = client.explain(channel, sku)
    if as_json:
        print_json(answer)
    else:
        draw(answer, console())
        console().print(_as_of(answer.as_of), style="bright_black")


def watch(
    channel: Channel,
    skus: Annotated[list[str] | None, typer.Argument(metavar="[SKU...]", help="Sellable unit codes.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every sku of the channel.")] = False,
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="Tell too when a sku runs out, gets low, is back in stock.")
    ] = False,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Print the current values, then each change as it happens, until Ctrl-C."""
    import json

    from availability.v1 import availability_pb2 as av

    if bool(skus) == every:
        raise usage("name skus, or --all")
    seen: dict[str, int] = {}
    screen = console()
    with connect(target, token_file, tls_ca) as client, while_somebody_reads():
        try:
            for message in client.watch(channel, skus or (), thresholds=thresholds):
                for change in message.changes:
                    if as_json:
                        print(json.dumps(plain(change), ensure_ascii=False), flush=True)
                    else:
                        screen.print(_changed(change, seen.get(change.sku), message.as_of.version))
                    seen[change.sku] = change.sellable_quantity
                for event in message.thresholds:
                    if as_json:
                        print(json.dumps(plain(event), ensure_ascii=False), flush=True)
                    else:
                        kind = word(av.ThresholdKind, event.kind)
                        screen.print(
                            f"{event.sku}: {kind} at {event.sellable_quantity}", style="bold", markup=False
                        )
        except KeyboardInterrupt:
            return


def _changed(change: av.Availability, before: int | None, version: str) -> Text:
    from datetime import datetime

    from rich.text import Text

    moved = 0 if before is None else change.sellable_quantity - before
    colour = "green" if moved > 0 else "red"
    return Text.assemble(
        (datetime.now().astimezone().strftime("%H:%M:%S "), "bright_black"),
        (f"{f'{moved:+d}' if moved else '':>6} ", colour),
        (f"{change.sellable_quantity:>7} ", "bold"),
        (f"{change.sku}  ", ""),
        (_word(change.state), STATE_STYLES.get(_word(change.state), "bright_black")),
        (f"  {version}", "bright_black"),
    )


def _word(state: int) -> str:
    from availability.v1 import availability_pb2 as av

    return word(av.AvailabilityState, state)


def _state(state: int) -> str:
    style = STATE_STYLES.get(_word(state))
    return f"[{style}]{_word(state)}[/]" if style else _word(state)


def _as_of(as_of: common.AsOf) -> str:
    stale = ", degraded: older than the server allows" if as_of.degraded else ""
    return f"as of version {as_of.version}, {as_of.age_ms} ms ago{stale}"
