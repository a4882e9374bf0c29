"""Play a plan through gRPC: shoppers reserve and commit, or let go; ERP and WMS are replay_sender.py's.

Everything that was sent and answered is kept as it was, for replay_check.py.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import grpc
from google.protobuf.duration_pb2 import Duration

from availability.v1 import common_pb2 as common
from availability.v1 import reservation_pb2 as res
from availability.v1 import reservation_pb2_grpc as res_grpc
from benchmarks.replay_desk import Desk
from benchmarks.replay_plan import NODES, Order, Plan
from benchmarks.replay_words import (
    CHANNEL_OPTIONS,
    COMMIT,
    EXPIRE,
    EXPIRING_HOLD_S,
    GRANT,
    HOLD_S,
    LEFT_HOLD_S,
    LINES_MAX,
    ORDER_SOURCE,
    RELEASE,
    HoldAnswer,
    Refused,
    ReplayFailed,
    Stop,
    ask,
    refused_call,
    request_id,
)


class Shopper:
    """One checkout client: takes an order at a time from reserve to commit, over its own connection."""

    def __init__(self, name: str, address: str, plan: Plan, desk: Desk, stop: Stop) -> None:
        self.counts: Counter[str] = Counter()
        self.answers: list[HoldAnswer] = []
        self.refused: list[Refused] = []
        self.expiring: list[tuple[str, HoldAnswer]] = []
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = res_grpc.ReservationServiceStub(self._channel)
        self._plan = plan
        self._desk = desk
        self._stop = stop
        self._sku_numbers = {sku: number for number, sku in enumerate(plan.skus)}
        self._node_numbers = {node: number for number, node in enumerate(NODES)}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to shop."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Tell whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def see_expiry(self, deadline_s: float) -> None:
        """Learn at which version each hold that was left to expire did so."""
        for reservation_id, held in self.expiring:
            request = res.GetReservationRequest(reservation_id=reservation_id)
            while True:
                found = ask(self._stub.GetReservation, request, self.counts).reservation
                if found.state == res.RESERVATION_STATE_EXPIRED:
                    break
                if time.monotonic() > deadline_s:
                    raise ReplayFailed(f"a hold of {EXPIRING_HOLD_S} s has not expired: {reservation_id}")
                time.sleep(0.1)
            self.answers.append(held._replace(version=found.version, kind=EXPIRE))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _run(self) -> None:
        try:
            while (order := self._desk.take()) is not None:
                self._play(order)
        except ReplayFailed as error:
            self._stop.fail(str(error))
        except grpc.RpcError as error:
            self._stop.fail(f"checkout: {refused_call(error)}")
        except Exception as error:
            self._stop.fail(f"checkout: {error!r}")

    def _play(self, order: Order) -> None:
        if order.cart:
            self._abandon(order)
        granted: dict[int, list[int]] = {}
        held = []
        for start in range(0, len(order.lines), LINES_MAX):
            hold = self._checkout(order, order.lines[start : start + LINES_MAX])
            if hold is not None:
                held.append(hold)
        for hold in held:
            for sku, node, quantity in self._commit(order, hold):
                granted.setdefault(sku, [0, 0, 0])[node] += quantity
        self.counts["orders"] += 1
        self.counts["orders that got nothing"] += not granted
        self._desk.finish(order, granted)

    def _checkout(self, order: Order, lines: list[tuple[int, int]]) -> res.Reservation | None:
        """Reserve the lines; where they find too little, once more with what there is."""
        named = order.named_early or len(order.lines) > LINES_MAX
        answer = self._reserve(order, lines, HOLD_S, partial=order.partial_first, named=named)
        if answer.shortages:
            short = {self._sku_numbers[shortage.sku] for shortage in answer.shortages}
            self.counts["lines short"] += sum(1 for sku, _ in lines if sku in short)
            self.counts["reservations short"] += 1
        if answer.outcome == res.RESERVATION_OUTCOME_INSUFFICIENT_STOCK and not order.partial_first:
            answer = self._reserve(order, lines, HOLD_S, partial=True, named=named)
        return answer.reservation if answer.HasField("reservation") and answer.reservation.lines else None

    def _reserve(
        self, order: Order, lines: list[tuple[int, int]], hold_s: int, *, partial: bool, named: bool
    ) -> res.CreateReservationResponse:
        skus = self._plan.skus
        request = res.CreateReservationRequest(
            request_id=request_id(),
            channel=self._plan.rules[order.channel].channel,
            lines=[common.RequestedLine(sku=skus[sku], quantity=quantity) for sku, quantity in lines],
            hold_duration=Duration(seconds=hold_s),
            allow_partial=partial,
            order_source=ORDER_SOURCE if named else "",
            order_ref=order.ref if named else "",
        )
        answer = ask(self._stub.CreateReservation, request, self.counts)
        self.counts["reservations asked"] += 1
        if order.repeated:
            again = ask(self._stub.CreateReservation, request, self.counts)
            same = again.reservation.reservation_id == answer.reservation.reservation_id
            self._expect(again.replayed and same and again.outcome == answer.outcome, "a repeated reserve")
            self.counts["repeated requests"] += 1
        for shortage in answer.shortages:
            self.refused.append(
                Refused(
                    answer.version,
                    answer.outcome == res.RESERVATION_OUTCOME_PARTIAL,
                    order.channel,
                    self._sku_numbers[shortage.sku],
                    shortage.requested_quantity,
                    shortage.sellable_quantity,
                )
            )
        if answer.HasField("reservation"):
            self.counts["reservations"] += 1
            self._record(answer.version, GRANT, order, self._units(answer.reservation))
        return answer

    def _commit(self, order: Order, hold: res.Reservation) -> list[tuple[int, int, int]]:
        if order.extended:
            extend = res.ExtendReservationRequest(
                request_id=request_id(),
                reservation_id=hold.reservation_id,
                hold_duration=Duration(seconds=2 * HOLD_S),
            )
            ask(self._stub.ExtendReservation, extend, self.counts)
            self.counts["extended"] += 1
        request = res.CommitReservationRequest(
            request_id=request_id(),
            reservation_id=hold.reservation_id,
            order_source=ORDER_SOURCE,
            order_ref=order.ref,
        )
        answer = ask(self._stub.CommitReservation, request, self.counts)
        self.counts["commits"] += 1
        committed = answer.reservation.state == res.RESERVATION_STATE_COMMITTED
        self._expect(committed and not answer.order_cancelled, "a commit")
        if order.repeated:
            again = ask(self._stub.CommitReservation, request, self.counts)
            self._expect(again.replayed, "a repeated commit")
            self.counts["repeated requests"] += 1
        units = self._units(answer.reservation)
        self._record(answer.version, COMMIT, order, units)
        return units

    def _abandon(self, order: Order) -> None:
        """Fill a cart with the first lines of the order and do not buy it."""
        hold_s = {"expired": EXPIRING_HOLD_S, "left": LEFT_HOLD_S}.get(order.cart, HOLD_S)
        answer = self._reserve(order, order.lines[:20], hold_s, partial=True, named=False)
        hold = answer.reservation
        if not hold.lines:
            return
        self.counts[f"carts {order.cart}"] += 1
        units = self._units(hold)
        if order.cart == "expired":
            grant = self.answers[-1]
            self.expiring.append((hold.reservation_id, grant))
        elif order.cart == "trimmed":
            first = hold.lines[0]
            left = self._release(order, hold, [common.RequestedLine(sku=first.sku, quantity=1)], units)
            if left:
                self._release(order, hold, [], left)
        elif order.cart == "released":
            self._release(order, hold, [], units)

    def _release(
        self,
        order: Order,
        hold: res.Reservation,
        lines: list[common.RequestedLine],
        units: list[tuple[int, int, int]],
    ) -> list[tuple[int, int, int]]:
        """Release lines, or everything; return what is left."""
        request = res.ReleaseReservationRequest(
            request_id=request_id(), reservation_id=hold.reservation_id, lines=lines
        )
        answer = ask(self._stub.ReleaseReservation, request, self.counts)
        left: list[tuple[int, int, int]] = []
        if answer.reservation.state == res.RESERVATION_STATE_ACTIVE:
            left = self._units(answer.reservation)
        before = Counter({(sku, node): quantity for sku, node, quantity in units})
        before.subtract({(sku, node): quantity for sku, node, quantity in left})
        given_back = [(sku, node, quantity) for (sku, node), quantity in before.items() if quantity]
        self._record(answer.version, RELEASE, order, given_back)
        return left

    def _units(self, hold: res.Reservation) -> list[tuple[int, int, int]]:
        skus, nodes = self._sku_numbers, self._node_numbers
        return [(skus[line.sku], nodes[line.node], line.quantity) for line in hold.lines]

    def _record(self, version: str, kind: int, order: Order, units: list[tuple[int, int, int]]) -> None:
        if units:
            skus, nodes, quantities = (list(column) for column in zip(*units, strict=True))
            self.answers.append(
                HoldAnswer(version, kind, order.channel, order.number, skus, nodes, quantities)
            )

    def _expect(self, right: bool, what: str) -> None:
        if not right:
            raise ReplayFailed(f"{what} was answered otherwise than the contract says")
