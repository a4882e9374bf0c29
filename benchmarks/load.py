"""The client of the benchmarks: a process of its own that keeps so many calls in flight, or sends at a rate.

Requests are encoded before the clock starts and answers are not decoded, so that the client costs as little as a
Python client can.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc

WARM_UP_S = 0.3
TIMEOUT_S = 20.0
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Load:
    """The child process, as the parent sees it: one function of this or another module at a time."""

    def __init__(self, connection: Connection, pid: int) -> None:
        self._connection = connection
        self.pid = pid

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a module's function there; what it raises is raised here."""
        self._connection.send((function, arguments))
        failed, answer = self._connection.recv()
        if failed:
            raise RuntimeError(f"in the client: {answer}")
        return answer


@contextmanager
def client() -> Iterator[Load]:
    """Start the client process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Load(mine, process.pid or 0)
    finally:
        mine.close()
        process.join(5)
        if process.is_alive():
            process.terminate()


def _serve(connection: Connection) -> None:
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((False, function(*arguments)))
        except Exception:
            connection.send((True, traceback.format_exc()))


# --- In the child -----------------------------------------------------------------------------------------

_channels: dict[tuple[str, int], grpc.Channel] = {}


def channel(address: str, connection: int = 0) -> grpc.Channel:
    """Return this process's connection of a number to a server."""
    key = (address, connection)
    if key not in _channels:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.use_local_subchannel_pool", 1),  # else channels of one address share a connection
        ]
        _channels[key] = grpc.insecure_channel(address, options=options)
    return _channels[key]


def unary(address: str, path: str, connection: int = 0) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Return a method that takes and gives bytes."""
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel(address, connection).unary_unary(
        path,
        _registered_method=True,  # type: ignore[call-arg]  # as generated stubs do
    )
    return method


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Return what a call carries."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def closed_loop(
    address: str,
    path: str,
    token: str,
    requests: Sequence[bytes],
    once: bool,
    seconds: float,
    in_flight: int,
    connection: int = 0,
) -> tuple[float, int, int]:
    """Keep calls in flight; return answers a second, how many in all, and how many calls were shed.

    ``once``: send no request twice.
    """
    call = unary(address, path, connection)
    headers = metadata(token)
    waiting = deque(requests)
    done = shed = 0
    errors: list[grpc.RpcError] = []
    running = in_flight
    state = {"stop": False}
    ended = threading.Event()
    lock = threading.Lock()

    def answered(future: Any) -> None:
        nonlocal done, shed, running  # callbacks of one channel come from one thread
        try:
            future.result()
            done += 1
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                shed += 1
            else:
                errors.append(error)
        if not (state["stop"] or errors) and issue():
            return
        with lock:
            running -= 1
            if running == 0:
                ended.set()

    def issue() -> bool:
        try:
            request = waiting.popleft()
        except IndexError:
            return False
        if not once:
            waiting.append(request)
        call.future(request, timeout=TIMEOUT_S, metadata=headers).add_done_callback(answered)
        return True

    for _ in range(in_flight):
        issue()
    time.sleep(WARM_UP_S)
    began, before = time.perf_counter(), done
    time.sleep(seconds)
    after, finished = done, time.perf_counter()
    ran_out = not waiting
    state["stop"] = True
    ended.wait(TIMEOUT_S)
    if errors:
        raise RuntimeError(f"{len(errors)} calls failed, the first with {errors[0]}")
    if ran_out:
        raise RuntimeError("the prepared requests ran out")
    return (after - before) / (finished - began), done, shed


def spread_loop(
    address: str,
    path: str,
    token: str,
    requests: Sequence[bytes],
    once: bool,
    seconds: float,
    in_flight: int,
    connections: int,
) -> tuple[float, int, int]:
    """Do what `closed_loop` does over several connections, which workers on one port share; return the sums."""
    shares = [requests[number::connections] for number in range(connections)]
    each = in_flight // connections
    with ThreadPoolExecutor(connections) as pool:
        ran = [
            pool.submit(closed_loop, address, path, token, share, once, seconds, each, number)
            for number, share in enumerate(shares)
        ]
        results = [future.result() for future in ran]
    return sum(r[0] for r in results), sum(r[1] for r in results), sum(r[2] for r in results)
