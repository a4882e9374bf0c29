"""A small availability service in memory, for tests of its clients: one lock, the demo's plain books, no
durability.

It keeps the contract where clients can see it (versions, replays, refusals, ErrorInfo, expiry) and nothing
else. Failures are planted through ``plan``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from availability.demo.books import Books, Buffer, Channel, Line
from availability.v1 import availability_pb2 as av
from availability.v1 import availability_pb2_grpc as av_grpc
from availability.v1 import common_pb2 as common
from availability.v1 import policy_pb2 as pol
from availability.v1 import policy_pb2_grpc as pol_grpc
from availability.v1 import reservation_pb2 as res
from availability.v1 import reservation_pb2_grpc as res_grpc
from availability.v1 import stock_pb2 as stk
from availability.v1 import stock_pb2_grpc as stk_grpc


@dataclass
class Plan:
    """What goes wrong, and what was seen."""

    failures: dict[str, list[tuple[str, str, float]]] = field(default_factory=lambda: defaultdict(list))
    """Method → (code, reason, retry after seconds), one taken per call."""
    cut_streams_after: list[int] = field(default_factory=list)
    """Each StreamDeltas call ends with UNAVAILABLE after so many batches; without more, none does."""
    lose_ack_at_cut: bool = True
    grant_anything: bool = False
    """The bug that the demo must find."""
    lose_a_delta: bool = False
    """The other one."""
    request_ids: list[str] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    token: str = ""


class FakeService:
    """State and rules; the servicers below only adapt."""

    def __init__(self) -> None:
        self.plan = Plan()
        self.lock = threading.RLock()
        self.books = Books()
        self.seq = 0
        self.answers: dict[str, res.CreateReservationResponse] = {}
        self.reservations: dict[str, res.Reservation] = {}
        self.due: dict[str, float] = {}
        self.marks: dict[tuple[str, str], int] = {}
        self.events: set[tuple[str, str]] = set()
        self.watchers: list[queue.SimpleQueue[str]] = []
        self.policies: dict[str, pol.ChannelPolicy] = {}
        self.kits: dict[str, dict[str, int]] = {}

    def next_version(self) -> str:
        self.seq += 1
        for watcher in self.watchers:
            watcher.put(self.version)
        return self.version

    @property
    def version(self) -> str:
        return f"1-{self.seq}"

    def expire(self) -> None:
        """End due holds; called under the lock before anything else."""
        for hold_id in [one for one, due in self.due.items() if due <= time.monotonic()]:
            del self.due[hold_id]
            self.books.end_hold(hold_id)
            self.reservations[hold_id].state = res.RESERVATION_STATE_EXPIRED
            self.reservations[hold_id].version = self.next_version()

    def enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        """Do what every call does first: remember it, authenticate, fail as planned."""
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.plan.metadata.append(metadata)
        if hasattr(request, "request_id"):
            self.plan.request_ids.append(request.request_id)
        if self.plan.token and metadata.get("authorization") != f"Bearer {self.plan.token}":
            abort(context, "UNAUTHENTICATED", "UNAUTHENTICATED", "no valid token")
        if self.plan.failures[method]:
            code, reason, retry_s = self.plan.failures[method].pop(0)
            abort(context, code, reason, "as planned", retry_s)

    def channel(self, name: str, context: grpc.ServicerContext) -> Channel:
        if name not in self.books.channels:
            abort(context, "NOT_FOUND", "UNKNOWN_CHANNEL", f"no policy for channel {name!r}")
        return self.books.channels[name]

    def availability(self, channel: str, sku: str, *, nodes: bool = False) -> av.Availability:
        books, sellable = self.books, self.books.sellable(sku, channel)
        state = av.AVAILABILITY_STATE_IN_STOCK if sellable else av.AVAILABILITY_STATE_OUT_OF_STOCK
        if sku not in books.known:
            state = av.AVAILABILITY_STATE_UNKNOWN_SKU
        answer = av.Availability(
            sku=sku, channel=channel, sellable_quantity=sellable, state=state, as_of=self.as_of()
        )
        for node in books.channels[channel].nodes if nodes else ():
            answer.nodes.add(
                node=node,
                free_quantity=max(0, books.net(sku, node)),
                sellable_quantity=books.sellable_at(sku, channel, node),
            )
        return answer

    def as_of(self) -> common.AsOf:
        return common.AsOf(version=self.version, age_ms=3)

    def terms(self, channel: str, sku: str) -> av.AvailabilityTerms:
        books = self.books
        terms = av.AvailabilityTerms(
            sellable_quantity=books.sellable(sku, channel),
            state=self.availability(channel, sku).state,
            pool=books.pool(sku, channel),
            buffer=books.buffer(sku, channel),
            fenced=books.fenced(sku, channel),
        )
        for part, units in books.kits.get(sku, {}).items():
            terms.components.add(sku=part, units=units, sellable_quantity=books.sellable(part, channel))
        rule = books.overrides.get((channel, sku), books.channels[channel].buffer)
        words = f"{rule.percent} %" if rule.percent else f"{rule.units} units"
        terms.policies.add(
            term="buffer", level="CHANNEL", value=words, version="1-4", author="ops", reason="launch"
        )
        for rank, node in enumerate(books.channels[channel].nodes):
            counted = node not in books.offline
            terms.nodes.add(
                node=node,
                sourcing_rank=rank,
                on_hand=books.on_hand[sku, node],
                quarantined=books.quarantined[sku, node],
                safety_stock=books.safety.get((sku, node), 0),
                give=books.give(sku, node),
                reserved=books.reserved(sku, node),
                committed=books.committed(sku, node),
                net=books.net(sku, node),
                free=max(0, books.net(sku, node)),
                counted=counted,
                not_counted_reason="" if counted else "OFFLINE",
            )
        for hold_id, hold in books.holds.items():
            for line in hold.lines:
                if line.sku == sku:
                    terms.holds.add(reservation_id=hold_id, node=line.node, quantity=line.quantity)
        for (source, ref), lines in books.orders.items():
            for node, units in (lines[sku].committed() if sku in lines else {}).items():
                terms.orders.add(order_source=source, order_ref=ref, node=node, quantity=units)
        for (source, stream), mark in self.marks.items():
            terms.streams.add(source=source, stream=stream, last_sequence=mark, age_ms=120)
        return terms

    def apply(self, delta: stk.Delta) -> tuple[stk.DeltaResult.ValueType, str, int]:
        """Apply one delta; return its result, reason and expected number."""
        if delta.event_id:
            if (delta.source, delta.event_id) in self.events:
                return stk.DELTA_RESULT_DUPLICATE, "", 0
            self.events.add((delta.source, delta.event_id))
        else:
            mark = self.marks.get((delta.source, delta.stream))
            if mark is not None and delta.source_sequence <= mark:
                return stk.DELTA_RESULT_DUPLICATE, "", 0
            if mark is not None and delta.source_sequence > mark + 1:
                return stk.DELTA_RESULT_PARKED, "", mark + 1
            self.marks[delta.source, delta.stream] = delta.source_sequence
        if delta.node == "nowhere":
            return stk.DELTA_RESULT_REJECTED, "UNKNOWN_NODE", 0
        if self.plan.lose_a_delta and delta.type == stk.DELTA_TYPE_RECEIPT:
            self.plan.lose_a_delta = False
            return stk.DELTA_RESULT_APPLIED, "", 0
        from availability.demo import journal  # the same few lines of what a delta does

        journal._delta_post(delta)(self.books)
        return stk.DELTA_RESULT_APPLIED, "", 0

    def apply_batch(self, request: Any, response: Any) -> Any:
        """Fill an answer to a batch; each delta is a call of its own."""
        with self.lock:
            self.expire()
            accepted = None
            for index, delta in enumerate(request.deltas):
                result, reason, expected = self.apply(delta)
                if result == stk.DELTA_RESULT_APPLIED:
                    self.next_version()
                else:
                    response.details.add(
                        index=index,
                        result=result,
                        reason=reason,
                        message="as said",
                        expected_sequence=expected,
                    )
                if result == stk.DELTA_RESULT_PARKED and accepted is None:
                    accepted = index
                response.results.append(result)
                response.calls.add(first_index=index, version=self.version)
            response.accepted_count = len(request.deltas) if accepted is None else accepted
            response.version = self.version
            return response


def abort(
    context: grpc.ServicerContext, code: str, reason: str, message: str, retry_s: float = 0.0
) -> NoReturn:
    """End a call with a status, an ErrorInfo where there is a reason, and a RetryInfo."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    details: list[Any] = []
    if reason:
        info = error_details_pb2.ErrorInfo(domain="availability", reason=reason, metadata={"fact": "1"})
        details.append(info)
    if retry_s:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


