"""The client of the benchmarks: a process of its own that keeps so many calls in flight, or sends at a rate.

Requests are encoded before the clock starts and answers are not decoded, so that the client costs as little as a
Python client can.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
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


def timed_loop(
    address: str,
    calls: Sequence[tuple[str, str, bytes]],
    token: str,
    seconds: float,
    in_flight: int,
) -> dict[str, list[float]]:
    """Keep calls (kind, path, request) in flight; return the milliseconds of each kind's answers, and the rate.

    Each request is sent once, in order, so they may hold ids. ``rate``: answers a second after the warm-up; ``shed``:
    the milliseconds of the calls that were refused as OVERLOADED.
    """
    methods = {path: unary(address, path) for path in {path for _, path, _ in calls}}
    headers = metadata(token)
    waiting = iter(calls)
    found: dict[str, list[float]] = {"shed": [], **{kind: [] for kind, _, _ in calls}}
    errors: list[Exception] = []
    ended = threading.Event()
    lock = threading.Lock()
    state = {"running": in_flight, "ran_out": False}
    began = time.perf_counter()
    counted_from, until = began + WARM_UP_S, began + WARM_UP_S + seconds

    def answered(kind: str, sent_at: float, future: Any) -> None:
        now = time.perf_counter()
        try:
            future.result()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                errors.append(error)
            kind = "shed"
        if counted_from <= now < until:
            found[kind].append((now - sent_at) * 1e3)
        if now < until and not errors and issue():
            return
        with lock:
            state["running"] -= 1
            if not state["running"]:
                ended.set()

    def issue() -> bool:
        with lock:
            following = next(waiting, None)
        if following is None:
            state["ran_out"] = True
            return False
        kind, path, request = following
        future = methods[path].future(request, timeout=TIMEOUT_S, metadata=headers)
        future.add_done_callback(partial(answered, kind, time.perf_counter()))
        return True

    for _ in range(in_flight):
        issue()
    ended.wait(seconds + TIMEOUT_S)
    _raise_first(errors)
    if state["ran_out"]:
        raise RuntimeError("the prepared requests ran out")
    found["rate"] = [sum(len(found[kind]) for kind in {kind for kind, _, _ in calls}) / seconds]
    return found


def open_loop(
    address: str,
    path: str,
    token: str,
    requests: Sequence[bytes],
    rate: float,
    seconds: float,
    seed: int,
) -> dict[str, list[float]]:
    """Send at random moments (Poisson) at a mean rate, whatever the answers do.

    ``answered``: milliseconds from the moment at which a call was due, so that a queue in the client or the server is
    in them; ``shed`` likewise for those refused as OVERLOADED; ``late``: how much later than due calls left.
    """
    rng = random.Random(seed)
    call, headers = unary(address, path), metadata(token)
    found: dict[str, list[float]] = {"answered": [], "shed": [], "late": []}
    errors: list[Exception] = []
    open_calls = threading.Semaphore(0)

    def answered(due: float, counts: bool, future: Any) -> None:
        took = (time.perf_counter() - due) * 1e3
        kind = "answered"
        try:
            future.result()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                errors.append(error)
            kind = "shed"
        if counts:
            found[kind].append(took)
        open_calls.release()

    began = time.perf_counter()
    due, sent = began, 0
    while due < began + WARM_UP_S + seconds and sent < len(requests) and not errors:
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        counts = due >= began + WARM_UP_S
        if counts:
            found["late"].append(max(0.0, -wait * 1e3))
        call.future(requests[sent], timeout=TIMEOUT_S, metadata=headers).add_done_callback(
            partial(answered, due, counts)
        )
        sent += 1
        due += rng.expovariate(rate)
    for _ in range(sent):
        open_calls.acquire()
    _raise_first(errors)
    if sent == len(requests):
        raise RuntimeError("the prepared requests ran out")
    return found


def _raise_first(errors: Sequence[Exception]) -> None:
    if errors:
        raise RuntimeError(f"{len(errors)} calls failed, the first with {errors[0]}")
