"""`snapshot`: a source's reading of its stock, begun, sent and ended; and what the ledger had then."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import CommandError, usage
from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile, connect
from availability.cli.output import console, counted, print_json, table, word

if TYPE_CHECKING:
    from availability.v1 import stock_pb2 as stk

app = typer.Typer(
    name="snapshot",
    help="Tell the ledger what a source has, as of a point; `availability reconcile` compares it.",
    no_args_is_help=True,
)

SnapshotId = Annotated[str, typer.Argument(metavar="ID", help="Snapshot, as `snapshot begin` printed it.")]
AsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--as-of", metavar="STREAM=NUMBER", help="Last number that it contains; again for each stream."
    ),
]
Nodes = Annotated[list[str] | None, typer.Option("--node", help="Node it speaks for; else every one.")]


class Basis(StrEnum):
    """Bases as they are typed."""

    PHYSICAL = "physical"
    NET = "net"


class Absent(StrEnum):
    """Meanings of a missing row as they are typed."""

    IGNORE = "ignore"
    ZERO = "zero"


@app.command("begin")
def begin(
    source: Annotated[str, typer.Argument(help="Whose snapshot it is.")],
    nodes: Nodes = None,
    orders: Annotated[bool, typer.Option("--orders", help="Open order lines instead of stock.")] = False,
    basis: Annotated[Basis, typer.Option("--basis", help="What its quantities count.")] = Basis.PHYSICAL,
    absent: Annotated[Absent, typer.Option("--absent", help="What a missing row means.")] = Absent.IGNORE,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Note the first mark, before the source reads its stock; print the snapshot's id."""
    from availability.v1 import stock_pb2 as stk

    with connect(target, token_file, tls_ca) as client:
        made = client.begin_snapshot(
            source,
            nodes or (),
            content=stk.SNAPSHOT_CONTENT_OPEN_ORDERS if orders else stk.SNAPSHOT_CONTENT_POSITIONS,
            basis=stk.SnapshotBasis.Value(f"SNAPSHOT_BASIS_{basis.name}"),
            absent=stk.AbsentRows.Value(f"ABSENT_ROWS_{absent.name}"),
        )
    if as_json:
        print_json(made)
    else:
        print(made.snapshot_id)


