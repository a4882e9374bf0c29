"""The gRPC adapter over loopback, before empty handlers: who gets through, what the others are told."""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it ships no types
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # it ships no types
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]  # it ships no types
    reflection_pb2,
    reflection_pb2_grpc,
)
from structlog.testing import capture_logs

from availability.domain.errors import Reason, ServiceError
from availability.ledger.errors import LedgerOutOfMemory, LedgerUnreachable
from availability.service.admission import Admission, AdmissionLimits, CallClass
from availability.service.auth import NoAuth, NotLoopback, Scope, TokenStore, add_token, revoke_token
from availability.service.context import CallContext
from availability.service.grpc_adapter import GrpcServer, ServerOptions
from availability.service.health import Health, service_checks
from availability.service.pool import LendingPool
from availability.service.rpcs import RPCS, Rpc, TableMismatch, check_table, contract_services
from availability.service.tls import TlsFileError, TlsFiles, server_credentials
from availability.telemetry import Telemetry
from availability.v1 import availability_pb2, reservation_pb2, stock_pb2

WAIT_S = 10.0
READ = "/availability.v1.AvailabilityService/GetAvailability"
WATCH = "/availability.v1.AvailabilityService/WatchAvailability"
CREATE = "/availability.v1.ReservationService/CreateReservation"
COMMIT = "/availability.v1.ReservationService/CommitReservation"
STREAM = "/availability.v1.StockService/StreamDeltas"


class Handlers:
    """Answers every RPC with an empty message, or as the test says; keeps the contexts that it saw."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any, CallContext], Any]] = {}
        self.contexts: list[CallContext] = []
        self._empty = {
            rpc.handler: (rpc, GetMessageClass(method.output_type)) for rpc, method in check_table().items()
        }

    def __getattr__(self, name: str) -> Callable[[Any, CallContext], Any]:
        if name not in self._empty:
            raise AttributeError(name)

        def handler(request: Any, context: CallContext) -> Any:
            self.contexts.append(context)
            if name in self.answers:
                return self.answers[name](request, context)
            rpc, response = self._empty[name]
            return iter([response()]) if rpc.streams else response()

        return handler


class Running:
    """A started server, its parts, and a channel to it."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.tokens_file = tmp_path / "tokens.json"
        self.tokens = {scope: add_token(self.tokens_file, id=scope.value, scopes=[scope]) for scope in Scope}
        self.clock = 0.0
        self.handlers = Handlers()
        self.commit_queue_length = 0
        self.replica_fresh = self.ledger_reachable = True
        self.pool = LendingPool(running=2, threads_max=options.pop("threads_max", 16))
        self.telemetry = Telemetry()
        self.health = Health(service_checks(lambda: self.replica_fresh, lambda: self.ledger_reachable))
        no_auth = options.pop("no_auth", False)
        limits = options.pop("limits", AdmissionLimits(reads_queue_wait_ms=0, reserves_queue_wait_ms=0))
        credentials = options.pop("credentials", None)
        channel_of = options.pop("channel_of", lambda _: "")
        rate = options.pop("rate", None)
        tracing = options.pop("tracing", None)
        self.server = GrpcServer(
            handlers=dict.fromkeys(contract_services(), self.handlers),
            pool=self.pool,
            authenticator=NoAuth()
            if no_auth
            else TokenStore(self.tokens_file, clock=lambda: self.clock, rate=rate),
            admission=Admission(limits, lambda: self.commit_queue_length),
            health=self.health,
            options=ServerOptions(**{"address": "127.0.0.1:0", **options}),
            metrics=self.telemetry.calls,
            credentials=credentials,
            channel_of=channel_of,
            tracing=tracing,
        )
        self.port = self.server.start()
        # Any: the stubs want types for every method, and these calls send raw bytes.
        self.channel: Any = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def call(
        self,
        path: str,
        request: bytes = b"",
        *,
        scope: Scope | None = None,
        timeout: float = WAIT_S,
        **metadata: str,
    ) -> bytes:
        call = self.channel.unary_unary(path)
        return call(request, metadata=self.metadata(scope, **metadata), timeout=timeout)

    def metadata(self, scope: Scope | None, **more: str) -> list[tuple[str, str]]:
        token = [("authorization", f"Bearer {self.tokens[scope]}")] if scope else []
        return token + [(key.replace("_", "-"), value) for key, value in more.items()]

    def stop(self) -> None:
        self.channel.close()
        self.server.stop()
        self.pool.shutdown()


