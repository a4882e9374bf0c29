"""`reserve`, `commit`, `release` and `adjust`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import EXIT_REFUSED, CommandError, usage
from availability.cli.options import (
    DEFAULT_TARGET,
    AsJson,
    Channel,
    Target,
    TlsCa,
    TokenFile,
    connect,
    parse_duration_s,
    parse_lines,
)
from availability.cli.output import print_json, word

if TYPE_CHECKING:
    from availability.v1 import reservation_pb2 as res

OPERATOR = "operator"
"""The source under which `adjust` reports."""

Lines = Annotated[list[str], typer.Argument(metavar="SKU=QTY...", help="What, and how many.")]
RequestId = Annotated[
    str, typer.Option("--request-id", help="Idempotency key: the same one again is answered once.")
]


def reserve(
    lines: Lines,
    channel: Channel,
    hold: Annotated[str, typer.Option("--hold", help="How long: 90s, 15m, 1h30m.")] = "15m",
    order_ref: Annotated[
        str, typer.Option("--order-ref", help="The order, where it has a name already.")
    ] = "",
    order_source: Annotated[str, typer.Option("--order-source", help="Who named it; the channel.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is.")] = False,
    node: Annotated[str, typer.Option("--node", help="Take everything from this node.")] = "",
    request_id: RequestId = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Hold units for a checkout, all or nothing; print the reservation's id."""
    from availability.v1 import reservation_pb2 as res

    wanted, hold_s = parse_lines(lines), parse_duration_s(hold)
    with connect(target, token_file, tls_ca) as client:
        answer = client.reserve(
            channel,
            wanted,
            hold_s=hold_s,
            order_source=order_source,
            order_ref=order_ref,
            allow_partial=partial,
            node=node,
            request_id=request_id,
        )
    if as_json:
        print_json(answer)
    shortages = "; ".join(
        f"{short.sku}: {short.requested_quantity} wanted, {short.sellable_quantity} sellable"
        for short in answer.shortages
    )
    if answer.outcome == res.RESERVATION_OUTCOME_INSUFFICIENT_STOCK:
        raise CommandError("INSUFFICIENT_STOCK", shortages, EXIT_REFUSED)
    if not as_json:
        print(answer.reservation.reservation_id, flush=True)
    if answer.outcome == res.RESERVATION_OUTCOME_PARTIAL:
        print(f"PARTIAL: {shortages}", file=sys.stderr)
    _remark(f"{_held(answer.reservation)} until {_local(answer.reservation)}")


def commit(
    reservation_id: Annotated[str, typer.Argument(metavar="ID", help="Reservation.")],
    order_ref: Annotated[str, typer.Option("--order-ref", help="The order it becomes.")] = "",
    order_source: Annotated[str, typer.Option("--order-source", help="Who named it; the channel.")] = "",
    request_id: RequestId = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Turn a hold into an order."""
    with connect(target, token_file, tls_ca) as client:
        answer = client.commit(reservation_id, order_ref, order_source=order_source, request_id=request_id)
    if as_json:
        print_json(answer)
        return
    order = f"{answer.reservation.order_ref} of {answer.reservation.order_source}"
    if answer.order_cancelled:
        print(f"CANCELLED: order {order} had been cancelled, nothing is held")
    else:
        print(f"COMMITTED: {_held(answer.reservation)} for order {order}, version {answer.version}")


def release(
    reservation_id: Annotated[str, typer.Argument(metavar="ID", help="Reservation.")],
    lines: Annotated[
        list[str] | None, typer.Argument(metavar="[SKU=QTY...]", help="Only these units; all where none.")
    ] = None,
    request_id: RequestId = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Give the units of a hold back."""
    from availability.v1 import reservation_pb2 as res

    some = parse_lines(lines or ())
    with connect(target, token_file, tls_ca) as client:
        answer = client.release(reservation_id, some, request_id=request_id)
    if as_json:
        print_json(answer)
        return
    state = word(res.ReservationState, answer.reservation.state)
    left = f", {_held(answer.reservation)} still held" if state == "ACTIVE" else ""
    print(f"{state}: version {answer.version}{left}")


def adjust(
    sku: Annotated[str, typer.Argument(help="Sellable unit code.")],
    node: Annotated[str, typer.Option("--node", help="Node code.")],
    quantity: Annotated[
        int, typer.Option("--quantity", "-q", metavar="±Q", help="Units to add or take off.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Move that reason's quarantined units, too.")
    ] = False,
    event_id: Annotated[
        str, typer.Option("--event-id", help="The event's own id; the same again is ignored.")
    ] = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Correct what is physically at a node, by a signed quantity."""
    from availability.v1 import stock_pb2 as stk

    if quantity == 0:
        raise usage("--quantity 0 changes nothing")
    with connect(target, token_file, tls_ca) as client:
        delta = stk.Delta(
            source=OPERATOR,
            event_id=event_id or client.new_request_id(),
            type=stk.DELTA_TYPE_ADJUSTMENT,
            sku=sku,
            node=node,
            quantity=quantity,
            reason=reason,
            state=stk.STOCK_STATE_QUARANTINED if quarantined else stk.STOCK_STATE_UNSPECIFIED,
        )
        delta.occurred_time.GetCurrentTime()
        answer = client.apply_deltas(OPERATOR, [delta])
    if as_json:
        print_json(answer)
    result = word(stk.DeltaResult, answer.results[0])
    detail = answer.details[0] if answer.details else stk.DeltaDetail()
    if result not in ("APPLIED", "DUPLICATE"):
        raise CommandError(
            detail.reason or result, detail.message or "the adjustment was not applied", EXIT_REFUSED
        )
    if not as_json:
        print(f"{result}: {quantity:+d} {sku} at {node}, version {answer.version}")


def _held(reservation: res.Reservation) -> str:
    return ", ".join(f"{line.quantity} {line.sku} at {line.node}" for line in reservation.lines) or "nothing"


def _local(reservation: res.Reservation) -> str:
    from datetime import UTC

    return reservation.expire_time.ToDatetime(tzinfo=UTC).astimezone().strftime("%H:%M:%S")


def _remark(text: str) -> None:
    """Tell a person more; a program that reads stdout gets the id alone."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