@app.command("send")
def send(
    snapshot_id: SnapshotId,
    file: Annotated[Path, typer.Argument(help="CSV with a head: sku, node, on_hand; or of orders.")],
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Send rows: sku, node, on_hand (of orders: order_source, order_ref, line, sku, node, open_quantity)."""
    with connect(target, token_file, tls_ca) as client:
        count = client.stream_snapshot(snapshot_id, _rows(file))
    print(f"KEPT: {counted(count, 'row')}")


@app.command("end")
def end(
    snapshot_id: SnapshotId,
    as_of: AsOf = None,
    rows: Annotated[int | None, typer.Option("--rows", min=0, help="Rows that must have come.")] = None,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Note the second mark, after the source has read its stock."""
    with connect(target, token_file, tls_ca) as client:
        ended = client.end_snapshot(snapshot_id, _marks(as_of), row_count=rows)
    if as_json:
        print_json(ended)
    else:
        print(
            f"ENDED: {counted(ended.row_count, 'row')}, marks {ended.begin_version} and {ended.end_version}"
        )


@app.command("close")
def close(
    snapshot_id: SnapshotId,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Let a snapshot's rows and the log go."""
    with connect(target, token_file, tls_ca) as client:
        client.close_snapshot(snapshot_id)
    print("CLOSED")


@app.command("list")
def list_all(
    source: Annotated[str, typer.Option("--source", help="Only of this source.")] = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """List the snapshots of the last day."""
    from rich.markup import escape

    from availability.v1 import stock_pb2 as stk

    with connect(target, token_file, tls_ca) as client:
        found = client.list_snapshots(source)
    if as_json:
        print_json(found)
        return
    rows = table("id", "source", "nodes", "of", "state", "rows", "begun", right=("rows",))
    for one in found:
        rows.add_row(
            one.snapshot_id,
            escape(one.source),
            escape(", ".join(one.nodes)) or "every one",
            word(stk.SnapshotContent, one.content),
            word(stk.SnapshotState, one.state),
            str(one.row_count),
            one.begin_time.ToJsonString(),
        )
    console().print(rows)


@app.command("positions")
def positions(
    snapshot_id: Annotated[str, typer.Argument(metavar="[ID]", help="A snapshot that was ended.")] = "",
    source: Annotated[str, typer.Option("--source", help="Without an id: whose snapshot.")] = "",
    nodes: Nodes = None,
    as_of: AsOf = None,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Print what the ledger had at the point as CSV: sku, node, on_hand, quarantined, settled, on_hand_now."""
    from availability.v1 import stock_pb2 as stk

    if bool(snapshot_id) == bool(source):
        raise usage("give either an ID, or --source with --as-of")
    point = stk.SnapshotPoint(source=source, nodes=nodes or (), as_of=_marks(as_of)) if source else None
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("sku", "node", "on_hand", "quarantined", "settled", "on_hand_now"))
    with connect(target, token_file, tls_ca) as client:
        request = stk.ReadPositionsRequest(snapshot_id=snapshot_id, point=point)
        for page in client.read_positions(request):
            c = page.positions
            for row, on_hand in enumerate(c.on_hand):
                out.writerow(
                    (
                        c.skus[c.sku_indexes[row]],
                        c.nodes[c.node_indexes[row]],
                        on_hand,
                        c.quarantined[row],
                        word(stk.Settling, c.settling[row]),
                        c.on_hand_now[row],
                    )
                )


def _marks(as_of: list[str] | None) -> list[stk.SequenceMark]:
    from availability.v1 import stock_pb2 as stk

    marks = []
    for given in as_of or ():
        stream, equals, number = given.rpartition("=")
        if not equals or not stream or not (number.isascii() and number.isdecimal() and len(number) <= 15):
            raise usage(f"{given!r} is no mark: use STREAM=NUMBER")
        marks.append(stk.SequenceMark(stream=stream, source_sequence=int(number)))
    return marks


def _rows(file: Path) -> Iterator[stk.SnapshotRow | stk.OpenOrderRow]:
    from availability.v1 import stock_pb2 as stk

    with _readable(file), file.open(encoding="utf-8-sig", newline="") as opened:
        rows = csv.DictReader(opened)
        fields = set(rows.fieldnames or ())
        units = "open_quantity" if {"open_quantity", "order_ref"} & fields else "on_hand"
        missing = {"sku", "node", units, *(() if units == "on_hand" else ("order_ref",))} - fields
        if missing:
            raise CommandError(
                "INVALID_FILE",
                f"{file.name} has no column {', '.join(sorted(missing))}: use sku,node,on_hand"
                " or order_ref,sku,node,open_quantity",
            )
        for number, row in enumerate(rows, start=2):
            quantity = _whole(row[units], file, number)
            sku, node = row["sku"] or "", row["node"] or ""
            if units == "on_hand":
                yield stk.SnapshotRow(sku=sku, node=node, on_hand=quantity)
            else:
                yield stk.OpenOrderRow(
                    order_source=row.get("order_source") or "",
                    order_ref=row["order_ref"] or "",
                    line=row.get("line") or "",
                    sku=sku,
                    node=node,
                    open_quantity=quantity,
                )


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say of a file that is no CSV text that it is none."""
    try:
        yield
    except UnicodeDecodeError:
        raise CommandError("INVALID_FILE", f"{file.name} is no UTF-8 text: is it the right file?") from None
    except csv.Error as error:
        told = str(error).partition(" - ")[0]  # what follows is advice to a programmer
        raise CommandError("INVALID_FILE", f"{file.name} is no CSV file: {told}") from None


def _whole(text: str | None, file: Path, line: int) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise CommandError("INVALID_FILE", f"{file.name}, line {line}: {text!r} is no whole number") from None