@contextmanager
def running(tmp_path: Path, **options: Any) -> Iterator[Running]:
    made = Running(tmp_path, **options)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as made:
        yield made


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, int | None]:
    """Return (code, ErrorInfo, RetryInfo in ms or None) of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    details = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    assert len(details) == 1, f"no rich status: {error.code()} {error.details()}"
    status = status_pb2.Status.FromString(details[0])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    retried = len(status.details) > 1 and status.details[1].Unpack(retry)
    assert info.domain == "availability"
    assert status.message == error.details()
    return error.code(), info, retry.retry_delay.ToMilliseconds() if retried else None


# --- The table --------------------------------------------------------------------------------------------


def test_the_table_is_the_contract() -> None:
    """Every RPC of the contract has one row, and no row is beyond it."""
    listed = {(rpc.service, rpc.method) for rpc in check_table()}
    assert listed == {
        (name, method.name) for name, service in contract_services().items() for method in service.methods
    }


@pytest.mark.parametrize(
    ("rpcs", "told"),
    [
        (RPCS[1:], "GetAvailability has no row"),
        ((*RPCS, replace(RPCS[0], method="DropEverything")), "DropEverything is not in the contract"),
        ((*RPCS, replace(RPCS[0], scope=Scope.ADMIN)), "GetAvailability has two rows"),
        ((replace(RPCS[0], server_streams=True), *RPCS[1:]), "streams otherwise"),
    ],
)
def test_a_wrong_table_stops_the_start(rpcs: tuple[Rpc, ...], told: str) -> None:
    """A missing, extra, double or unlike row is named."""
    with pytest.raises(TableMismatch, match=told):
        check_table(rpcs)


def test_a_missing_handler_stops_the_start(tmp_path: Path) -> None:
    """A server that could not answer an RPC does not start."""
    with pytest.raises(TypeError, match="StockService: stream_deltas"):
        GrpcServer(
            handlers={name: object() for name in contract_services()},
            pool=LendingPool(running=1, threads_max=1),
            authenticator=NoAuth(),
            admission=Admission(AdmissionLimits()),
            health=Health({}),
            options=ServerOptions(address="127.0.0.1:0"),
        )


def test_what_is_never_shed_is_said_in_the_table() -> None:
    """Ends of reservations, facts and operators are in classes that admission never refuses."""
    of = {rpc.method: rpc.call_class for rpc in RPCS}
    assert {of[name] for name in ("CommitReservation", "ReleaseReservation", "ExtendReservation")} == {
        CallClass.ORDER
    }
    assert {of[name] for name in ("ApplyDeltas", "StreamDeltas")} == {CallClass.INGEST}
    assert {of[rpc.method] for rpc in RPCS if rpc.service == "PolicyService"} == {CallClass.ADMIN}


# --- Who gets through -------------------------------------------------------------------------------------


def test_every_rpc_with_every_scope(server: Running) -> None:
    """Each RPC answers its own scope only; no token is UNAUTHENTICATED, another scope PERMISSION_DENIED."""
    for rpc in RPCS:
        for scope in (None, *Scope):
            call = (
                server.channel.stream_stream(rpc.path)
                if rpc.streams
                else server.channel.stream_unary(rpc.path)
            )

            def attempt(call: Any = call, scope: Scope | None = scope) -> object:
                answer = call(iter([b""]), metadata=server.metadata(scope), timeout=WAIT_S)
                return list(answer) if not isinstance(answer, bytes) else answer

            if scope is rpc.scope:
                attempt()
                continue
            code, info, _ = failure(attempt)
            if scope is None:
                assert (code, info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), rpc
            else:
                assert (code, info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"), rpc
                assert info.metadata["scope"] == rpc.scope.value
    assert len(server.handlers.contexts) == len(RPCS)  # nobody else reached a handler


def test_who_is_refused_sends_no_message(server: Running) -> None:
    """A caller without a token is told so before it has sent its message, so it cannot hold a thread."""
    never = threading.Event()

    def requests() -> Iterator[bytes]:
        never.wait(WAIT_S)
        yield b""

    code, _, _ = failure(lambda: server.channel.stream_unary(READ)(requests(), timeout=WAIT_S))
    never.set()
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_silent_callers_with_a_token_stop_nobody(server: Running) -> None:
    """Calls that open and send no message lend their threads: others are answered."""
    never = threading.Event()

    def requests() -> Iterator[bytes]:
        never.wait(WAIT_S)
        yield b""

    open_calls = [
        server.channel.stream_unary(READ).future(requests(), metadata=server.metadata(Scope.READ))
        for _ in range(4)
    ]
    for _ in range(5):
        server.call(READ, scope=Scope.READ)
    never.set()
    for call in open_calls:
        call.result(timeout=WAIT_S)


def test_an_unknown_method_is_unimplemented(server: Running) -> None:
    """What no table names is not there, token or not."""
    for path in ("/availability.v1.StockService/DropEverything", "/other.Service/Method"):
        with pytest.raises(grpc.RpcError) as caught:
            server.call(path, scope=Scope.ADMIN)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_without_tokens_everybody_gets_through_on_loopback_only(tmp_path: Path) -> None:
    """no-auth: the anonymous principal may do all; elsewhere such a server is not even built."""
    with running(tmp_path, no_auth=True) as server:
        server.call(READ)
        assert server.handlers.contexts[0].principal.id == "anonymous"
    with pytest.raises(NotLoopback):
        Running(tmp_path, no_auth=True, address="0.0.0.0:0")


# --- What a handler is told -------------------------------------------------------------------------------


def test_a_handler_gets_its_message_and_context(server: Running) -> None:
    """The decoded request, the principal, the deadline on the monotonic clock and the correlation id."""
    seen: list[Any] = []

    def answer(request: object, _: CallContext) -> Any:
        seen.append(request)
        return availability_pb2.GetAvailabilityResponse()

    server.handlers.answers["get_availability"] = answer
    request = availability_pb2.GetAvailabilityRequest(channel="web", sku="A{1}:ü")
    before = time.monotonic()
    server.call(READ, request.SerializeToString(), scope=Scope.READ, timeout=5, x_correlation_id="order 1001")
    [context] = server.handlers.contexts
    assert seen == [request]
    assert context.principal.id == "read"
    assert context.correlation_id == "order 1001"
    assert before + 4 < context.deadline < before + 5.5
    assert 0 <= context.queue_wait_ms < 5_000
    assert context.cancelled()  # the call is over


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ""),
        ({"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}, "ab" * 16),
        ({"traceparent": "00-" + "00" * 16 + "-" + "cd" * 8 + "-01"}, ""),
        ({"traceparent": "nonsense"}, ""),
        ({"x_correlation_id": "x" * 129}, ""),
        ({"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "x_correlation_id": "mine"}, "mine"),
    ],
)
def test_correlation_ids_are_taken_only_when_they_are_sane(
    server: Running, metadata: Mapping[str, str], expected: str
) -> None:
    """The caller's own id first, then the trace's; what is too long or malformed is left out."""
    server.channel.unary_unary(READ)(b"", metadata=server.metadata(Scope.READ, **metadata))
    assert server.handlers.contexts[0].correlation_id == expected


@pytest.mark.parametrize(("timeout_s", "expected_s"), [(None, 3.0), (2.0, 2.0), (100.0, 6.0)])
def test_every_unary_call_has_a_deadline(tmp_path: Path, timeout_s: float | None, expected_s: float) -> None:
    """None given: the default; too long a one: the longest allowed."""
    with running(tmp_path, default_deadline_ms=3_000, deadline_ms_max=6_000) as server:
        before = time.monotonic()
        server.channel.unary_unary(READ)(b"", metadata=server.metadata(Scope.READ), timeout=timeout_s)
        after = time.monotonic()
        deadline = server.handlers.contexts[0].deadline
        assert before + expected_s - 0.5 < deadline < after + expected_s


def test_handlers_that_wait_stop_nobody(server: Running) -> None:
    """Eight writes wait for the ledger; reads are answered meanwhile by the lent slots."""
    gate, waiting = threading.Event(), threading.Semaphore(0)

    def wait(_: object, context: CallContext) -> Any:
        with context.blocking():
            waiting.release()
            gate.wait(WAIT_S)
        return reservation_pb2.CommitReservationResponse()

    server.handlers.answers["commit_reservation"] = wait
    call = server.channel.unary_unary(COMMIT)
    writes = [call.future(b"", metadata=server.metadata(Scope.RESERVE), timeout=WAIT_S) for _ in range(8)]
    for _ in writes:
        assert waiting.acquire(timeout=WAIT_S)
    for _ in range(20):
        server.call(READ, scope=Scope.READ)
    gate.set()
    for write in writes:
        write.result()


# --- What a caller is told --------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_has_its_code_and_facts(server: Running, reason: Reason) -> None:
    """A ServiceError arrives as its canonical code with one ErrorInfo; OVERLOADED brings RetryInfo."""

    def fail(_: object, __: CallContext) -> Any:
        raise ServiceError(reason, "what happened – in words", sku="A 1", retry_after_ms="250")

    server.handlers.answers["get_availability"] = fail
    code, info, retry_ms = failure(lambda: server.call(READ, scope=Scope.READ))
    assert code.name == reason.code.value
    assert info.reason == reason.value
    assert info.metadata["retry_after_ms"] == "250"
    assert retry_ms == (250 if reason is Reason.OVERLOADED else None)


def test_a_bug_is_told_by_an_id_only(server: Running) -> None:
    """INTERNAL, an id that the log has too, and nothing of the exception."""

    def fail(_: object, __: CallContext) -> Any:
        raise KeyError("secret detail")

    server.handlers.answers["get_availability"] = fail
    with capture_logs() as logs:
        code, info, _ = failure(lambda: server.call(READ, scope=Scope.READ))
        _, named, _ = failure(lambda: server.call(READ, scope=Scope.READ, x_correlation_id="mine"))
    assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret detail" not in str(info)
    assert named.metadata["correlation_id"] == "mine"
    assert [log["correlation_id"] for log in logs] == [info.metadata["correlation_id"], "mine"]
    assert isinstance(logs[0]["exc_info"], KeyError)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LedgerUnreachable("10.0.0.1"), Reason.LEDGER_UNREACHABLE),
        (LedgerOutOfMemory("OOM"), Reason.LEDGER_OUT_OF_MEMORY),
    ],
)
def test_failures_of_the_ledger_have_their_reasons(server: Running, error: Exception, reason: Reason) -> None:
    """A handler may let them pass; where the ledger is stays the server's secret."""

    def fail(_: object, __: CallContext) -> Any:
        raise error

    server.handlers.answers["create_reservation"] = fail
    code, info, _ = failure(lambda: server.call(CREATE, scope=Scope.RESERVE))
    assert (code.name, info.reason) == (reason.code.value, reason.value)


