"""What every call passes between gRPC and its handler: one short pipeline, one closure per method.

authentication and scope → deadline → admission → request message → handler → errors → metrics. The message
is read last on purpose: whoever is refused has cost no decoding, and a client that opens calls and sends
nothing holds no thread before it has shown a token. That is why unary RPCs are registered as if the client
streamed (the wire is the same), and why decoding and encoding happen here: a malformed message is then
INVALID_REQUEST.

No business rule belongs here. The RPCs and their scopes are in `rpcs`, threads in `pool`, refusals under load
in `admission`, statuses in `failures`; the server that listens is `grpc_adapter`.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import _server as _grpc_server

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.limits import REFERENCE_BYTES_MAX
from availability.service.admission import Admission
from availability.service.auth import Authenticator, Principal
from availability.service.bounds import refuse_outside
from availability.service.context import CallContext
from availability.service.failures import as_service_error, grpc_status, overloaded
from availability.service.later import Answers, Later
from availability.service.pool import LendingPool
from availability.service.rate import LIMITED
from availability.service.rpcs import Rpc

NO_DEADLINE_S = 1e8
"""gRPC tells a call without a deadline as one that ends in centuries."""
STREAMS_MAX_DEFAULT = 64
SPARE_STREAM_THREADS = 2
"""For those that are refused: they need a thread to be told."""
MESSAGE_WAIT_S = 5.0
"""How long a call may hold a thread without sending its message; then it is cancelled."""
MESSAGE_WATCH_INTERVAL_S = 0.5
DEFERRING = callable(getattr(_grpc_server, "_status", None))
"""Whether this grpc lets a write's answer be sent without a thread that waits for it; else writes wait."""
_TRACEPARENT = re.compile(r"\A[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-|\Z)")

Handler = Callable[[Any, CallContext], Any]  # Any: messages of 30 types; the table pairs them with handlers
CallObserver = Callable[[str, float], None]
Behaviour = Callable[..., Any]  # Any: (requests, context), and where it answers later, how


class CallMetrics(Protocol):
    """Counts calls: `observer` is asked once per method, its answer called with (code, seconds) per call."""

    def observer(self, method: str, *, timed: bool = True) -> CallObserver:
        """Return what counts one ended call of the method; `timed` not, where it is a stream."""
        ...


class Tracing(Protocol):
    """Makes spans of calls."""

    def began(self, path: str, traceparent: str) -> Callable[[str], None] | None:
        """Begin a call's span; return what ends it, given the code's name; None where it is not sampled."""
        ...


