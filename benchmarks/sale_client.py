"""A thin client of the generated stubs for locust: each call is timed and told to locust, its failure is a name.

Importing this makes gRPC work with gevent, for the whole process: import it after the fork, from locust only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
import grpc.experimental.gevent as grpc_gevent
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from locust import events

from availability.v1 import availability_pb2 as av
from availability.v1 import availability_pb2_grpc as av_grpc
from availability.v1 import common_pb2
from availability.v1 import reservation_pb2 as res
from availability.v1 import reservation_pb2_grpc as res_grpc

grpc_gevent.init_gevent()

TIMEOUT_S = 10.0
ATTEMPTS_MAX = 3
RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


@dataclass(frozen=True, slots=True)
class Held:
    """A hold: its id ("" where there is not enough) and where it was sourced, as (sku, node, units)."""

    reservation_id: str
    lines: list[tuple[str, str, int]]


class SaleClient:
    """One connection. Methods return None where the call failed; locust has counted it then."""

    def __init__(self, target: str, token: str) -> None:
        # A pool of its own: else channels of one address share a connection.
        self._channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        self._availability = av_grpc.AvailabilityServiceStub(self._channel)
        self._reservations = res_grpc.ReservationServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def look(self, channel: str, sku: str) -> int | None:
        """Ask for one sku."""
        request = av.GetAvailabilityRequest(channel=channel, sku=sku)
        answer = self._call("1 browse", self._availability.GetAvailability, request)
        return None if answer is None else int(answer.availability.sellable_quantity)

    def batch(self, channel: str, skus: Iterable[str]) -> None:
        """Ask for a page of skus."""
        self._call("2 batch read", self._availability.BatchGetAvailability,
                   av.BatchGetAvailabilityRequest(channel=channel, skus=skus))  # fmt: skip

    def basket(self, channel: str, lines: Mapping[str, int]) -> bool | None:
        """Ask whether all of a basket could be had now."""
        request = av.CheckBasketRequest(channel=channel, lines=_lines(lines))
        answer = self._call("3 basket check", self._availability.CheckBasket, request)
        return None if answer is None else bool(answer.fulfillable)

    def reserve(self, channel: str, lines: Mapping[str, int], hold_s: int) -> Held | None:
        """Hold a basket."""
        request = res.CreateReservationRequest(
            request_id=str(uuid4()),
            channel=channel,
            lines=_lines(lines),
            hold_duration=Duration(seconds=hold_s),
        )
        answer = self._call("4 reserve", self._reservations.CreateReservation, request)
        if answer is None:
            return None
        held = answer.reservation
        return Held(held.reservation_id, [(line.sku, line.node, line.quantity) for line in held.lines])

    def commit(self, reservation_id: str, order_ref: str) -> str | None:
        """Pay: "OK", or the reason of a refusal."""
        request = res.CommitReservationRequest(
            request_id=str(uuid4()), reservation_id=reservation_id, order_ref=order_ref
        )
        refused: list[str] = []
        answer = self._call("5 commit", self._reservations.CommitReservation, request, refused.append)
        if answer is not None:
            return "OK"
        return refused[0] if refused else None

    def release(self, reservation_id: str) -> bool:
        """Give a hold back."""
        request = res.ReleaseReservationRequest(request_id=str(uuid4()), reservation_id=reservation_id)
        return self._call("5 release", self._reservations.ReleaseReservation, request) is not None

    def _call(
        self, name: str, method: Any, request: Any, refused: Callable[[str], object] = lambda _: None
    ) -> Any:
        """Call, again under the same request id where the server asks for it; the time is that of all attempts."""
        began = time.perf_counter()
        failure: Exception | None = None
        answer = None
        for attempt in range(ATTEMPTS_MAX):
            failure = None
            try:
                answer = method(request, timeout=TIMEOUT_S, metadata=self._metadata)
                break
            except grpc.RpcError as error:
                reason = _reason(error)
                failure = Exception(f"{error.code().name}: {reason}")
                if error.code() not in RETRYABLE or attempt == ATTEMPTS_MAX - 1:
                    refused(reason)
                    break
                time.sleep(0.1 * 2**attempt)
        events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=answer.ByteSize() if answer is not None else 0,
            exception=failure,
            context={},
        )
        return answer


def _lines(lines: Mapping[str, int]) -> list[common_pb2.RequestedLine]:
    return [common_pb2.RequestedLine(sku=sku, quantity=quantity) for sku, quantity in lines.items()]


def _reason(error: Any) -> str:
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        found = error_details_pb2.ErrorInfo()
        if detail.Unpack(found):
            return found.reason
    return error.code().name