def test_bad_messages_are_invalid_requests(server: Running) -> None:
    """Bytes that are no message, or no message at all, are the caller's mistake and never reach a handler."""
    code, info, _ = failure(lambda: server.call(READ, b"\xff\xff", scope=Scope.READ))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    empty = server.channel.stream_unary(READ)
    code, info, _ = failure(lambda: empty(iter([]), metadata=server.metadata(Scope.READ), timeout=WAIT_S))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert server.handlers.contexts == []


def test_long_facts_still_arrive(server: Running) -> None:
    """A status stays within what clients accept as metadata."""

    def fail(_: object, __: CallContext) -> Any:
        raise ServiceError(Reason.INVALID_REQUEST, "x" * 50_000, **{f"k{n}": "y" * 50_000 for n in range(50)})

    server.handlers.answers["get_availability"] = fail
    code, _, _ = failure(lambda: server.call(READ, scope=Scope.READ))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_calls_are_counted_by_method_and_code(server: Running) -> None:
    """Answers, refusals and streams are in availability_rpc_requests_total."""
    server.call(READ, scope=Scope.READ)
    failure(lambda: server.call(READ))
    list(server.channel.unary_stream(WATCH)(b"", metadata=server.metadata(Scope.READ), timeout=WAIT_S))

    def count(method: str, code: str) -> float | None:
        labels = {"method": method, "code": code}
        return server.telemetry.registry.get_sample_value("availability_rpc_requests_total", labels)

    assert count(READ, "OK") == 1
    assert count(READ, "UNAUTHENTICATED") == 1
    assert count(WATCH, "OK") == 1


