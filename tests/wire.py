"""The real service behind the plain model's calls: same arguments, same answers, over gRPC.

A refused call raises the model's `Refusal` with the ErrorInfo's reason. Calls that were shed are sent again
with the same ids. `version` is the point at which the last call was decided.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # published without types
from grpc_status import rpc_status  # type: ignore[import-untyped]  # published without types

from availability.domain.version import ZERO, Version
from availability.v1 import availability_pb2 as av
from availability.v1 import common_pb2 as co
from availability.v1 import policy_pb2 as pol
from availability.v1 import reservation_pb2 as res
from availability.v1 import stock_pb2 as stk
from availability.v1.availability_pb2_grpc import AvailabilityServiceStub
from availability.v1.policy_pb2_grpc import PolicyServiceStub
from availability.v1.reservation_pb2_grpc import ReservationServiceStub
from availability.v1.stock_pb2_grpc import StockServiceStub
from tests.model import Buffer, Changed, Delta, Granted, Lines, Override, Policy, Refusal, Shortage

TIMEOUT_S = 20.0
ATTEMPTS_MAX = 50
SHED_PAUSE_S = 0.02

Method = Callable[..., Any]
"""A stub's method: Any, because the generated types differ per RPC."""


@dataclass(frozen=True)
class NodeTerms:
    """One position as the service explains it."""

    on_hand: int
    quarantined: int
    safety_stock: int
    give: int
    reserved: int
    committed: int
    net: int
    counted: bool


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Read the reason of a failed call; without one, the canonical code is the reason."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return Refusal(info.reason)
    return Refusal(f"{error.code().name}: {error.details()}")


