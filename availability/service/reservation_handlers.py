"""Reservations: messages in, one ledger call each, messages out. What is granted is decided in the ledger.

Writes return `Later`: the ledger's answer is on its way, and no thread has to wait for it.
"""

from __future__ import annotations

from collections.abc import Callable

from availability.domain.errors import invalid
from availability.domain.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from availability.ledger import calls
from availability.ledger.ledger import Ledger, decode_hold
from availability.service.context import CallContext
from availability.service.later import Later
from availability.service.ledger_calls import call, ledger_failures, refuse
from availability.service.requests import (
    check_id,
    check_reason,
    check_reference,
    grouped_lines,
    hold_ms,
    request_key,
    set_time,
)
from availability.telemetry import OutcomeMetrics
from availability.v1 import common_pb2
from availability.v1 import reservation_pb2 as pb

_OUTCOMES: dict[str, pb.ReservationOutcome.ValueType] = {
    "RESERVED": pb.RESERVATION_OUTCOME_RESERVED,
    "PARTIAL": pb.RESERVATION_OUTCOME_PARTIAL,
    "INSUFFICIENT_STOCK": pb.RESERVATION_OUTCOME_INSUFFICIENT_STOCK,
}
_COMMITTED = pb.RESERVATION_STATE_COMMITTED


class ReservationHandlers:
    """ReservationService. ``new_id`` draws reservation ids."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        new_id: Callable[[], str],
        lines_max: int,
        durability: common_pb2.Durability.ValueType,
        outcomes: OutcomeMetrics,
        page_size: int = PAGE_SIZE_DEFAULT,
        page_size_max: int = PAGE_SIZE_MAX,
    ) -> None:
        self._ledger = ledger
        self._new_id = new_id
        self._lines_max = lines_max
        self._durability = durability
        self._outcomes = outcomes
        self._page_size = page_size
        self._page_size_max = page_size_max

    def create_reservation(
        self, request: pb.CreateReservationRequest, ctx: CallContext
    ) -> Later[pb.CreateReservationResponse]:
        """Hold all lines or nothing (or what there is, with allow_partial)."""
        channel, node = request.channel, request.node
        check_id(channel, "channel")
        check_id(node, "node", required=False)
        lines = grouped_lines(request.lines, self._lines_max)
        source, ref = _order(request.order_source, request.order_ref)
        command = calls.Reserve(
            request_key(request.request_id, request, ctx),
            self._new_id(),
            channel,
            lines,
            hold_ms(request.hold_duration),
            source or (channel if ref else ""),
            ref,
            request.allow_partial,
            node,
            self._ledger.settings.auto_create,
        )

        def finish(raw: bytes) -> pb.CreateReservationResponse:
            reply = decode_hold(raw)
            outcome = _OUTCOMES.get(reply.status)
            if outcome is None:
                raise refuse(reply.status, channel=channel, node=node)
            self._count(reply)
            response = pb.CreateReservationResponse()
            view = reply.reservation
            if view is not None:
                _fill(response.reservation, view)
            response.outcome = outcome
            for i, sellable in reply.shortages:
                sku, quantity = lines[i]
                response.shortages.add(sku=sku, requested_quantity=quantity, sellable_quantity=sellable)
            response.replayed, response.version = reply.replayed, reply.version
            response.durability = self._durability
            return response

        return Later(self._ledger.submit("reserve", command, ctx.deadline), finish)

    def extend_reservation(
        self, request: pb.ExtendReservationRequest, ctx: CallContext
    ) -> Later[pb.ExtendReservationResponse]:
        """Set a new deadline."""
        check_reference(request.reservation_id, "reservation_id", required=True)
        command = calls.Extend(
            request_key(request.request_id, request, ctx),
            request.reservation_id,
            hold_ms(request.hold_duration),
        )

        def finish(raw: bytes) -> pb.ExtendReservationResponse:
            reply = self._expect("EXTENDED", raw, command.reservation_id)
            return pb.ExtendReservationResponse(
                reservation=_shown(reply.reservation),
                replayed=reply.replayed,
                version=reply.version,
                durability=self._durability,
            )

        return Later(self._ledger.submit("extend", command, ctx.deadline), finish)

    def commit_reservation(
        self, request: pb.CommitReservationRequest, ctx: CallContext
    ) -> Later[pb.CommitReservationResponse]:
        """Turn a hold into an order's commitment."""
        check_reference(request.reservation_id, "reservation_id", required=True)
        source, ref = _order(request.order_source, request.order_ref)
        command = calls.Commit(
            request_key(request.request_id, request, ctx), request.reservation_id, source, ref
        )

        def finish(raw: bytes) -> pb.CommitReservationResponse:
            reply = self._expect("COMMITTED", raw, command.reservation_id)
            return pb.CommitReservationResponse(
                reservation=_shown(reply.reservation),
                order_cancelled=reply.order_cancelled,
                replayed=reply.replayed,
                version=reply.version,
                durability=self._durability,
            )

        return Later(self._ledger.submit("commit", command, ctx.deadline), finish)

    def release_reservation(
        self, request: pb.ReleaseReservationRequest, ctx: CallContext
    ) -> Later[pb.ReleaseReservationResponse]:
        """Give units back."""
        check_reference(request.reservation_id, "reservation_id", required=True)
        lines = grouped_lines(request.lines, self._lines_max) if request.lines else []
        if request.reason:
            check_reason(request.reason)
        command = calls.Release(
            request_key(request.request_id, request, ctx), request.reservation_id, lines, request.reason
        )

        def finish(raw: bytes) -> pb.ReleaseReservationResponse:
            reply = self._expect("RELEASED", raw, command.reservation_id)
            return pb.ReleaseReservationResponse(
                reservation=_shown(reply.reservation),
                replayed=reply.replayed,
                version=reply.version,
                durability=self._durability,
            )

        return Later(self._ledger.submit("release", command, ctx.deadline), finish)

    def get_reservation(
        self, request: pb.GetReservationRequest, ctx: CallContext
    ) -> pb.GetReservationResponse:
        """Return a reservation as it is now."""
        check_reference(request.reservation_id, "reservation_id", required=True)
        view = call(ctx, lambda: self._ledger.reservation(request.reservation_id))
        if view is None:
            raise refuse("RESERVATION_NOT_FOUND", reservation_id=request.reservation_id)
        return pb.GetReservationResponse(reservation=_reservation(view))

    def list_reservations(
        self, request: pb.ListReservationsRequest, ctx: CallContext
    ) -> pb.ListReservationsResponse:
        """Return a page by order or by state."""
        check_id(request.order_source, "order_source", required=False)
        check_reference(request.order_ref, "order_ref")
        by_order = bool(request.order_ref)
        if by_order == bool(request.state):
            raise invalid("give either order_ref or state", field="order_ref")
        if not by_order and request.state not in pb.ReservationState.values():
            raise invalid("no such state", field="state")
        size = request.page_size or self._page_size
        if not 1 <= size <= self._page_size_max:
            raise invalid(f"page_size must be 1 to {self._page_size_max}", field="page_size")
        score, after_id = _page_token(request.page_token)
        with ctx.blocking(), ledger_failures():
            views, scores = self._ledger.reservations(
                state=0 if by_order else request.state,
                order_source=request.order_source,
                order_ref=request.order_ref,
                score=score,
                after_id=after_id,
                count=size,
            )
        token = f"{scores[-1]}.{views[-1].reservation_id}" if len(views) == size else ""
        return pb.ListReservationsResponse(reservations=map(_reservation, views), next_page_token=token)

    def _expect(self, status: str, raw: bytes, reservation_id: str) -> calls.HoldReply:
        reply = decode_hold(raw)
        if reply.status != status:
            raise refuse(reply.status, reservation_id=reservation_id)
        self._count(reply)
        return reply

    def _count(self, reply: calls.HoldReply) -> None:
        """Count what became of a hold, once however often it is asked for."""
        if reply.replayed:
            self._outcomes.replayed()
        else:
            self._outcomes.reservation(reply.status.lower())