# --- Under load -------------------------------------------------------------------------------------------


def test_reserves_are_shed_and_commits_are_not(tmp_path: Path) -> None:
    """A long commit queue refuses reserves with RetryInfo, before their handler; commits get through."""
    with running(tmp_path, limits=AdmissionLimits(reserves_commit_queue_max=10)) as server:
        server.commit_queue_length = 25
        code, info, retry_ms = failure(lambda: server.call(CREATE, scope=Scope.RESERVE))
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert retry_ms == 200
        server.call(COMMIT, scope=Scope.RESERVE)
        server.commit_queue_length = 10
        server.call(CREATE, scope=Scope.RESERVE)
        assert len(server.handlers.contexts) == 2


def test_a_class_that_may_not_wait_is_overloaded(tmp_path: Path) -> None:
    """Reads that would wait are refused while too many calls wait; commits may still."""
    gate, waiting = threading.Event(), threading.Event()

    def wait(_: object, context: CallContext) -> Any:
        with context.blocking():
            waiting.set()
            gate.wait(WAIT_S)
        return reservation_pb2.CommitReservationResponse()

    def read(_: object, context: CallContext) -> Any:
        with context.blocking():
            return availability_pb2.GetAvailabilityResponse()

    with running(tmp_path, limits=AdmissionLimits(reads_queue_wait_ms=0, reads_blocked_max=1)) as server:
        server.handlers.answers.update(commit_reservation=wait, get_availability=read)
        server.call(READ, scope=Scope.READ)
        metadata = server.metadata(Scope.RESERVE)
        first = server.channel.unary_unary(COMMIT).future(b"", metadata=metadata, timeout=WAIT_S)
        assert waiting.wait(WAIT_S)
        code, info, retry_ms = failure(lambda: server.call(READ, scope=Scope.READ))
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert retry_ms is not None
        second = server.channel.unary_unary(COMMIT).future(b"", metadata=metadata, timeout=WAIT_S)
        gate.set()
        first.result()
        second.result()