class Service:
    """One client of the service; not for several threads at once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.reads = AvailabilityServiceStub(self.channel)
        self.reservations = ReservationServiceStub(self.channel)
        self.stock = StockServiceStub(self.channel)
        self.policies = PolicyServiceStub(self.channel)
        self.version = ZERO
        self.reservation = res.Reservation()
        self._numbers = 0

    def close(self) -> None:
        self.channel.close()

    def call(self, method: Method, request: Message) -> Any:
        """Send one request; again, if it was shed."""
        for _ in range(ATTEMPTS_MAX):
            try:
                answer = method(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                refusal = refusal_of(error)
                if refusal.reason != "OVERLOADED":
                    raise refusal from None
                time.sleep(SHED_PAUSE_S)
                continue
            if getattr(answer, "version", ""):
                self.version = Version.parse(answer.version)
            return answer
        raise Refusal("OVERLOADED")

    # --- reservations

    def reserve(
        self,
        request_id: str,
        channel: str,
        lines: Lines,
        *,
        hold_ms: int = 3_600_000,
        order_source: str = "",
        order_ref: str = "",
        allow_partial: bool = False,
        node: str = "",
    ) -> Granted:
        request = reserve_request(
            request_id,
            channel,
            lines,
            hold_ms=hold_ms,
            order_source=order_source,
            order_ref=order_ref,
            allow_partial=allow_partial,
            node=node,
        )
        answer = self.call(self.reservations.CreateReservation, request)
        self.reservation = answer.reservation
        return granted(answer)

    def extend(self, request_id: str, reservation_id: str, *, hold_ms: int = 3_600_000) -> Changed:
        request = res.ExtendReservationRequest(
            request_id=request_id, reservation_id=reservation_id, hold_duration=duration(hold_ms)
        )
        return self._changed(self.call(self.reservations.ExtendReservation, request))

    def commit(
        self, request_id: str, reservation_id: str, *, order_source: str = "", order_ref: str = ""
    ) -> Changed:
        request = res.CommitReservationRequest(
            request_id=request_id,
            reservation_id=reservation_id,
            order_source=order_source,
            order_ref=order_ref,
        )
        return self._changed(self.call(self.reservations.CommitReservation, request))

    def release(self, request_id: str, reservation_id: str, lines: Lines = ()) -> Changed:
        request = res.ReleaseReservationRequest(
            request_id=request_id, reservation_id=reservation_id, lines=requested(lines)
        )
        return self._changed(self.call(self.reservations.ReleaseReservation, request))

    def get_reservation(self, reservation_id: str) -> res.Reservation:
        request = res.GetReservationRequest(reservation_id=reservation_id)
        answer: res.GetReservationResponse = self.call(self.reservations.GetReservation, request)
        return answer.reservation

    def _changed(self, answer: Any) -> Changed:  # three messages with these fields
        self.reservation = answer.reservation
        cancelled = getattr(answer, "order_cancelled", False)
        return Changed(reservation_state(answer.reservation), answer.replayed, cancelled)

    # --- stock

    def apply_delta(self, delta: Delta, *, source: str = "") -> tuple[str, str]:
        return self.apply_deltas([delta], source=source)[0]

    def apply_deltas(self, deltas: Sequence[Delta], *, source: str = "") -> list[tuple[str, str]]:
        request = stk.ApplyDeltasRequest(
            source=source or deltas[0].source, deltas=[to_proto(delta) for delta in deltas]
        )
        answer: stk.ApplyDeltasResponse = self.call(self.stock.ApplyDeltas, request)
        return delta_results(answer.results, answer.details)

    def get_order(self, order_source: str, order_ref: str) -> stk.GetOrderResponse:
        request = stk.GetOrderRequest(order_source=order_source, order_ref=order_ref)
        answer: stk.GetOrderResponse = self.call(self.stock.GetOrder, request)
        return answer

    # --- policy

    def _policy_ids(self) -> dict[str, Any]:
        self._numbers += 1
        return {"request_id": f"policy-{id(self)}-{time.monotonic_ns()}-{self._numbers}", "reason": "test"}

    def set_channel(self, channel: str, policy: Policy) -> None:
        message = pol.ChannelPolicy(
            channel=channel,
            nodes=policy.nodes or (),
            all_nodes=policy.nodes is None,
            buffer=buffer(policy.buffer),
            oversell_limit=policy.oversell_limit,
            low_stock_threshold=policy.low_stock_threshold,
        )
        request = pol.SetChannelPolicyRequest(policy=message, **self._policy_ids())
        self.call(self.policies.SetChannelPolicy, request)

    def set_override(self, channel: str, sku: str, override: Override) -> None:
        message = pol.SkuOverride(
            buffer=buffer(override.buffer) if override.buffer else None,
            oversell_limit=override.oversell_limit,
            excluded_nodes=override.excluded_nodes,
        )
        request = pol.SetSkuOverrideRequest(channel=channel, sku=sku, override=message, **self._policy_ids())
        self.call(self.policies.SetSkuOverride, request)

    def clear_override(self, channel: str, sku: str) -> None:
        request = pol.ClearSkuOverrideRequest(channel=channel, sku=sku, **self._policy_ids())
        self.call(self.policies.ClearSkuOverride, request)

    def set_node(self, node: str, *, online: bool) -> None:
        state = co.NODE_STATE_ONLINE if online else co.NODE_STATE_OFFLINE
        request = pol.SetNodeRequest(node=node, state=state, **self._policy_ids())
        self.call(self.policies.SetNode, request)

    def set_safety_stock(self, node: str, quantity: int | None, *, sku: str = "") -> None:
        request = pol.SetSafetyStockRequest(sku=sku, node=node, quantity=quantity, **self._policy_ids())
        self.call(self.policies.SetSafetyStock, request)

    def set_sale_state(self, *, channel: str = "", sku: str = "", blocked: bool) -> None:
        state = co.SALE_STATE_BLOCKED if blocked else co.SALE_STATE_SELLABLE
        request = pol.SetSaleStateRequest(channel=channel, sku=sku, state=state, **self._policy_ids())
        self.call(self.policies.SetSaleState, request)

    def set_fence(self, channel: str, sku: str, units: int) -> None:
        request = pol.SetRingFenceRequest(channel=channel, sku=sku, units=units, **self._policy_ids())
        self.call(self.policies.SetRingFence, request)

    def set_kit(self, kit: str, components: Lines) -> dict[str, int]:
        """Set a kit's recipe; give it back in plain skus."""
        parts = [pol.KitComponent(sku=sku, units=units) for sku, units in components]
        request = pol.SetKitRequest(kit_sku=kit, components=parts, **self._policy_ids())
        answer: pol.SetKitResponse = self.call(self.policies.SetKit, request)
        return {part.sku: part.units for part in answer.flattened}

    def nodes(self) -> dict[str, tuple[bool, int]]:
        """List what is set per node: online, default safety stock."""
        answer: pol.ListPoliciesResponse = self.call(self.policies.ListPolicies, pol.ListPoliciesRequest())
        return {n.node: (n.state == co.NODE_STATE_ONLINE, n.safety_stock) for n in answer.nodes}

    # --- reads

    def sellables(
        self, channel: str, skus: Sequence[str], *, at: Version | None = None, strong: bool = False
    ) -> list[tuple[int, str]]:
        """Sellable quantity and state of each sku, not before a version; `version` is then the answer's."""
        request = av.BatchGetAvailabilityRequest(
            channel=channel, skus=skus, min_version=str(at or ""), strong=strong
        )
        answer: av.BatchGetAvailabilityResponse = self.call(self.reads.BatchGetAvailability, request)
        self.version = Version.parse(answer.as_of.version)
        states = [short(av.AvailabilityState.Name(state), "AVAILABILITY_STATE_") for state in answer.states]
        return list(zip(answer.sellable_quantities, states, strict=True))

    def explain(self, channel: str, sku: str) -> av.ExplainAvailabilityResponse:
        request = av.ExplainAvailabilityRequest(channel=channel, sku=sku)
        answer: av.ExplainAvailabilityResponse = self.call(self.reads.ExplainAvailability, request)
        return answer