def _order(source: str, ref: str) -> tuple[str, str]:
    check_id(source, "order_source", required=False)
    check_reference(ref, "order_ref")
    return source, ref


def _page_token(token: str) -> tuple[int, str]:
    if not token:
        return 0, ""
    score, dot, after_id = token.partition(".")
    if not dot or not score.isascii() or not score.isdecimal() or len(score) > 15:
        raise invalid("page_token is not one of ours", field="page_token")
    return int(score), after_id


def _shown(view: calls.HoldView | None) -> pb.Reservation | None:
    """A reply's reservation, where there is one."""
    return None if view is None else _reservation(view)


def _reservation(view: calls.HoldView) -> pb.Reservation:
    reservation = pb.Reservation()
    _fill(reservation, view)
    return reservation


def _fill(reservation: pb.Reservation, view: calls.HoldView) -> None:
    """Set every field, in place: messages and values handed to a constructor are made and copied, at twice the cost."""
    reservation.reservation_id = view.reservation_id
    reservation.state = view.state  # type: ignore[assignment]  # a plain int, as protobuf takes it
    reservation.channel = view.channel
    reservation.order_source = view.order_source
    reservation.order_ref = view.order_ref
    reservation.version = view.version
    set_time(reservation.create_time, view.create_ms)
    set_time(reservation.expire_time, view.expire_ms)
    add = reservation.lines.add
    for held in view.lines:
        for source in held.sources:
            line = add()
            line.sku, line.node, line.quantity, line.kit_sku = (
                held.sku,
                source.node,
                source.quantity,
                held.kit_sku,
            )