# --- Streams ----------------------------------------------------------------------------------------------


def test_open_streams_never_starve_unary_calls(server: Running) -> None:
    """Two watches and two delta streams stay open, and unary calls are answered by the two threads."""
    gate = threading.Event()

    def watch(_: object, __: CallContext) -> Iterator[Any]:
        yield availability_pb2.WatchAvailabilityResponse()
        gate.wait(WAIT_S)

    def deltas(requests: Iterator[Any], _: CallContext) -> Iterator[Any]:
        for _request in requests:
            yield stock_pb2.StreamDeltasResponse()

    def batches() -> Iterator[bytes]:
        yield b""
        gate.wait(WAIT_S)

    server.handlers.answers.update(watch_availability=watch, stream_deltas=deltas)
    streams = [
        *(server.channel.unary_stream(WATCH)(b"", metadata=server.metadata(Scope.READ)) for _ in range(2)),
        *(
            server.channel.stream_stream(STREAM)(batches(), metadata=server.metadata(Scope.INGEST))
            for _ in range(2)
        ),
    ]
    for stream in streams:
        next(stream)
    for _ in range(20):
        server.call(READ, scope=Scope.READ, timeout=5)
    assert server.pool.threads == 2
    gate.set()
    for stream in streams:
        assert list(stream) == []


def test_a_stream_too_many_is_refused(tmp_path: Path) -> None:
    """Beyond its limit a stream is OVERLOADED at once; a closed one makes room."""
    gate = threading.Event()

    def watch(_: object, __: CallContext) -> Iterator[Any]:
        yield availability_pb2.WatchAvailabilityResponse()
        gate.wait(WAIT_S)

    with running(tmp_path, streams_max={"WatchAvailability": 1}) as server:
        server.handlers.answers["watch_availability"] = watch
        open_watch = server.channel.unary_stream(WATCH)
        first = open_watch(b"", metadata=server.metadata(Scope.READ), timeout=WAIT_S)
        next(first)
        code, info, retry_ms = failure(
            lambda: list(open_watch(b"", metadata=server.metadata(Scope.READ), timeout=WAIT_S))
        )
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert retry_ms is not None
        gate.set()
        assert list(first) == []
        server.handlers.answers.pop("watch_availability")
        assert len(list(open_watch(b"", metadata=server.metadata(Scope.READ), timeout=WAIT_S))) == 1