# --- messages


def duration(ms: int) -> Duration:
    message = Duration()
    message.FromMilliseconds(ms)
    return message


def requested(lines: Lines) -> list[co.RequestedLine]:
    return [co.RequestedLine(sku=sku, quantity=quantity) for sku, quantity in lines]


def buffer(value: Buffer) -> co.Buffer:
    return co.Buffer(percent=value.percent) if value.percent else co.Buffer(units=value.units)


def reserve_request(
    request_id: str,
    channel: str,
    lines: Lines,
    *,
    hold_ms: int = 3_600_000,
    order_source: str = "",
    order_ref: str = "",
    allow_partial: bool = False,
    node: str = "",
) -> res.CreateReservationRequest:
    """Build a request for a hold from the model's arguments."""
    return res.CreateReservationRequest(
        request_id=request_id,
        channel=channel,
        lines=requested(lines),
        hold_duration=duration(hold_ms),
        order_source=order_source,
        order_ref=order_ref,
        allow_partial=allow_partial,
        node=node,
    )


def granted(answer: res.CreateReservationResponse) -> Granted:
    """Read the answer to a reserve in the model's words."""
    return Granted(
        short(res.ReservationOutcome.Name(answer.outcome), "RESERVATION_OUTCOME_"),
        answer.reservation.reservation_id,
        tuple(Shortage(s.sku, s.requested_quantity, s.sellable_quantity) for s in answer.shortages),
        answer.replayed,
    )


def reservation_state(reservation: res.Reservation) -> str:
    return short(res.ReservationState.Name(reservation.state), "RESERVATION_STATE_")


def held(reservation: res.Reservation) -> dict[tuple[str, str], int]:
    """Units of a reservation by (sku, node)."""
    units: dict[tuple[str, str], int] = {}
    for line in reservation.lines:
        units[line.sku, line.node] = units.get((line.sku, line.node), 0) + line.quantity
    return units


def held_parts(reservation: res.Reservation) -> dict[tuple[str, str], int]:
    """Units of a reservation by (sku, kit)."""
    units: dict[tuple[str, str], int] = {}
    for line in reservation.lines:
        units[line.sku, line.kit_sku] = units.get((line.sku, line.kit_sku), 0) + line.quantity
    return units


def to_proto(delta: Delta) -> stk.Delta:
    """Write a delta of the model as a message."""
    occurred = Timestamp(seconds=delta.occurred_us // 1_000_000, nanos=delta.occurred_us % 1_000_000 * 1000)
    due = Timestamp(seconds=delta.due_us // 1_000_000, nanos=delta.due_us % 1_000_000 * 1000)
    return stk.Delta(
        source=delta.source,
        stream=delta.stream,
        source_sequence=delta.source_sequence,
        event_id=delta.event_id,
        type=stk.DeltaType.Value(f"DELTA_TYPE_{delta.type}"),
        sku=delta.sku,
        node=delta.node,
        quantity=-1 if delta.type == "LINK_ORDER" and delta.quantity == 0 else delta.quantity,
        state=stk.STOCK_STATE_QUARANTINED if delta.quarantined else stk.STOCK_STATE_UNSPECIFIED,
        order_source=delta.order_source,
        order_ref=delta.order_ref,
        line=delta.line,
        reason=delta.reason,
        occurred_time=occurred if delta.occurred_us else None,
        to_node=delta.to_node,
        reference=delta.reference,
        due_time=due if delta.due_us else None,
        expected_kind=stk.ExpectedKind.Value(f"EXPECTED_KIND_{delta.expected_kind or 'UNSPECIFIED'}"),
        allocation_basis=stk.ALLOCATION_BASIS_OPEN if delta.open_basis else stk.ALLOCATION_BASIS_UNSPECIFIED,
        shipped_quantity=delta.shipped_quantity,
        linked_order_source=delta.linked_source,
        linked_order_ref=delta.linked_ref,
    )


def delta_results(
    results: Iterable[stk.DeltaResult.ValueType], details: Iterable[stk.DeltaDetail]
) -> list[tuple[str, str]]:
    """Read what became of each delta of a batch: (result, reason where REJECTED)."""
    reasons = {detail.index: detail.reason for detail in details}
    names = [short(stk.DeltaResult.Name(result), "DELTA_RESULT_") for result in results]
    return [(name, reasons.get(i, "") if name == "REJECTED" else "") for i, name in enumerate(names)]


def node_terms(explained: av.ExplainAvailabilityResponse) -> dict[str, NodeTerms]:
    """Read the positions behind an explained answer, by node."""
    return {
        n.node: NodeTerms(
            n.on_hand, n.quarantined, n.safety_stock, n.give, n.reserved, n.committed, n.net, n.counted
        )
        for n in explained.terms.nodes
    }


def short(name: str, prefix: str) -> str:
    """Cut the prefix that buf's rules want from an enum value's name."""
    return name.removeprefix(prefix)