class NoMetrics:
    """Counts nothing."""

    def observer(self, method: str, *, timed: bool = True) -> CallObserver:
        """Return a function that does nothing."""
        return lambda _code, _seconds: None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What an operator sets of the transport."""

    address: str
    default_deadline_ms: int = 10_000
    deadline_ms_max: int = 60_000
    calls_max: int = 4_096  # in flight in all; beyond it gRPC refuses without looking, commits too
    streams_max: Mapping[str, int] = field(default_factory=dict)  # by method name; others 64
    message_bytes_max: int = 4 * 1024 * 1024
    reuse_port: bool = True
    reflection: bool = False
    client_certificates: bool = False  # clients show some: an entry of the token file may name one


class Pipeline:
    """What every call passes. One closure per method, so that a call looks up nothing that start-up knows."""

    def __init__(
        self,
        *,
        pool: LendingPool,
        authenticator: Authenticator,
        admission: Admission,
        options: ServerOptions,
        metrics: CallMetrics,
        channel_of: Callable[[str], str | None],
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._pool = pool
        self._channel_of = channel_of
        self._authenticator = authenticator
        self._authenticate = authenticator.principal
        self._admission = admission
        self._options = options
        self._metrics = metrics
        self._answers = Answers(pool)
        self._own_pools: list[ThreadPoolExecutor] = []
        self._silent: dict[int, tuple[grpc.ServicerContext, float]] = {}
        self._ended = threading.Event()
        self.draining = False

    def method(
        self, rpc: Rpc, descriptor: MethodDescriptor, handler: Handler
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what gRPC calls for an RPC."""
        decode: Callable[[bytes], Message] = GetMessageClass(descriptor.input_type).FromString
        encode: Callable[[Message], bytes] = GetMessageClass(descriptor.output_type).SerializeToString
        if not rpc.streams:
            if DEFERRING and rpc.service == "ReservationService":
                deferring = self._traced(rpc.path, self._deferring(rpc, handler, decode, encode))
                return grpc.stream_stream_rpc_method_handler(deferring)
            unary = self._traced(rpc.path, self._unary(rpc, handler, decode, encode))
            return grpc.stream_unary_rpc_method_handler(unary)
        limit = self._options.streams_max.get(rpc.method, STREAMS_MAX_DEFAULT)
        return self.limited(rpc.method, self._stream(rpc, handler, decode, encode), limit, rpc.path)

    def _unary(
        self,
        rpc: Rpc,
        handler: Handler,
        decode: Callable[[bytes], Message],
        encode: Callable[[Message], bytes],
    ) -> Behaviour:
        path = rpc.path
        observe = self._metrics.observer(path)
        run = self._begun(rpc, handler, decode)
        clock = time.perf_counter

        def behaviour(requests: Iterator[bytes], grpc_context: grpc.ServicerContext) -> bytes:
            started = clock()
            correlation_id = ""
            try:
                authorization, correlation_id = _scan(grpc_context.invocation_metadata())
                result = run(authorization, correlation_id, requests, grpc_context)
                response = encode(result.result() if isinstance(result, Later) else result)
            except grpc.RpcError:  # the caller left before its message came; gRPC knows
                observe("CANCELLED", clock() - started)
                raise
            except Exception as error:
                failure = as_service_error(error, method=path, correlation_id=correlation_id)
            else:
                observe("OK", clock() - started)
                return response
            observe(failure.reason.code.value, clock() - started)
            grpc_context.abort_with_status(grpc_status(failure))
            raise AssertionError  # abort has raised

        return behaviour

    def _traced(self, path: str, behaviour: Behaviour) -> Behaviour:
        """Return a method with a span around each call; the method as it is where nobody traces."""
        if self._tracing is None:
            return behaviour
        began = self._tracing.began

        def traced(requests: Iterator[bytes], grpc_context: Any, *more: Any) -> Any:  # Any: as gRPC calls it
            ended = began(path, _traceparent(grpc_context.invocation_metadata()))
            if ended is not None:
                end = ended

                def tell() -> None:
                    code = grpc_context.code()
                    end("OK" if code is None else code.name)

                if not grpc_context.add_callback(tell):
                    end("CANCELLED")
            return behaviour(requests, grpc_context, *more)

        traced.__dict__.update(behaviour.__dict__)  # how gRPC is to run it
        return traced

    def _begun(
        self, rpc: Rpc, handler: Handler, decode: Callable[[bytes], Message]
    ) -> Callable[[str, str, Iterator[bytes], grpc.ServicerContext], Any]:
        """Return what every unary call does up to its handler's answer; ServiceError where it is refused."""
        scope, call_class = rpc.scope, rpc.call_class
        authenticate, admit, queue_wait_s = self._authenticate, self._admission.check, self._pool.queue_wait_s
        blocking = self._blocking(rpc)
        default_s, max_s = self._options.default_deadline_ms / 1000, self._options.deadline_ms_max / 1000
        monotonic = time.monotonic
        silent = self._silent
        certificates, by_certificate = self._options.client_certificates, self._by_certificate
        limited = call_class in LIMITED
        method, channel_of = rpc.method, self._channel_of

        def run(
            authorization: str,
            correlation_id: str,
            requests: Iterator[bytes],
            grpc_context: grpc.ServicerContext,
        ) -> Any:
            if certificates and not authorization:
                principal = by_certificate(grpc_context)
            else:
                principal = authenticate(authorization)
            if scope not in principal.scopes:
                raise _denied(principal, rpc)
            remaining_s = grpc_context.time_remaining()
            if remaining_s > max_s:
                remaining_s = default_s if remaining_s > NO_DEADLINE_S else max_s
            elif remaining_s <= 0:
                raise ServiceError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the call began")
            if limited and principal.bucket is not None:
                refusal = principal.bucket.take()
                if refusal is not None:
                    raise overloaded(refusal)
            queue_wait_ms = queue_wait_s() * 1000
            overload = admit(call_class, queue_wait_ms)
            if overload is not None:
                raise overloaded(overload)
            context = CallContext(
                principal,
                monotonic() + remaining_s,
                correlation_id,
                queue_wait_ms,
                blocking,
                partial(_has_ended, grpc_context),
                grpc_context.add_callback,
            )
            silent[id(grpc_context)] = (grpc_context, monotonic())
            try:
                message = only(requests)
            finally:
                del silent[id(grpc_context)]
            request = _decoded(decode, message)
            if principal.bounds is not None:
                with context.blocking():
                    refuse_outside(principal.bounds, principal.id, method, request, channel_of)
            return handler(request, context)

        return run

    def watch_silent(self) -> None:
        """Cancel calls that were opened and sent nothing; run it on a thread of its own."""
        while not self._ended.wait(MESSAGE_WATCH_INTERVAL_S):
            since = time.monotonic() - MESSAGE_WAIT_S
            for grpc_context, began in list(self._silent.values()):
                if began < since:
                    grpc_context.cancel()

    def _deferring(
        self,
        rpc: Rpc,
        handler: Handler,
        decode: Callable[[bytes], Message],
        encode: Callable[[Message], bytes],
    ) -> Callable[..., None]:
        """Like `_unary`, but an answer that is owed (`Later`) holds no thread: it is sent when it comes."""
        observe = self._metrics.observer(rpc.path)
        run = self._begun(rpc, handler, decode)
        clock, answers = time.perf_counter, self._answers

        def behaviour(
            requests: Iterator[bytes], grpc_context: grpc.ServicerContext, _send: Callable[[Any], None]
        ) -> None:
            started = clock()
            correlation_id = ""

            def answer(result: Any) -> None:
                try:
                    response = encode(result.result() if isinstance(result, Later) else result)
                except Exception as error:
                    fail(error)
                else:
                    observe("OK", clock() - started)
                    _send_status(grpc_context, response)

            def fail(error: Exception) -> None:
                failure = as_service_error(error, method=rpc.path, correlation_id=correlation_id)
                observe(failure.reason.code.value, clock() - started)
                status = grpc_status(failure)
                grpc_context.set_code(status.code)
                grpc_context.set_details(status.details)
                grpc_context.set_trailing_metadata(status.trailing_metadata)
                _send_status(grpc_context, None)

            try:
                authorization, correlation_id = _scan(grpc_context.invocation_metadata())
                result = run(authorization, correlation_id, requests, grpc_context)
            except grpc.RpcError:  # the caller left before its message came; gRPC knows
                observe("CANCELLED", clock() - started)
                _send_status(grpc_context, None)
            except Exception as error:
                fail(error)
            else:
                if isinstance(result, Later):
                    result.on_done(lambda: answers.put(answer, result))
                else:
                    answer(result)

        behaviour.experimental_non_blocking = True  # type: ignore[attr-defined]  # grpc reads it off the function
        return behaviour

    def _stream(
        self,
        rpc: Rpc,
        handler: Handler,
        decode: Callable[[bytes], Message],
        encode: Callable[[Message], bytes],
    ) -> Behaviour:
        def behaviour(requests: Iterator[bytes], grpc_context: grpc.ServicerContext) -> Iterator[bytes]:
            authorization, correlation_id = _scan(grpc_context.invocation_metadata())

            def check() -> Principal:
                principal = self._principal(authorization, grpc_context)
                if rpc.scope not in principal.scopes:
                    raise _denied(principal, rpc)
                return principal

            def within(principal: Principal, raw: bytes) -> Message:
                message = _decoded(decode, raw)
                if principal.bounds is not None:
                    refuse_outside(principal.bounds, principal.id, rpc.method, message, self._channel_of)
                return message

            def checked(raw: Iterable[bytes]) -> Iterator[Message]:
                for message in raw:
                    # A stream outlives tokens: a revoked one ends it at the next message, a narrowed one is narrow.
                    context.principal = check()
                    yield within(context.principal, message)

            principal = check()
            if rpc.call_class in LIMITED and principal.bucket is not None:
                refusal = principal.bucket.take()
                if refusal is not None:
                    raise overloaded(refusal)
            overload = self._admission.check(rpc.call_class, 0.0)
            if overload is not None:
                raise overloaded(overload)
            remaining_s = grpc_context.time_remaining()
            context = CallContext(
                principal,
                math.inf if remaining_s > NO_DEADLINE_S else time.monotonic() + remaining_s,
                correlation_id,
                is_cancelled=lambda: self.draining or not grpc_context.is_active(),
                on_end=grpc_context.add_callback,
            )
            argument: Any = checked(requests) if rpc.client_streams else within(principal, only(requests))
            for response in handler(argument, context):
                now = check()
                if now.bounds is not None and not rpc.client_streams:  # bound, perhaps since the stream began
                    refuse_outside(now.bounds, now.id, rpc.method, argument, self._channel_of)
                yield encode(response)

        return behaviour

    def limited(
        self,
        name: str,
        behaviour: Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]],
        streams_max: int,
        path: str = "",
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a streaming method on threads of its own, at most `streams_max` open at once.

        Without threads of its own, as many streams as there are running threads stop every other call.
        """
        slots = threading.BoundedSemaphore(streams_max)
        observe = self._metrics.observer(path or name, timed=False)

        def stream(requests: Iterator[bytes], grpc_context: grpc.ServicerContext) -> Iterator[bytes]:
            started = time.perf_counter()
            code = "CANCELLED"  # as a generator that is closed early ends
            held = slots.acquire(blocking=False)
            failure: ServiceError | None = None
            try:
                if not held:
                    raise ServiceError(
                        Reason.OVERLOADED, f"{streams_max} streams of this kind are open already"
                    )
                yield from behaviour(requests, grpc_context)
                code = "OK"
            except grpc.RpcError:
                raise
            except Exception as error:
                _, correlation_id = _scan(grpc_context.invocation_metadata())
                failure = as_service_error(error, method=path or name, correlation_id=correlation_id)
                code = failure.reason.code.value
            finally:
                if held:
                    slots.release()
                observe(code, time.perf_counter() - started)
            if failure is not None:
                grpc_context.abort_with_status(grpc_status(failure))

        on_own_pool(stream, self.own_pool(name, streams_max + SPARE_STREAM_THREADS))
        return grpc.stream_stream_rpc_method_handler(stream)

    def identify(self, grpc_context: grpc.ServicerContext) -> Principal:
        """Return who calls, whatever the scopes."""
        return self._principal(_scan(grpc_context.invocation_metadata())[0], grpc_context)

    def _principal(self, authorization: str, grpc_context: grpc.ServicerContext) -> Principal:
        if self._options.client_certificates and not authorization:
            return self._by_certificate(grpc_context)
        return self._authenticate(authorization)

    def _by_certificate(self, grpc_context: grpc.ServicerContext) -> Principal:
        """Return who shows a certificate of the clients' authority: TLS has verified it."""
        # Any: typed as a bytes by the stubs; it is a list of them.
        names: Any = grpc_context.auth_context().get("x509_common_name", ())
        found = self._authenticator.principal_of_certificate([name.decode() for name in names])
        return found or self._authenticate("")

    def own_pool(self, name: str, threads_max: int) -> ThreadPoolExecutor:
        """Make a pool for one method; it starts threads as they are needed."""
        pool = ThreadPoolExecutor(threads_max, thread_name_prefix=name)
        self._own_pools.append(pool)
        return pool

    def shutdown(self) -> None:
        """End the threads of the methods' own pools. Those of the calls' pool are its owner's."""
        self._ended.set()
        for pool in self._own_pools:
            pool.shutdown(wait=False)

    def _blocking(self, rpc: Rpc) -> Callable[[], AbstractContextManager[None]]:
        pool, blocked_max = self._pool, self._admission.blocked_max(rpc.call_class)
        return lambda: pool.blocking(blocked_max)


