"""One unary method, and what each of its calls passes between gRPC and the handler:

authentication and scope → message → deadline → rate → admission → bounds → handler → errors → metrics.

Who has no token is refused by the thread that hears the transport, before anything of the message is taken; a client
that opens calls and sends nothing holds no thread. A handler's answer that is owed (`Later`) holds none either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from availability.domain.errors import Reason, ServiceError
from availability.service import grpc_early
from availability.service.admission import Admission, CallClass
from availability.service.auth import Principal
from availability.service.bounds import refuse_outside
from availability.service.context import CallContext
from availability.service.failures import as_service_error, grpc_status, overloaded
from availability.service.grpc_request import NO_DEADLINE_S, check_scope, decoded, no_message, only, scan
from availability.service.later import Answers, Later
from availability.service.pool import LendingPool
from availability.service.rate import LIMITED
from availability.service.rpcs import Rpc

Handler = Callable[[Any, CallContext], Any]  # Any: messages of 30 types; the table pairs them with handlers
CallObserver = Callable[[str, float], None]
Opened = dict[int, tuple[grpc.ServicerContext, float]]
"""Calls that sent no message yet, and since when on the monotonic clock; by id of their context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryParts:
    """What all unary methods of a server share."""

    pool: LendingPool
    answers: Answers
    admission: Admission
    identify: Callable[[str, grpc.ServicerContext], Principal]
    channel_of: Callable[[str], str | None]
    silent: Opened
    default_deadline_s: float
    deadline_s_max: float


class UnaryMethod:
    """A method. Its calls look up nothing that start-up knows."""

    def __init__(
        self,
        rpc: Rpc,
        handler: Handler,
        *,
        decode: Callable[[bytes], Message],
        encode: Callable[[Message], bytes],
        observe: CallObserver,
        parts: UnaryParts,
    ) -> None:
        self.rpc = rpc
        self.encode = encode
        self.observe = observe
        self.answers = parts.answers
        self.submit = parts.pool.submit
        self._handler = handler
        self._decode = decode
        self._identify = parts.identify
        self._silent = parts.silent
        self._admit = parts.admission.check
        self._queue_wait_s = parts.pool.queue_wait_s
        self._blocking = _blocking(parts.pool, parts.admission.blocked_max(rpc.call_class))
        self._channel_of = parts.channel_of
        self._default_s, self._max_s = parts.default_deadline_s, parts.deadline_s_max
        self._limited = rpc.call_class in LIMITED
        self._class: CallClass = rpc.call_class

    def open(self, context: grpc.ServicerContext) -> None:
        """Begin a call on the thread that hears the transport, and go on when its message is there."""
        call = _Call(self, context)
        try:
            self._know(call)
        except Exception as error:
            call.fail(error)
            return
        self._silent[id(context)] = context, time.monotonic()
        grpc_early.receive(context, call.take)

    def wait(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Do a whole call on one thread, where grpc offers nothing else."""
        call = _Call(self, context)
        try:
            self._know(call)
            self._silent[id(context)] = context, time.monotonic()
            try:
                message = only(requests)
            finally:
                self.heard(context)
            result = self.run(call, message)
            response = self.encode(result.result() if isinstance(result, Later) else result)
        except grpc.RpcError:  # the caller left before its message came; gRPC knows
            call.observe("CANCELLED")
            raise
        except Exception as error:
            context.abort_with_status(call.failed(error))
            raise AssertionError from error  # abort has raised
        call.observe("OK")
        return response

    def heard(self, context: grpc.ServicerContext) -> None:
        """Note that a call is silent no more."""
        self._silent.pop(id(context), None)

    def run(self, call: _Call, message: bytes) -> Any:
        """Return the handler's answer to a message. Raises ServiceError where the call is refused."""
        context, principal = call.context, call.principal
        now = time.monotonic()  # before the rest: a deadline is never later than the caller's
        remaining_s = context.time_remaining()
        if remaining_s > self._max_s:
            remaining_s = self._default_s if remaining_s > NO_DEADLINE_S else self._max_s
        elif remaining_s <= 0:
            raise ServiceError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the call began")
        if self._limited and principal.bucket is not None:
            refusal = principal.bucket.take()
            if refusal is not None:
                raise overloaded(refusal)
        queue_wait_ms = self._queue_wait_s() * 1000
        overload = self._admit(self._class, queue_wait_ms)
        if overload is not None:
            raise overloaded(overload)
        given = CallContext(
            principal,
            now + remaining_s,
            call.correlation_id,
            queue_wait_ms,
            self._blocking,
            partial(_has_ended, context),
            context.add_callback,
        )
        request = decoded(self._decode, message)
        if principal.bounds is not None:
            with given.blocking():
                refuse_outside(principal.bounds, principal.id, self.rpc.method, request, self._channel_of)
        return self._handler(request, given)

    def _know(self, call: _Call) -> None:
        """Learn who calls. Raises ServiceError where nobody may, or not this one."""
        authorization, call.correlation_id = scan(call.context.invocation_metadata())
        call.principal = self._identify(authorization, call.context)
        check_scope(call.principal, self.rpc)


class _Call:
    """One call under way."""

    __slots__ = ("_method", "_started", "context", "correlation_id", "principal")

    principal: Principal

    def __init__(self, method: UnaryMethod, context: grpc.ServicerContext) -> None:
        self.context = context
        self.correlation_id = ""
        self._method = method
        self._started = time.perf_counter()

    def take(self, message: bytes | None) -> None:
        """Have the message worked at on a thread of the pool."""
        method = self._method
        method.heard(self.context)
        try:
            if message is not None:
                method.submit(self._run, message)
            elif self.context.is_active():
                self.fail(no_message())
            else:  # the caller left before its message came; gRPC knows
                self.observe("CANCELLED")
                grpc_early.answer(self.context, None)
        except Exception as error:  # the pool takes nothing any more
            self.fail(error)

    def observe(self, code: str) -> None:
        """Count the call, which has ended."""
        self._method.observe(code, time.perf_counter() - self._started)

    def fail(self, error: Exception) -> None:
        """End the call with the status of an error."""
        status = self.failed(error)
        self.context.set_code(status.code)
        self.context.set_details(status.details)
        self.context.set_trailing_metadata(status.trailing_metadata)
        grpc_early.answer(self.context, None)

    def failed(self, error: Exception) -> Any:  # Any: a grpc.Status, whose fields the stubs do not tell
        """Count the call, which an error has ended; return the status that says so."""
        failure = as_service_error(error, method=self._method.rpc.path, correlation_id=self.correlation_id)
        self.observe(failure.reason.code.value)
        return grpc_status(failure)

    def _run(self, message: bytes) -> None:
        try:
            result = self._method.run(self, message)
        except Exception as error:
            self.fail(error)
        else:
            if isinstance(result, Later):
                result.on_done(partial(self._method.answers.put, self._answer, result))
            else:
                self._answer(result)

    def _answer(self, result: Any) -> None:
        try:
            response = self._method.encode(result.result() if isinstance(result, Later) else result)
        except Exception as error:
            self.fail(error)
        else:
            self.observe("OK")
            grpc_early.answer(self.context, response)


def _blocking(pool: LendingPool, blocked_max: int | None) -> Callable[[], AbstractContextManager[None]]:
    return lambda: pool.blocking(blocked_max)


def _has_ended(context: grpc.ServicerContext) -> bool:
    return not context.is_active()
