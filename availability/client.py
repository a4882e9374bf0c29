"""Call the service from Python: typed, with deadlines, request ids and bounded retries.

``Client`` wraps the five generated stubs. Every call has a total deadline; UNAVAILABLE and shed calls are
sent again with the same request_id, so that a retry can never take effect twice. A stream of
deltas is kept going by `delta_sender`. A failure is a ``ClientError`` with the contract's reason (CONTRACT
section 3).

It may not know the command line, the server or the ledger: only the contract's messages and the pure domain.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # published without types
from grpc_status import rpc_status  # type: ignore[import-untyped]  # published without types

from availability.client_errors import ClientError, Retry, SequenceGapError
from availability.client_snapshots import SnapshotCalls
from availability.delta_sender import UNACKED_BATCHES, Acked, DeltaCall, DeltaSender
from availability.domain.uuid7 import UUID7_RANDOM_BYTES, uuid7
from availability.v1 import availability_pb2 as av
from availability.v1 import availability_pb2_grpc as av_grpc
from availability.v1 import exception_pb2 as exc
from availability.v1 import exception_pb2_grpc as exc_grpc
from availability.v1 import policy_pb2_grpc as pol_grpc
from availability.v1 import reservation_pb2 as res
from availability.v1 import reservation_pb2_grpc as res_grpc
from availability.v1 import stock_pb2 as stk
from availability.v1 import stock_pb2_grpc as stk_grpc
from availability.v1.common_pb2 import RequestedLine

__all__ = ["Acked", "Client", "ClientError", "DeltaSender", "Retry", "SequenceGapError"]

TIMEOUT_S = 5.0
WATCH_S = 3600.0
"""Longest life of one watch call; the iterator then resumes where it was."""
DELTA_STREAM = "/availability.v1.StockService/StreamDeltas"
DELTA_STREAM_S = 3600.0
"""Longest life of one StreamDeltas call; the sender then reconnects and goes on."""
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

Q = TypeVar("Q", bound=Message)
Q_contra = TypeVar("Q_contra", bound=Message, contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class UnaryMethod(Protocol[Q_contra, R_co]):
    """A generated stub's unary method."""

    def __call__(
        self,
        request: Q_contra,
        timeout: float | None = None,
        metadata: Any = None,  # grpc's metadata type is private to its stubs
    ) -> R_co: ...


