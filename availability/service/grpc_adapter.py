"""The transport-free handlers behind a synchronous grpc.Server: what listens, starts, drains and stops.

What one call passes is `grpc_pipeline`; here is the list of its methods, and those that are gRPC's own (health,
reflection). No business rule belongs here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health as grpc_health  # type: ignore[import-untyped]  # it ships no types
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]  # it ships no types

from availability.service import grpc_early
from availability.service.admission import Admission
from availability.service.auth import Authenticator, NoAuth, require_loopback
from availability.service.grpc_pipeline import (
    CallMetrics,
    NoMetrics,
    Pipeline,
    ServerOptions,
    Tracing,
)
from availability.service.grpc_request import only
from availability.service.grpc_unary import CallObserver
from availability.service.health import Health
from availability.service.pool import LendingPool
from availability.service.rpcs import PACKAGE, RPCS, Rpc, check_table

__all__ = ["CallMetrics", "CallObserver", "GrpcServer", "NoMetrics", "ServerOptions"]

_LOG = structlog.get_logger(__name__)

HEALTH_WATCHERS_MAX = 16
HEALTH_THREADS = 16
"""A probe that opens a call and sends nothing holds one until MESSAGE_WAIT_S."""
REFLECTION_STREAMS_MAX = 4


class GrpcServer:
    """A server that is built, started, drained and stopped once."""

    def __init__(
        self,
        *,
        handlers: Mapping[str, object],
        pool: LendingPool,
        authenticator: Authenticator,
        admission: Admission,
        health: Health,
        options: ServerOptions,
        metrics: CallMetrics | None = None,
        credentials: grpc.ServerCredentials | None = None,
        rpcs: Sequence[Rpc] = RPCS,
        channel_of: Callable[[str], str | None] = lambda _reservation_id: "",
        tracing: Tracing | None = None,
    ) -> None:
        """Build it from one handlers object per service name. `channel_of` tells a reservation's channel, None
        where there is no such reservation; without it tokens that are bound to channels reach none.

        TableMismatch where table and contract disagree, TypeError where a handler is missing, NotLoopback
        where authentication is off on an address that others reach.
        """
        if isinstance(authenticator, NoAuth):
            require_loopback(options.address)
        self._pipeline = Pipeline(
            pool=pool,
            authenticator=authenticator,
            admission=admission,
            options=options,
            metrics=metrics or NoMetrics(),
            channel_of=channel_of,
            tracing=tracing,
        )
        self._options = options
        self._health = health
        self._credentials = credentials
        self._open = not isinstance(authenticator, NoAuth)
        self._server = grpc.server(
            pool,  # type: ignore[arg-type]  # typed too narrowly: any Executor does
            maximum_concurrent_rpcs=options.calls_max,
            options=_channel_options(options),
        )
        for service, methods in self._contract(rpcs, handlers).items():
            self._server.add_registered_method_handlers(service, methods)
        self._server.add_registered_method_handlers(grpc_health.SERVICE_NAME, self._health_methods())
        if options.reflection:
            self._server.add_registered_method_handlers(reflection.SERVICE_NAME, self._reflection_methods())

    def start(self) -> int:
        """Listen and serve; return the port (0 for a unix socket)."""
        if self._credentials is not None:
            port = self._server.add_secure_port(self._options.address, self._credentials)
        else:
            port = self._server.add_insecure_port(self._options.address)
            self._warn_of_plain_text()
        self._server.start()
        threading.Thread(target=self._pipeline.watch_silent, name="silent-calls", daemon=True).start()
        self._health.start()
        return port

    def drain(
        self, *, notice_s: float, grace_s: float, wait: Callable[[float], object] | None = None
    ) -> None:
        """Leave: NOT_SERVING, wait until nobody sends new calls, finish the open ones, end.

        Streams are told at once (`CallContext.cancelled`), and cut off after `grace_s`.
        """
        self._health.drain()
        (wait or threading.Event().wait)(notice_s)
        self._pipeline.draining = True
        self._server.stop(grace_s).wait()
        self._pipeline.shutdown()

    def stop(self) -> None:
        """End at once; open calls are cancelled."""
        self.drain(notice_s=0.0, grace_s=0.0)

    def _contract(self, rpcs: Sequence[Rpc], handlers: Mapping[str, object]) -> dict[str, dict[str, Any]]:
        missing: list[str] = []
        services: dict[str, dict[str, Any]] = {}
        for rpc, descriptor in check_table(rpcs).items():
            handler = getattr(handlers.get(rpc.service), rpc.handler, None)
            if not callable(handler):
                missing.append(f"{rpc.service}: {rpc.handler}")
                continue
            methods = services.setdefault(f"{PACKAGE}.{rpc.service}", {})
            methods[rpc.method] = self._pipeline.method(rpc, descriptor, handler)
        if missing:
            raise TypeError(f"no handler for {', '.join(missing)}")
        return services

    def _health_methods(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        # Open to all, and on threads of its own: a probe that queues behind the load restarts a busy server.
        servicer = self._health.servicer
        encode = health_pb2.HealthCheckResponse.SerializeToString

        def check(request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> Any:
            return servicer.Check(request, context)

        def watch(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            request = health_pb2.HealthCheckRequest.FromString(only(requests))
            return map(encode, servicer.Watch(request, context))

        grpc_early.on_own_pool(check, self._pipeline.own_pool("health", HEALTH_THREADS))
        return {
            "Check": grpc.unary_unary_rpc_method_handler(
                check, health_pb2.HealthCheckRequest.FromString, encode
            ),
            "Watch": self._pipeline.limited("health.Watch", watch, HEALTH_WATCHERS_MAX),
        }

    def _reflection_methods(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        services = [f"{PACKAGE}.{rpc.service}" for rpc in RPCS]
        servicer = reflection.ReflectionServicer(
            sorted({*services, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME})
        )
        decode = reflection_pb2.ServerReflectionRequest.FromString
        encode = reflection_pb2.ServerReflectionResponse.SerializeToString

        def reflect(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self._pipeline.identify(context)  # any scope will do
            return map(encode, servicer.ServerReflectionInfo(map(decode, requests), context))

        return {"ServerReflectionInfo": self._pipeline.limited("reflection", reflect, REFLECTION_STREAMS_MAX)}

    def _warn_of_plain_text(self) -> None:
        if self._open:
            try:
                require_loopback(self._options.address)
            except ValueError:
                _LOG.warning("tokens_in_plain_text", address=self._options.address)


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(options.reuse_port)),
        ("grpc.max_receive_message_length", options.message_bytes_max),
        # A client that vanished is noticed in 80 s, and its streams' threads come free.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
