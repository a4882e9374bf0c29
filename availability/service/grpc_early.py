"""What is used of grpc that it does not document, all in one place. Written for grpc 1.85.

grpc's synchronous server gives each call a thread as soon as it is opened; the thread waits for the message, and
twice somebody must be woken. Here the thread that hears the transport opens the call and asks for its message, and a
thread of the pool is used once, when the message is there; the answer is sent from whatever thread has it.

`AVAILABLE` tells whether the installed grpc has what this needs; where it has not, calls go grpc's own way, slower.
A test holds the installed version to it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # a compiled module without types

AVAILABLE = all(
    hasattr(_server, name)
    for name in (
        "_status",
        "_receive_message",
        "_RECEIVE_MESSAGE_TOKEN",
        "_stream_response_in_pool",
        "_RPCState",
    )
) and hasattr(cygrpc, "ReceiveMessageOperation")
_NO_FLAGS = 0


def unary(begin: Callable[[Any], None]) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a method of one message each way whose calls begin with `begin(context)`.

    It runs on the thread that hears the transport: it must neither wait nor raise, and calls `receive` or
    `answer`. The wire is the same as for a method that grpc calls unary.
    """

    def behaviour(_requests: object, context: Any, _send: object) -> None:
        begin(context)

    behaviour.experimental_non_blocking = True  # type: ignore[attr-defined]  # grpc reads both off the function
    on_own_pool(behaviour, _ON_THE_SPOT)
    return grpc.stream_stream_rpc_method_handler(behaviour)


def receive(context: Any, then: Callable[[bytes | None], None]) -> None:
    """Ask for a call's message; `then` gets it, None where the caller left or sends none.

    `then` is called on the thread that hears the transport, and must neither wait nor raise.
    """
    state, call = context._state, context._rpc_event.call
    settle = _server._receive_message(state, call, None)

    def received(event: Any) -> Any:
        ended = settle(event)
        message, state.request = state.request, None
        then(message)
        return ended

    with state.condition:
        call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)
        state.due.add(_server._RECEIVE_MESSAGE_TOKEN)


def answer(context: Any, response: bytes | None) -> None:
    """End a call with its response, or None and the status that was set. Any thread; once."""
    _server._status(context._rpc_event, context._state, response)


def on_own_pool(behaviour: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    """Let a method run on threads of its own; grpc looks at ThreadPoolExecutors only."""
    behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]  # grpc reads it off the function


class _OnTheSpot(ThreadPoolExecutor):
    """No pool at all: runs what it is given, and tells of the call's end rather than the function's."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:  # Any: as grpc calls it
        fn(*args, **kwargs)
        return _Call(args[2])


class _Call:
    """As much of a future as grpc asks for: it counts the calls that are open."""

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    def add_done_callback(self, told: Callable[[Any], object]) -> None:
        with self._state.condition:
            if self._state.callbacks is not None:
                self._state.callbacks.append(lambda: told(self))
                return
        told(self)


_ON_THE_SPOT = _OnTheSpot(1)  # starts no thread: nothing is ever queued