class Client(SnapshotCalls):
    """A connection to one server; safe to share between threads.

    ``token`` is sent as a bearer token with every call; without ``tls_ca`` (PEM file) the connection is plain
    text, which belongs on a loopback interface or behind a proxy that encrypts. ``tls_cert`` and ``tls_key`` (PEM
    files) are what to show to a server that wants a certificate of its clients. Raises ValueError for half a pair, or
    a pair without ``tls_ca``.
    """

    def __init__(
        self,
        target: str,
        token: str | None = None,
        tls_ca: Path | None = None,
        timeout_s: float = TIMEOUT_S,
        *,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if (tls_cert is None) != (tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        if tls_cert is not None and tls_ca is None:
            raise ValueError("tls_cert needs tls_ca: a certificate is not shown to just anybody")
        self.target = target
        self.timeout_s = timeout_s
        self.retry = retry or Retry()
        self._sleep = sleep
        self._random = random.Random()
        self._closed = False
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.enable_retries", 0),  # ours know the deadline and the request_id
        ]
        if tls_ca is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            credentials = grpc.ssl_channel_credentials(
                tls_ca.read_bytes(),
                private_key=tls_key.read_bytes() if tls_key is not None else None,
                certificate_chain=tls_cert.read_bytes() if tls_cert is not None else None,
            )
            self._channel = grpc.secure_channel(target, credentials, options)
        self.availability = av_grpc.AvailabilityServiceStub(self._channel)
        self.reservations = res_grpc.ReservationServiceStub(self._channel)
        self.stock = stk_grpc.StockServiceStub(self._channel)
        self.policies = pol_grpc.PolicyServiceStub(self._channel)
        self.exceptions = exc_grpc.ExceptionServiceStub(self._channel)
        self._delta_stream: Callable[..., DeltaCall] = self._channel.stream_stream(
            DELTA_STREAM,
            request_serializer=None,
            response_deserializer=stk.StreamDeltasResponse.FromString,
            _registered_method=True,  # type: ignore[call-arg]  # as generated stubs do
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls under way and later ones fail: CANCELLED. Any thread may call."""
        self._closed = True
        self._channel.close()

    def new_request_id(self) -> str:
        """Return a fresh UUIDv7."""
        return uuid7(time.time_ns() // 1_000_000, os.urandom(UUID7_RANDOM_BYTES))

    def call(self, method: UnaryMethod[Q, R_co], request: Q, *, timeout_s: float | None = None) -> R_co:
        """Call a stub's unary method: ``client.call(client.policies.SetNode, SetNodeRequest(...))``.

        An empty request_id is filled in place, once, so that calling again with the same message is a replay.
        ``timeout_s`` is the deadline of all attempts together. Raises ClientError.
        """
        if getattr(request, "request_id", None) == "":
            setattr(request, "request_id", self.new_request_id())  # noqa: B010 - Message itself has no such field
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        attempt = 0
        while True:
            left_s = deadline - time.monotonic()
            try:
                return method(request, timeout=max(left_s, 0.001), metadata=self._metadata)
            except grpc.RpcError as error:
                attempt += 1
                failure, wait_s = self.read_error(error)
                if failure.code == failure.reason == "CANCELLED" and not self._closed:
                    wait_s = 0.0  # nobody here gave it up: a server that is being stopped did
                if wait_s is None or attempt >= self.retry.attempts_max:
                    raise failure from None
                wait_s = max(wait_s, self.backoff_s(attempt))
                if time.monotonic() + wait_s >= deadline:
                    raise failure from None
                self._sleep(wait_s)
            except ValueError:  # grpc's word for a channel that was closed
                if not self._closed:
                    raise
                raise ClientError("CANCELLED", "CANCELLED", "the client is closed") from None

    def pages(
        self, method: Callable[..., Iterable[R_co]], request: Message, *, timeout_s: float
    ) -> Iterator[R_co]:
        """Yield what a method answers in pages: ``client.pages(client.stock.ReadPositions, request)``.

        Nothing is sent again: the caller knows whether it can begin anew. Raises ClientError.
        """
        try:
            yield from method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self.read_error(error)[0] from None

    def backoff_s(self, attempt: int) -> float:
        """Return a jittered wait before the next attempt (full jitter above half of an exponential step)."""
        step = min(self.retry.backoff_max_s, self.retry.backoff_s * 2.0 ** min(attempt - 1, 30))
        return step * (0.5 + self._random.random() / 2)

    def read_error(self, error: grpc.RpcError) -> tuple[ClientError, float | None]:
        """Return the failure and, where sending again may help, the least wait (s) that the server asks.

        A failure without a reason of the server's own names the target among its facts.
        """
        code = error.code().name
        message = error.details() or "no further word from the server"
        reason, facts, wait_s = "", dict[str, str](), 0.0
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason, facts = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                wait_s = retry.retry_delay.ToTimedelta().total_seconds()
        failure = ClientError(code, reason or code, message, facts if reason else {"target": self.target})
        # gRPC itself says RESOURCE_EXHAUSTED of a message that is too large: only the server's own word is
        # worth a retry.
        again = code == "UNAVAILABLE" or (code == "RESOURCE_EXHAUSTED" and reason != "")
        return failure, wait_s if again else None

    # --- Reads ------------------------------------------------------------------------------------------

    def get(
        self,
        channel: str,
        sku: str,
        *,
        include_nodes: bool = False,
        min_version: str = "",
        strong: bool = False,
    ) -> av.Availability:
        """Return what a channel can sell of one sku."""
        request = av.GetAvailabilityRequest(
            channel=channel, sku=sku, include_nodes=include_nodes, min_version=min_version, strong=strong
        )
        return self.call(self.availability.GetAvailability, request).availability

    def batch_get(
        self, channel: str, skus: Sequence[str], *, min_version: str = "", strong: bool = False
    ) -> av.BatchGetAvailabilityResponse:
        """Return packed columns for up to 5,000 skus, in their order."""
        request = av.BatchGetAvailabilityRequest(
            channel=channel, skus=skus, min_version=min_version, strong=strong
        )
        return self.call(self.availability.BatchGetAvailability, request)

    def explain(self, channel: str, sku: str) -> av.ExplainAvailabilityResponse:
        """Return every term of the formula behind one answer."""
        request = av.ExplainAvailabilityRequest(channel=channel, sku=sku)
        return self.call(self.availability.ExplainAvailability, request)

    def watch(
        self,
        channel: str,
        skus: Sequence[str] = (),
        *,
        resume_version: str = "",
        thresholds: bool = False,
        opened: Callable[[grpc.Call], None] | None = None,
    ) -> Iterator[av.WatchAvailabilityResponse]:
        """Yield the current values, then each change; every sku where none is named.

        With ``thresholds`` each crossing of the channel's low stock threshold comes too.

        Resumes after a lost connection. ``opened`` is given each call as it starts; ``cancel()`` on it ends
        the iterator. Raises ClientError after ``retry.attempts_max`` attempts in a row without a message.
        """

        def start(version: str) -> Any:  # Any: a grpc call that yields messages
            request = av.WatchAvailabilityRequest(
                channel=channel,
                skus=skus,
                all=not skus,
                resume_version=version,
                thresholds=thresholds,
            )
            return self.availability.WatchAvailability(request, timeout=WATCH_S, metadata=self._metadata)

        return self._followed(start, resume_version, lambda message: message.as_of.version, opened)

    def _followed(
        self,
        start: Callable[[str], Any],  # Any: a grpc call that yields messages
        resume_version: str,
        version_of: Callable[[Any], str],  # Any: one of these messages
        opened: Callable[[grpc.Call], None] | None,
    ) -> Iterator[Any]:
        """Yield a stream's messages; start it again where it was after a lost connection."""
        attempt = 0
        while True:
            call = start(resume_version)
            if opened is not None:
                opened(call)
            try:
                for message in call:
                    attempt = 0
                    resume_version = version_of(message) or resume_version
                    yield message
            except grpc.RpcError as error:
                failure, wait_s = self.read_error(error)
                if failure.code == "CANCELLED":
                    return
                if failure.reason == "VERSION_LOST" and resume_version:
                    resume_version, wait_s = "", 0.0
                if failure.code == "DEADLINE_EXCEEDED":
                    wait_s = 0.0
                attempt += 1
                if wait_s is None or attempt >= self.retry.attempts_max:
                    raise failure from None
                self._sleep(max(wait_s, self.backoff_s(attempt)))
            else:  # the server drains: go on with another one
                attempt += 1
                self._sleep(self.backoff_s(attempt))
            finally:
                call.cancel()

    # --- Exceptions -------------------------------------------------------------------------------------

    def list_exceptions(
        self,
        *,
        categories: Sequence[exc.ExceptionCategory.ValueType] = (),
        state: exc.ExceptionState.ValueType = exc.EXCEPTION_STATE_UNSPECIFIED,
    ) -> list[exc.Exception]:
        """Return what is wrong, the most severe first: all pages, of these categories; open ones without ``state``."""
        found: list[exc.Exception] = []
        page_token = ""
        while True:
            request = exc.ListExceptionsRequest(
                categories=categories, state=state, page_size=1_000, page_token=page_token
            )
            page = self.call(self.exceptions.ListExceptions, request)
            found += page.exceptions
            page_token = page.next_page_token
            if not page_token:
                return found

    def acknowledge_exception(
        self, exception_id: str, note: str = "", *, request_id: str = ""
    ) -> exc.AcknowledgeExceptionResponse:
        """Say that the caller has an exception in hand."""
        request = exc.AcknowledgeExceptionRequest(request_id=request_id, exception_id=exception_id, note=note)
        return self.call(self.exceptions.AcknowledgeException, request)

    def report_exceptions(
        self,
        source: str,
        wrong: Iterable[exc.ReportedException] = (),
        over: Iterable[exc.ReportedException] = (),
    ) -> exc.ReportExceptionsResponse:
        """Tell what is wrong for a source, and what is over, as this program sees it; 100 of each at most."""
        request = exc.ReportExceptionsRequest(source=source, wrong=wrong, over=over)
        return self.call(self.exceptions.ReportExceptions, request)

    def watch_exceptions(
        self,
        *,
        categories: Sequence[exc.ExceptionCategory.ValueType] = (),
        resume_version: str = "",
        opened: Callable[[grpc.Call], None] | None = None,
    ) -> Iterator[exc.WatchExceptionsResponse]:
        """Yield what is open, then what is opened, changed, acknowledged or resolved; resumes like ``watch``."""

        def start(version: str) -> Any:  # Any: a grpc call that yields messages
            request = exc.WatchExceptionsRequest(categories=categories, resume_version=version)
            return self.exceptions.WatchExceptions(request, timeout=WATCH_S, metadata=self._metadata)

        return self._followed(start, resume_version, lambda message: message.version, opened)

    # --- Reservations -----------------------------------------------------------------------------------

    def reserve(
        self,
        channel: str,
        lines: Mapping[str, int],
        *,
        hold_s: float,
        order_source: str = "",
        order_ref: str = "",
        allow_partial: bool = False,
        node: str = "",
        request_id: str = "",
    ) -> res.CreateReservationResponse:
        """Hold units of each sku (sku → quantity) until the hold ends; INSUFFICIENT_STOCK is an answer."""
        request = res.CreateReservationRequest(
            request_id=request_id,
            channel=channel,
            lines=[RequestedLine(sku=sku, quantity=quantity) for sku, quantity in lines.items()],
            order_source=order_source,
            order_ref=order_ref,
            allow_partial=allow_partial,
            node=node,
        )
        request.hold_duration.FromMilliseconds(round(hold_s * 1000))
        return self.call(self.reservations.CreateReservation, request)

    def extend(
        self, reservation_id: str, *, hold_s: float, request_id: str = ""
    ) -> res.ExtendReservationResponse:
        """Move the deadline to ``hold_s`` from now."""
        request = res.ExtendReservationRequest(request_id=request_id, reservation_id=reservation_id)
        request.hold_duration.FromMilliseconds(round(hold_s * 1000))
        return self.call(self.reservations.ExtendReservation, request)

    def commit(
        self, reservation_id: str, order_ref: str = "", *, order_source: str = "", request_id: str = ""
    ) -> res.CommitReservationResponse:
        """Turn a hold into an order's commitment."""
        request = res.CommitReservationRequest(
            request_id=request_id,
            reservation_id=reservation_id,
            order_source=order_source,
            order_ref=order_ref,
        )
        return self.call(self.reservations.CommitReservation, request)

    def release(
        self,
        reservation_id: str,
        lines: Mapping[str, int] | None = None,
        *,
        reason: str = "",
        request_id: str = "",
    ) -> res.ReleaseReservationResponse:
        """Give back all units, or those of the named lines (sku → quantity); ``reason`` goes into the log."""
        request = res.ReleaseReservationRequest(
            request_id=request_id,
            reservation_id=reservation_id,
            reason=reason,
            lines=[RequestedLine(sku=sku, quantity=quantity) for sku, quantity in (lines or {}).items()],
        )
        return self.call(self.reservations.ReleaseReservation, request)

    def get_reservation(self, reservation_id: str) -> res.Reservation:
        """Return a reservation as it is now."""
        request = res.GetReservationRequest(reservation_id=reservation_id)
        return self.call(self.reservations.GetReservation, request).reservation

    # --- Stock ------------------------------------------------------------------------------------------

    def apply_deltas(self, source: str, deltas: Iterable[stk.Delta]) -> stk.ApplyDeltasResponse:
        """Apply up to 5,000 deltas of one source in order; each has its own result."""
        request = stk.ApplyDeltasRequest(source=source, deltas=deltas)
        return self.call(self.stock.ApplyDeltas, request)

    def get_order(self, order_source: str, order_ref: str) -> stk.GetOrderResponse:
        """Return what the ledger knows of an order, told under any of its names. Errors: ORDER_NOT_FOUND."""
        request = stk.GetOrderRequest(order_source=order_source, order_ref=order_ref)
        return self.call(self.stock.GetOrder, request)

    def last_sequences(self, source: str) -> dict[str, int]:
        """Return stream → last settled number: a source goes on with the next one."""
        answer = self.call(self.stock.ListStreams, stk.ListStreamsRequest(source=source))
        return {stream.stream: stream.last_sequence for stream in answer.streams}

    def delta_sender(
        self,
        source: str,
        *,
        acked: Callable[[Acked], None] | None = None,
        unacked_batches_max: int = UNACKED_BATCHES,
        stopped: Callable[[], bool] = lambda: False,
    ) -> DeltaSender:
        """Open a stream of deltas of one source."""
        return DeltaSender(
            self, source, acked=acked, unacked_batches_max=unacked_batches_max, stopped=stopped
        )

    def open_delta_stream(self, requests: Iterator[bytes]) -> DeltaCall:
        """Start one StreamDeltas call of encoded requests; prefer ``delta_sender``, which reconnects."""
        return self._delta_stream(requests, timeout=DELTA_STREAM_S, metadata=self._metadata)