# --- One call ---------------------------------------------------------------------------------------------


def _scan(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[str, str]:
    """Return (authorization, correlation id) of a call's metadata, "" where there is none."""
    authorization = correlation_id = trace_id = ""
    for key, value in metadata or ():
        if key == "authorization":
            authorization = value if isinstance(value, str) else ""
        elif key == "x-correlation-id":
            if len(value) <= REFERENCE_BYTES_MAX and isinstance(value, str) and value.isprintable():
                correlation_id = value
        elif key == "traceparent" and isinstance(value, str):
            found = _TRACEPARENT.match(value)
            trace_id = found[1] if found else ""
    return authorization, correlation_id or trace_id


def _traceparent(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str):
            return value
    return ""


def _denied(principal: Principal, rpc: Rpc) -> ServiceError:
    return ServiceError(
        Reason.PERMISSION_DENIED,
        f"{rpc.method} needs the scope {rpc.scope.value}",
        scope=rpc.scope.value,
        principal=principal.id,
    )


def only(requests: Iterator[bytes]) -> bytes:
    """Return a unary call's message. Raises ServiceError INVALID_REQUEST where there is none."""
    try:
        return next(requests)
    except StopIteration:
        raise invalid("the call has no request message") from None


def _decoded(decode: Callable[[bytes], Message], raw: bytes) -> Message:
    try:
        return decode(raw)
    except DecodeError:
        raise invalid("the request message cannot be decoded") from None


def _has_ended(grpc_context: grpc.ServicerContext) -> bool:
    return not grpc_context.is_active()


# --- What gRPC is told ------------------------------------------------------------------------------------


def _send_status(grpc_context: Any, response: bytes | None) -> None:
    # What grpc's own unary path does when a handler returns, from whatever thread has the answer. Undocumented in
    # grpc 1.85: `DEFERRING` looks for it, and a test holds the installed version to it.
    _grpc_server._status(grpc_context._rpc_event, grpc_context._state, response)


def on_own_pool(behaviour: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    """Let a method run on threads of its own."""
    # Undocumented in grpc 1.85, and only a ThreadPoolExecutor is looked at; a test holds it to that.
    behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]  # grpc reads it off the function
