"""`order`: what the ledger knows of an order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile, connect
from availability.cli.output import console, print_json, table

if TYPE_CHECKING:
    from rich.console import Console

    from availability.v1 import stock_pb2 as stk

app = typer.Typer(
    name="order", help="Orders: what was told of them, and what they commit.", no_args_is_help=True
)


@app.callback()
def _orders() -> None:
    """Keep `show` a command of its own."""


@app.command()
def show(
    source: Annotated[str, typer.Argument(help="Who named the order: a channel, an ERP.")],
    ref: Annotated[str, typer.Argument(help="Its name there.")],
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Show an order's facts per line and node, its other names, and the holds that carry it."""
    with connect(target, token_file, tls_ca) as client:
        answer = client.get_order(source, ref)
    if as_json:
        print_json(answer)
    else:
        _draw(answer, console())


def _draw(order: stk.GetOrderResponse, screen: Console) -> None:
    from rich.markup import escape

    cancelled = "  [red]CANCELLED[/]" if order.cancelled else ""
    screen.print(f"[bold]{escape(order.order_source)} {escape(order.order_ref)}[/]{cancelled}")
    for link in order.links:
        screen.print(f"  also {escape(link.order_source)} {escape(link.order_ref)}")
    numbers = ("ordered", "sourced", "allocated", "shipped", "committed")
    rows = table("line", "sku", "node", *numbers, right=numbers)
    for line in order.lines:
        ordered = str(line.ordered) if line.HasField("ordered") else "?"
        rows.add_row(escape(line.line), escape(line.sku), "", ordered)
        for node in line.nodes:
            allocated = str(node.allocated) if node.HasField("allocated") else ""
            units = (str(node.sourced), allocated, str(node.shipped), str(node.committed))
            rows.add_row("", "", escape(node.node), "", *units)
    screen.print(rows)
    for kit in order.kits:
        parts = ", ".join(f"{part.units} {part.sku}" for part in kit.components)
        screen.print(escape(f"kit {kit.kit_sku}: {kit.quantity} of {parts}"))
    if order.holds:
        screen.print(escape(f"held by {', '.join(order.holds)}"))
    screen.print(f"as of version {order.version}", style="bright_black")
