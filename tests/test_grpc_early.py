"""How unary calls are opened: without a thread until their message is there, and alike where grpc offers less."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from availability.domain.errors import Reason, ServiceError
from availability.service import grpc_early
from availability.service.auth import Scope
from availability.v1 import availability_pb2
from tests.test_grpc_adapter import CREATE, READ, WAIT_S, Running, failure, running

WAYS = [True, False]
"""As the installed grpc lets us, and as one would that has other insides."""


@pytest.fixture(params=WAYS, ids=["early", "grpc's own way"])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    monkeypatch.setattr(grpc_early, "AVAILABLE", request.param)
    with running(tmp_path) as made:
        yield made


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds that other threads bring about."""
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until, "it never came about"
        time.sleep(0.005)


class Silent:
    """Calls that are open and send nothing until they are let."""

    def __init__(self, server: Running, count: int, path: str = READ, scope: Scope = Scope.READ) -> None:
        self._go = threading.Event()
        self.calls: list[Any] = [
            server.channel.stream_unary(path).future(
                self._requests(), metadata=server.metadata(scope), timeout=WAIT_S
            )
            for _ in range(count)
        ]

    def _requests(self) -> Iterator[bytes]:
        self._go.wait(WAIT_S)
        yield b""

    def send(self) -> list[bytes]:
        """Send every message; return the answers."""
        self._go.set()
        return [call.result(timeout=WAIT_S) for call in self.calls]


def test_the_installed_grpc_has_what_is_used() -> None:
    """Otherwise the service is slower than it says: look at grpc's changes and at `grpc_early`."""
    assert grpc_early.AVAILABLE


def test_calls_without_a_message_hold_no_thread(tmp_path: Path) -> None:
    """Forty open and silent calls leave both threads of the pool to others; sent later, each is answered."""
    with running(tmp_path, threads_max=2) as server:
        silent = Silent(server, 40)
        for _ in range(5):
            server.call(READ, scope=Scope.READ)
        assert server.pool.queued == 0
        assert server.pool.threads == 2
        assert silent.send() == [b""] * 40


def test_calls_are_counted_while_they_are_open(tmp_path: Path) -> None:
    """A call too many is refused without a look, and calls that have ended make room."""
    with running(tmp_path, calls_max=3) as server:
        silent = Silent(server, 3)
        eventually(lambda: len(server.server._pipeline._silent) == 3)
        assert refused(server)
        assert silent.send() == [b""] * 3
        eventually(lambda: not refused(server))
        for _ in range(10):
            server.call(READ, scope=Scope.READ)


def refused(server: Running) -> bool:
    call = server.channel.unary_unary(READ).future(b"", metadata=server.metadata(Scope.READ), timeout=WAIT_S)
    code = call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_is_answered_either_way(server: Running) -> None:
    """Message in, message out."""
    wanted = availability_pb2.GetAvailabilityRequest(channel="web", sku="a")
    seen: list[object] = []

    def handler(request: Any, _: object) -> Any:
        seen.append(request)
        return availability_pb2.GetAvailabilityResponse()

    server.handlers.answers["get_availability"] = handler
    assert server.call(READ, wanted.SerializeToString(), scope=Scope.READ) == b""
    assert seen == [wanted]


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda server: server.call(READ), Reason.UNAUTHENTICATED),
        (lambda server: server.call(READ, scope=Scope.INGEST), Reason.PERMISSION_DENIED),
        (lambda server: server.call(READ, b"\xff", scope=Scope.READ), Reason.INVALID_REQUEST),
        (lambda server: no_message(server), Reason.INVALID_REQUEST),
        (lambda server: server.call(CREATE, scope=Scope.RESERVE), Reason.UNKNOWN_CHANNEL),
    ],
    ids=["no token", "no scope", "no sense", "no message", "the handler's word"],
)
def test_who_is_refused_hears_why_either_way(
    server: Running, ask: Callable[[Running], object], reason: Reason
) -> None:
    """The same reasons, and the server goes on."""

    def refuse(_: object, __: object) -> Any:
        raise ServiceError(Reason.UNKNOWN_CHANNEL, "no such channel")

    server.handlers.answers["create_reservation"] = refuse
    _, info, _ = failure(lambda: ask(server))
    assert info.reason == reason.value
    server.call(READ, scope=Scope.READ)


def no_message(server: Running) -> bytes:
    call = server.channel.stream_unary(READ)
    response: bytes = call(iter(()), metadata=server.metadata(Scope.READ), timeout=WAIT_S)
    return response


def test_who_leaves_before_the_message_is_forgotten(server: Running) -> None:
    """A call that is cancelled while it is silent reaches no handler and leaves nothing behind."""
    silent = Silent(server, 2)
    eventually(lambda: len(server.server._pipeline._silent) == 2)
    for call in silent.calls:
        call.cancel()
    eventually(lambda: not server.server._pipeline._silent)
    assert server.handlers.contexts == []
    server.call(READ, scope=Scope.READ)


def test_a_pool_that_takes_no_more_ends_no_server(tmp_path: Path) -> None:
    """Who comes then is told so, and the thread that hears the transport goes on."""
    with running(tmp_path) as server:
        server.pool.shutdown()
        for _ in range(3):
            code, _, _ = failure(lambda: server.call(READ, scope=Scope.READ))
            assert code is grpc.StatusCode.INTERNAL
        assert failure(lambda: server.call(READ))[0] is grpc.StatusCode.UNAUTHENTICATED