class Reads(av_grpc.AvailabilityServiceServicer):
    def __init__(self, fake: FakeService) -> None:
        self.fake = fake

    def GetAvailability(self, request: Any, context: Any) -> Any:
        self.fake.enter("GetAvailability", request, context)
        with self.fake.lock:
            self.fake.channel(request.channel, context)
            answer = self.fake.availability(request.channel, request.sku, nodes=request.include_nodes)
        return av.GetAvailabilityResponse(availability=answer)

    def BatchGetAvailability(self, request: Any, context: Any) -> Any:
        self.fake.enter("BatchGetAvailability", request, context)
        with self.fake.lock:
            self.fake.channel(request.channel, context)
            answers = [self.fake.availability(request.channel, sku) for sku in request.skus]
        return av.BatchGetAvailabilityResponse(
            sellable_quantities=[one.sellable_quantity for one in answers],
            states=[one.state for one in answers],
            as_of=self.fake.as_of(),
        )

    def CheckBasket(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ExplainAvailability(self, request: Any, context: Any) -> Any:
        self.fake.enter("ExplainAvailability", request, context)
        with self.fake.lock:
            self.fake.channel(request.channel, context)
            return av.ExplainAvailabilityResponse(
                sku=request.sku,
                channel=request.channel,
                terms=self.fake.terms(request.channel, request.sku),
                as_of=self.fake.as_of(),
            )

    def WatchAvailability(self, request: Any, context: Any) -> Iterator[Any]:
        self.fake.enter("WatchAvailability", request, context)
        news: queue.SimpleQueue[str] = queue.SimpleQueue()
        shown: dict[str, int] = {}
        with self.fake.lock:
            self.fake.channel(request.channel, context)
            self.fake.watchers.append(news)
        initial = True
        while context.is_active():
            with self.fake.lock:
                skus = request.skus or sorted(self.fake.books.known)
                changes = [self.fake.availability(request.channel, sku) for sku in skus]
                changes = [one for one in changes if shown.get(one.sku) != one.sellable_quantity]
            shown |= {one.sku: one.sellable_quantity for one in changes}
            if changes:
                yield av.WatchAvailabilityResponse(changes=changes, initial=initial, as_of=self.fake.as_of())
            initial = False
            try:
                news.get(timeout=0.1)
            except queue.Empty:
                continue


class Reservations(res_grpc.ReservationServiceServicer):
    def __init__(self, fake: FakeService) -> None:
        self.fake = fake

    def CreateReservation(self, request: Any, context: Any) -> Any:
        fake = self.fake
        fake.enter("CreateReservation", request, context)
        with fake.lock:
            fake.expire()
            if request.request_id in fake.answers:
                again = res.CreateReservationResponse()
                again.CopyFrom(fake.answers[request.request_id])
                again.replayed = True
                return again
            answer = self._decide(request, context)
            fake.answers[request.request_id] = answer
            return answer

    def _decide(self, request: Any, context: Any) -> Any:
        fake = self.fake
        fake.channel(request.channel, context)
        wanted: dict[str, int] = defaultdict(int)
        for line in request.lines:
            wanted[line.sku] += line.quantity
        answer = res.CreateReservationResponse(durability=common.DURABILITY_DEMO)
        granted: dict[str, int] = {}
        for sku, quantity in wanted.items():
            sellable = fake.books.sellable(sku, request.channel)
            granted[sku] = quantity
            if sellable < quantity and not fake.plan.grant_anything:
                answer.shortages.add(sku=sku, requested_quantity=quantity, sellable_quantity=sellable)
                granted[sku] = sellable
        answer.outcome = res.RESERVATION_OUTCOME_RESERVED
        if answer.shortages:
            answer.outcome = res.RESERVATION_OUTCOME_PARTIAL
            if not request.allow_partial or not any(granted.values()):
                answer.outcome = res.RESERVATION_OUTCOME_INSUFFICIENT_STOCK
                answer.version = fake.version
                return answer
        exploded = fake.books.exploded(granted)
        lines = [
            line
            for sku, quantity in exploded.items()
            for line in fake.books.sourcing(sku, request.channel, quantity)
        ]
        for sku, quantity in exploded.items():
            short = quantity - sum(line.quantity for line in lines if line.sku == sku)
            if short:
                lines.append(
                    Line(sku=sku, node=fake.books.channels[request.channel].nodes[0], quantity=short)
                )
        hold_id = f"r-{len(fake.reservations) + 1}"
        fake.books.grant(hold_id, request.channel, granted, lines)
        hold = answer.reservation
        hold.reservation_id, hold.channel, hold.state = hold_id, request.channel, res.RESERVATION_STATE_ACTIVE
        for line in lines:
            hold.lines.add(sku=line.sku, node=line.node, quantity=line.quantity)
        hold.create_time.GetCurrentTime()
        hold.expire_time.FromMilliseconds(
            hold.create_time.ToMilliseconds() + request.hold_duration.ToMilliseconds()
        )
        hold.order_source, hold.order_ref = request.order_source, request.order_ref
        hold.version = answer.version = fake.next_version()
        fake.due[hold_id] = time.monotonic() + request.hold_duration.ToMilliseconds() / 1000
        fake.reservations[hold_id] = res.Reservation()
        fake.reservations[hold_id].CopyFrom(hold)
        return answer

    def _active(self, request: Any, context: Any) -> res.Reservation:
        self.fake.expire()
        hold = self.fake.reservations.get(request.reservation_id)
        if hold is None:
            abort(context, "NOT_FOUND", "RESERVATION_NOT_FOUND", f"no reservation {request.reservation_id!r}")
        if hold.state != res.RESERVATION_STATE_ACTIVE:
            abort(context, "FAILED_PRECONDITION", "RESERVATION_NOT_ACTIVE", "it has ended")
        return hold

    def ExtendReservation(self, request: Any, context: Any) -> Any:
        self.fake.enter("ExtendReservation", request, context)
        with self.fake.lock:
            hold = self._active(request, context)
            seconds = request.hold_duration.ToMilliseconds() / 1000
            self.fake.due[hold.reservation_id] = time.monotonic() + seconds
            return res.ExtendReservationResponse(reservation=hold, version=self.fake.next_version())

    def CommitReservation(self, request: Any, context: Any) -> Any:
        self.fake.enter("CommitReservation", request, context)
        with self.fake.lock:
            hold = self._active(request, context)
            del self.fake.due[hold.reservation_id]
            source, ref = request.order_source or hold.channel, request.order_ref
            self.fake.books.commit_hold(hold.reservation_id, (source, ref))
            hold.state, hold.order_source, hold.order_ref = res.RESERVATION_STATE_COMMITTED, source, ref
            hold.version = self.fake.next_version()
            return res.CommitReservationResponse(reservation=hold, version=hold.version)

    def ReleaseReservation(self, request: Any, context: Any) -> Any:
        self.fake.enter("ReleaseReservation", request, context)
        with self.fake.lock:
            hold = self._active(request, context)
            for line in request.lines:
                place = next(one for one in reversed(hold.lines) if one.sku == line.sku)
                place.quantity -= line.quantity
            if request.lines:
                left = [
                    Line(sku=one.sku, node=one.node, quantity=one.quantity)
                    for one in hold.lines
                    if one.quantity
                ]
                self.fake.books.shrink_hold(hold.reservation_id, left, {})
                self.fake.books.problems.clear()
                del hold.lines[:]
                for one in left:
                    hold.lines.add(sku=one.sku, node=one.node, quantity=one.quantity)
            else:
                del self.fake.due[hold.reservation_id]
                self.fake.books.end_hold(hold.reservation_id)
                hold.state = res.RESERVATION_STATE_RELEASED
            hold.version = self.fake.next_version()
            return res.ReleaseReservationResponse(reservation=hold, version=hold.version)

    def GetReservation(self, request: Any, context: Any) -> Any:
        with self.fake.lock:
            self.fake.expire()
            return res.GetReservationResponse(reservation=self.fake.reservations[request.reservation_id])

    def ListReservations(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


class Stock(stk_grpc.StockServiceServicer):
    def __init__(self, fake: FakeService) -> None:
        self.fake = fake

    def ApplyDeltas(self, request: Any, context: Any) -> Any:
        self.fake.enter("ApplyDeltas", request, context)
        return self.fake.apply_batch(request, stk.ApplyDeltasResponse())

    def StreamDeltas(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        plan = self.fake.plan
        cut_after = plan.cut_streams_after.pop(0) if plan.cut_streams_after else None
        for count, request in enumerate(request_iterator, start=1):
            answer = self.fake.apply_batch(
                request, stk.StreamDeltasResponse(batch_number=request.batch_number)
            )
            if count == cut_after:  # applied, and the sender never hears of it
                abort(context, "UNAVAILABLE", "LEDGER_UNREACHABLE", "cut as planned")
            yield answer

    def GetOrder(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ListStreams(self, request: Any, context: Any) -> Any:
        self.fake.enter("ListStreams", request, context)
        answer = stk.ListStreamsResponse()
        for (source, stream), mark in sorted(self.fake.marks.items()):
            if source == request.source:
                answer.streams.add(stream=stream, last_sequence=mark, state=stk.STREAM_STATE_OPEN)
        return answer

    def SkipGap(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ResetStream(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def BeginSnapshot(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def StreamSnapshot(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError

    def EndSnapshot(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def CloseSnapshot(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ListSnapshots(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ReadSnapshot(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ReadPositions(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ReadOrderLines(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def AuditLedger(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


class Policies(pol_grpc.PolicyServiceServicer):
    def __init__(self, fake: FakeService) -> None:
        self.fake = fake

    def SetChannelPolicy(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetChannelPolicy", request, context)
        with self.fake.lock:
            policy = request.policy
            buffer = Buffer(units=policy.buffer.units, percent=policy.buffer.percent)
            self.fake.books.channels[policy.channel] = Channel(nodes=tuple(policy.nodes), buffer=buffer)
            version = self.fake.next_version()
            stored = self.fake.policies[policy.channel] = pol.ChannelPolicy()
            stored.CopyFrom(policy)
            stored.version, stored.reason = version, request.reason
            return pol.SetChannelPolicyResponse(policy=stored, version=version)

    def SetSkuOverride(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetSkuOverride", request, context)
        with self.fake.lock:
            buffer = request.override.buffer
            rule = Buffer(units=buffer.units, percent=buffer.percent)
            self.fake.books.overrides[request.channel, request.sku] = rule
            return pol.SetSkuOverrideResponse(version=self.fake.next_version())

    def ClearSkuOverride(self, request: Any, context: Any) -> Any:
        self.fake.enter("ClearSkuOverride", request, context)
        with self.fake.lock:
            self.fake.books.overrides.pop((request.channel, request.sku), None)
            return pol.ClearSkuOverrideResponse(version=self.fake.next_version())

    def SetSafetyStock(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetSafetyStock", request, context)
        with self.fake.lock:
            self.fake.books.safety[request.sku, request.node] = request.quantity
            return pol.SetSafetyStockResponse(version=self.fake.next_version())

    def SetNode(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetNode", request, context)
        with self.fake.lock:
            if request.state == common.NODE_STATE_OFFLINE:
                self.fake.books.offline.add(request.node)
            else:
                self.fake.books.offline.discard(request.node)
            return pol.SetNodeResponse(version=self.fake.next_version())

    def SetSaleState(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetSaleState", request, context)
        with self.fake.lock:
            return pol.SetSaleStateResponse(version=self.fake.next_version())

    def SetRingFence(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetRingFence", request, context)
        with self.fake.lock:
            self.fake.books.set_fence(request.channel, request.sku, request.units)
            return pol.SetRingFenceResponse(version=self.fake.next_version())

    def SetFeed(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetFeed", request, context)
        with self.fake.lock:
            return pol.SetFeedResponse(version=self.fake.next_version())

    def SetKit(self, request: Any, context: Any) -> Any:
        self.fake.enter("SetKit", request, context)
        with self.fake.lock:
            self.fake.kits[request.kit_sku] = {part.sku: part.units for part in request.components}
            self.fake.books.kits[request.kit_sku] = {part.sku: part.units for part in request.components}
            return pol.SetKitResponse(version=self.fake.next_version(), flattened=request.components)

    def GetPolicy(self, request: Any, context: Any) -> Any:
        self.fake.enter("GetPolicy", request, context)
        with self.fake.lock:
            self.fake.channel(request.channel, context)
            answer = pol.GetPolicyResponse(
                policy=self.fake.policies[request.channel], sale_state=common.SALE_STATE_SELLABLE
            )
            for (channel, sku), rule in self.fake.books.overrides.items():
                if channel == request.channel:
                    entry = answer.overrides.add(sku=sku)
                    entry.override.buffer.units = rule.units
            return answer

    def ListPolicies(self, request: Any, context: Any) -> Any:
        self.fake.enter("ListPolicies", request, context)
        with self.fake.lock:
            answer = pol.ListPoliciesResponse(policies=self.fake.policies.values(), as_of=self.fake.as_of())
            for node in sorted({node for one in self.fake.books.channels.values() for node in one.nodes}):
                offline = node in self.fake.books.offline
                state = common.NODE_STATE_OFFLINE if offline else common.NODE_STATE_ONLINE
                answer.nodes.add(node=node, state=state)
            return answer


@contextmanager
def serving(fake: FakeService) -> Iterator[str]:
    """Serve a fake on a loopback port; yield its target."""
    server = grpc.server(ThreadPoolExecutor(64))
    av_grpc.add_AvailabilityServiceServicer_to_server(Reads(fake), server)
    res_grpc.add_ReservationServiceServicer_to_server(Reservations(fake), server)
    stk_grpc.add_StockServiceServicer_to_server(Stock(fake), server)
    pol_grpc.add_PolicyServiceServicer_to_server(Policies(fake), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0.1)