def test_an_error_within_a_stream_has_its_reason(server: Running) -> None:
    """A malformed batch and a failing handler end the stream with an ErrorInfo, after what was answered."""

    def deltas(requests: Iterator[Any], context: CallContext) -> Iterator[Any]:
        assert context.deadline == math.inf
        for _ in requests:
            yield stock_pb2.StreamDeltasResponse()

    server.handlers.answers["stream_deltas"] = deltas
    stream = server.channel.stream_stream(STREAM)(
        iter([b"", b"\xff"]), metadata=server.metadata(Scope.INGEST)
    )
    next(stream)
    code, info, _ = failure(lambda: next(stream))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


def test_a_revoked_token_ends_its_stream(server: Running) -> None:
    """A stream outlives the second in which a change of the file is seen, but not the next message."""
    more = threading.Semaphore(0)

    def batches() -> Iterator[bytes]:
        while more.acquire(timeout=WAIT_S):
            yield b""

    server.handlers.answers["stream_deltas"] = lambda requests, _: (
        stock_pb2.StreamDeltasResponse() for _ in requests
    )
    stream = server.channel.stream_stream(STREAM)(batches(), metadata=server.metadata(Scope.INGEST))
    more.release()
    next(stream)
    revoke_token(server.tokens_file, "ingest")
    server.clock += 1
    more.release()
    code, _, _ = failure(lambda: next(stream))
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_a_handler_notices_that_its_caller_left(server: Running) -> None:
    """cancelled() turns true and on_end is called, so that a watch ends with its client."""
    ended, entered = threading.Event(), threading.Event()

    def watch(_: object, context: CallContext) -> Iterator[Any]:
        context.on_end(ended.set)
        yield availability_pb2.WatchAvailabilityResponse()
        entered.set()
        ended.wait(WAIT_S)

    server.handlers.answers["watch_availability"] = watch
    stream = server.channel.unary_stream(WATCH)(b"", metadata=server.metadata(Scope.READ))
    next(stream)
    assert entered.wait(WAIT_S)
    stream.cancel()
    assert ended.wait(WAIT_S)
    assert server.handlers.contexts[0].cancelled()


# --- Health, reflection, leaving, encryption --------------------------------------------------------------


def health_of(server: Running, service: str) -> str:
    answer = health_pb2_grpc.HealthStub(server.channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S
    )
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def test_health_is_open_and_told_per_service(server: Running) -> None:
    """No token is needed; reads follow the replica, writes the ledger, the whole both."""
    services = [f"availability.v1.{name}" for name in contract_services()]
    assert {health_of(server, service) for service in ["", *services]} == {"SERVING"}
    server.ledger_reachable = False
    server.health.refresh()
    assert health_of(server, "availability.v1.AvailabilityService") == "SERVING"
    assert health_of(server, "availability.v1.StockService") == "NOT_SERVING"
    assert health_of(server, "") == "NOT_SERVING"
    server.ledger_reachable, server.replica_fresh = True, False
    server.health.refresh()
    assert health_of(server, "availability.v1.AvailabilityService") == "NOT_SERVING"
    assert health_of(server, "availability.v1.ReservationService") == "SERVING"


def test_health_can_be_watched(server: Running) -> None:
    """A watcher gets the status now and each change."""
    name = "availability.v1.StockService"
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(
        health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S
    )
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    server.ledger_reachable = False
    server.health.refresh()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


