"""The methods that gRPC is given: unary ones, streams, and what they share.

What a unary call passes is `grpc_unary`, in that module's order; streams pass the same here, and prove who they are
again with each message. Unary RPCs are registered as if they were streams (the wire is the same) and their messages
are decoded by us: who is refused has cost no decoding, and a malformed message is INVALID_REQUEST.

No business rule belongs here. The RPCs and their scopes are in `rpcs`, threads in `pool`, refusals under load
in `admission`, statuses in `failures`; the server that listens is `grpc_adapter`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from availability.domain.errors import Reason, ServiceError
from availability.service import grpc_early
from availability.service.admission import Admission
from availability.service.auth import Authenticator, Principal
from availability.service.bounds import refuse_outside
from availability.service.context import CallContext
from availability.service.failures import as_service_error, grpc_status, overloaded
from availability.service.grpc_request import NO_DEADLINE_S, check_scope, decoded, only, scan, traceparent
from availability.service.grpc_unary import CallObserver, Handler, Opened, UnaryMethod, UnaryParts
from availability.service.later import Answers
from availability.service.pool import LendingPool
from availability.service.rate import LIMITED
from availability.service.rpcs import Rpc

STREAMS_MAX_DEFAULT = 64
SPARE_STREAM_THREADS = 2
"""For those that are refused: they need a thread to be told."""
MESSAGE_WAIT_S = 5.0
"""How long a call may be open without sending its message; then it is cancelled."""
MESSAGE_WATCH_INTERVAL_S = 0.5

Behaviour = Callable[..., Any]  # Any: (requests, context), or the context alone where the message comes later


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
    """Makes the methods of one server."""

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
        self._channel_of = channel_of
        self._authenticator = authenticator
        self._authenticate = authenticator.principal
        self._admission = admission
        self._options = options
        self._metrics = metrics
        self._own_pools: list[ThreadPoolExecutor] = []
        self._silent: Opened = {}
        self._unary_parts = UnaryParts(
            pool=pool,
            answers=Answers(pool),
            admission=admission,
            identify=self._principal,
            channel_of=channel_of,
            silent=self._silent,
            default_deadline_s=options.default_deadline_ms / 1000,
            deadline_s_max=options.deadline_ms_max / 1000,
        )
        self._ended = threading.Event()
        self.draining = False

    def method(
        self, rpc: Rpc, descriptor: MethodDescriptor, handler: Handler
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what gRPC calls for an RPC."""
        decode: Callable[[bytes], Message] = GetMessageClass(descriptor.input_type).FromString
        encode: Callable[[Message], bytes] = GetMessageClass(descriptor.output_type).SerializeToString
        if not rpc.streams:
            observe = self._metrics.observer(rpc.path)
            unary = UnaryMethod(
                rpc, handler, decode=decode, encode=encode, observe=observe, parts=self._unary_parts
            )
            if grpc_early.AVAILABLE:
                return grpc_early.unary(self._traced(rpc.path, unary.open))
            return grpc.stream_unary_rpc_method_handler(self._traced(rpc.path, unary.wait))
        limit = self._options.streams_max.get(rpc.method, STREAMS_MAX_DEFAULT)
        return self.limited(rpc.method, self._stream(rpc, handler, decode, encode), limit, rpc.path)

    def _traced(self, path: str, behaviour: Behaviour) -> Behaviour:
        """Return a method with a span around each call; the method as it is where nobody traces."""
        if self._tracing is None:
            return behaviour
        began = self._tracing.began

        def traced(*arguments: Any) -> Any:  # Any: as gRPC calls it, the context last
            grpc_context = arguments[-1]
            ended = began(path, traceparent(grpc_context.invocation_metadata()))
            if ended is not None:
                end = ended

                def tell() -> None:
                    code = grpc_context.code()
                    end("OK" if code is None else code.name)

                if not grpc_context.add_callback(tell):
                    end("CANCELLED")
            return behaviour(*arguments)

        return traced

    def watch_silent(self) -> None:
        """Cancel calls that were opened and sent nothing; run it on a thread of its own."""
        while not self._ended.wait(MESSAGE_WATCH_INTERVAL_S):
            since = time.monotonic() - MESSAGE_WAIT_S
            for grpc_context, began in list(self._silent.values()):
                if began < since:
                    grpc_context.cancel()

    def _stream(
        self,
        rpc: Rpc,
        handler: Handler,
        decode: Callable[[bytes], Message],
        encode: Callable[[Message], bytes],
    ) -> Behaviour:
        def behaviour(requests: Iterator[bytes], grpc_context: grpc.ServicerContext) -> Iterator[bytes]:
            authorization, correlation_id = scan(grpc_context.invocation_metadata())

            def check() -> Principal:
                principal = self._principal(authorization, grpc_context)
                check_scope(principal, rpc)
                return principal

            def within(principal: Principal, raw: bytes) -> Message:
                message = decoded(decode, raw)
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
                _, correlation_id = scan(grpc_context.invocation_metadata())
                failure = as_service_error(error, method=path or name, correlation_id=correlation_id)
                code = failure.reason.code.value
            finally:
                if held:
                    slots.release()
                observe(code, time.perf_counter() - started)
            if failure is not None:
                grpc_context.abort_with_status(grpc_status(failure))

        grpc_early.on_own_pool(stream, self.own_pool(name, streams_max + SPARE_STREAM_THREADS))
        return grpc.stream_stream_rpc_method_handler(stream)

    def identify(self, grpc_context: grpc.ServicerContext) -> Principal:
        """Return who calls, whatever the scopes."""
        return self._principal(scan(grpc_context.invocation_metadata())[0], grpc_context)

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