def test_a_check_that_fails_is_not_serving() -> None:
    """An exception in a check is logged once and means no."""
    health = Health({"a": lambda: True, "b": lambda: bool(1 // 0)})
    with capture_logs() as logs:
        health.refresh()
        health.refresh()
    context: Any = None
    answers = {
        service: health.servicer.Check(health_pb2.HealthCheckRequest(service=service), context).status
        for service in ("a", "b", "")
    }
    assert answers == {"a": 1, "b": 2, "": 2}
    assert len([log for log in logs if log["event"] == "health_check_failed"]) == 1


def test_leaving_says_so_first_and_finishes_open_calls(server: Running) -> None:
    """NOT_SERVING during the notice while calls are still taken; then open calls end, streams are told."""
    gate, entered = threading.Event(), threading.Event()

    def slow(_: object, context: CallContext) -> Any:
        entered.set()
        with context.blocking():
            gate.wait(WAIT_S)
        return reservation_pb2.CommitReservationResponse()

    def watch(_: object, context: CallContext) -> Iterator[Any]:
        yield availability_pb2.WatchAvailabilityResponse()
        while not context.cancelled():
            gate.wait(0.01)

    server.handlers.answers.update(commit_reservation=slow, watch_availability=watch)
    stream = server.channel.unary_stream(WATCH)(b"", metadata=server.metadata(Scope.READ))
    next(stream)
    call = server.channel.unary_unary(COMMIT).future(
        b"", metadata=server.metadata(Scope.RESERVE), timeout=WAIT_S
    )
    assert entered.wait(WAIT_S)
    seen: list[str] = []

    def notice(_: float) -> None:
        seen.append(health_of(server, ""))
        server.call(READ, scope=Scope.READ)
        threading.Timer(0.1, gate.set).start()

    server.server.drain(notice_s=1.0, grace_s=WAIT_S, wait=notice)
    assert seen == ["NOT_SERVING"]
    call.result(timeout=WAIT_S)
    assert list(stream) == []


def test_reflection_needs_any_token_and_a_setting(tmp_path: Path) -> None:
    """Off: not there. On: any scope may ask, nobody else."""
    ask = [reflection_pb2.ServerReflectionRequest(list_services="")]

    def services(server: Running, scope: Scope | None) -> set[str]:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        answers = stub.ServerReflectionInfo(iter(ask), metadata=server.metadata(scope), timeout=WAIT_S)
        return {found.name for answer in answers for found in answer.list_services_response.service}

    with running(tmp_path) as server, pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        services(server, Scope.READ)
    with running(tmp_path, reflection=True) as server:
        assert "availability.v1.StockService" in services(server, Scope.READ)
        code, _, _ = failure(lambda: services(server, None))
        assert code is grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client", "stranger"):
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


def secure_call(server: Running, folder: Path, client: str | None) -> bytes:
    own = [(folder / f"{client}.{kind}").read_bytes() for kind in ("key", "pem")] if client else [None, None]
    credentials = grpc.ssl_channel_credentials((folder / "server.pem").read_bytes(), *own)
    channel: Any
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        return channel.unary_unary(READ)(b"", metadata=server.metadata(Scope.READ), timeout=5)


def test_encrypted_calls_work(tmp_path: Path, certificates: Path) -> None:
    """With a certificate the port speaks TLS only."""
    files = TlsFiles(cert_file=certificates / "server.pem", key_file=certificates / "server.key")
    with running(tmp_path, credentials=server_credentials(files)) as server:
        secure_call(server, certificates, None)
        with pytest.raises(grpc.RpcError):
            server.call(READ, scope=Scope.READ, timeout=2)


def test_mutual_tls_lets_in_only_whom_the_ca_signed(tmp_path: Path, certificates: Path) -> None:
    """With a client CA a caller without its certificate is not heard, token or not."""
    files = TlsFiles(
        cert_file=certificates / "server.pem",
        key_file=certificates / "server.key",
        client_ca_file=certificates / "client.pem",
    )
    with running(tmp_path, credentials=server_credentials(files)) as server:
        secure_call(server, certificates, "client")
        for client in (None, "stranger"):
            with pytest.raises(grpc.RpcError):
                secure_call(server, certificates, client)


def test_certificate_files_are_checked_at_start(tmp_path: Path) -> None:
    """A missing file or a wrong one is named; its content is not."""
    (tmp_path / "k").write_text("not a key")
    with pytest.raises(TlsFileError, match="private key"):
        server_credentials(TlsFiles(cert_file=tmp_path / "c", key_file=tmp_path / "k"))
    with pytest.raises(TlsFileError, match="cannot read"):
        server_credentials(TlsFiles(cert_file=tmp_path / "c", key_file=tmp_path / "missing"))
