"""Reserves: the small function, our function called bare, the engine around it, the whole service.

All on one Redis in one run, in turns. "Bare" is our function called straight from redis-py, arguments prebuilt,
pipelined by 100. "Engine" is the handler called from many threads, without gRPC.
"""

from __future__ import annotations

import itertools
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import redis as redis_py

from availability.ledger import keys
from availability.ledger.ledger import Ledger, bucket
from availability.service.auth import Principal, Scope
from availability.service.context import CallContext
from availability.service.later import Later
from availability.service.reservation_handlers import ReservationHandlers
from availability.service.reservation_ids import new_reservation_id
from availability.telemetry import Telemetry
from availability.v1 import common_pb2
from availability.v1 import reservation_pb2 as res
from benchmarks.arms import Arm
from benchmarks.common import (
    CALL_TIMEOUT_S,
    CHANNEL,
    NODES,
    PLENTY,
    SKUS,
    Meter,
    Rates,
    Row,
    Server,
    Size,
    echo_server,
    fill,
    in_turns,
    ledger_of_own,
    main_thread_s,
    reserve_call,
    say,
    short,
    sku,
    spread,
)
from benchmarks.echo import ECHO
from benchmarks.load import Load, client
from benchmarks.reads import filled_service

CREATE = "/availability.v1.ReservationService/CreateReservation"
ENGINE_TARGET, HOT_TARGET, BARE_TARGET, SERVICE_TARGET = 0.6, 0.8, 0.4, 0.5
SMALL_IN_DESIGN = 43_000
PIPELINE = 100
WINDOWS_TRIED = (8, 16, 32, 64, 128)
HOT = 4_711
SMALL_BASE = "small:{0}:"
_small_source = Path(__file__).with_name("small_function.lua")


class Costs:
    """Processor time per call of this process and of Redis: the least of the blocks, for neighbours only add."""

    def __init__(self, redis_pid: int) -> None:
        self._pid = redis_pid
        self._python: list[float] = []
        self._redis: list[float] = []

    @contextmanager
    def of(self, calls: int) -> Iterator[None]:
        """Measure the body, which makes so many calls."""
        python, redis = time.process_time(), main_thread_s(self._pid)
        yield
        self._python.append((time.process_time() - python) / calls * 1e6)
        self._redis.append((main_thread_s(self._pid) - redis) / calls * 1e6)

    @property
    def python_us(self) -> float:
        return min(self._python)

    @property
    def redis_us(self) -> float:
        return min(self._redis)

    @property
    def us(self) -> float:
        """Both: what a call costs where nothing overlaps."""
        return self.python_us + self.redis_us


class Bare:
    """Calls of a function from redis-py, prebuilt, pipelined."""

    def __init__(
        self,
        client: redis_py.Redis,
        prepare: Callable[[int], list[tuple[object, ...]]],
        calls: int,
        redis_pid: int,
    ) -> None:
        self._client, self._prepare, self._calls = client, prepare, calls
        self.costs = Costs(redis_pid)

    def __call__(self) -> float:
        """Run one block; return calls a second."""
        commands = self._prepare(self._calls)
        replies: list[bytes] = []
        began = time.perf_counter()
        with self.costs.of(len(commands)):
            for first in range(0, len(commands), PIPELINE):
                pipe = self._client.pipeline(transaction=False)
                for command in commands[first : first + PIPELINE]:
                    pipe.execute_command(*command)
                replies += pipe.execute()
        took = time.perf_counter() - began
        if not all(b"RESERVED" in reply for reply in replies):
            raise RuntimeError(f"not reserved: {replies[0]!r}")
        return len(commands) / took


class Engine:
    """The handler with a window of calls under way, as the service drives it: one thread begins, one answers."""

    def __init__(self, handlers: ReservationHandlers, names: Callable[[int], str], redis_pid: int) -> None:
        self._handlers, self._names = handlers, names
        self.costs = Costs(redis_pid)

    def run(self, window: int, calls: int) -> float:
        """Make so many reservations; return how many a second."""
        requests = create_requests(self._names, calls, secrets.token_hex(4))
        principal = Principal(id="bench", scopes=frozenset(Scope))
        room = threading.Semaphore(window)
        answered: queue.SimpleQueue[Later[res.CreateReservationResponse]] = queue.SimpleQueue()

        def begin() -> None:
            for request in requests:
                room.acquire()
                owed = self._handlers.create_reservation(
                    request, CallContext(principal, time.monotonic() + CALL_TIMEOUT_S)
                )
                owed.on_done(partial(answered.put, owed))

        beginner = threading.Thread(target=begin, daemon=True)
        began = time.perf_counter()
        with self.costs.of(calls):
            beginner.start()
            for _ in range(calls):
                response = answered.get(timeout=CALL_TIMEOUT_S).result()
                room.release()
                if response.outcome != res.RESERVATION_OUTCOME_RESERVED:
                    raise RuntimeError(f"not reserved: {response}")
        return calls / (time.perf_counter() - began)


def uniform(number: int) -> str:
    return sku(number * 7_919 % SKUS)


def hot(_: int) -> str:
    return sku(HOT)


def create_requests(
    names: Callable[[int], str], count: int, run: str
) -> Sequence[res.CreateReservationRequest]:
    """Return requests of one line, one unit, each with its own id."""
    requests = [
        res.CreateReservationRequest(
            request_id=f"{run}-{number}",
            channel=CHANNEL,
            lines=[common_pb2.RequestedLine(sku=names(number), quantity=1)],
        )
        for number in range(count)
    ]
    for request in requests:
        request.hold_duration.FromSeconds(900)
    return requests


def bare_commands(ledger: Ledger, names: Callable[[int], str]) -> Callable[[int], list[tuple[object, ...]]]:
    """Return what prepares calls of our function."""
    function, meta = ledger.library.function("reserve"), keys.meta("avail", 0)
    encode = msgspec.msgpack.Encoder().encode

    def prepare(count: int) -> list[tuple[object, ...]]:
        run, epoch = secrets.token_hex(4), str(ledger.queue.epoch).encode()
        return [
            ("FCALL", function, 1, meta, epoch, encode(reserve_call(number, names(number), run=run)))
            for number in range(count)
        ]

    return prepare


def small_commands(names: Callable[[int], str]) -> Callable[[int], list[tuple[object, ...]]]:
    """Return what prepares calls of the small function."""

    def prepare(count: int) -> list[tuple[object, ...]]:
        run = secrets.token_hex(4)
        due = int(time.time() * 1000) + 900_000
        commands: list[tuple[object, ...]] = []
        for number in range(count):
            request_id, hold = f"{run}-{number}", f"r{run}{number:016d}"
            node = NODES[number % len(NODES)]
            arguments = (bucket(request_id), request_id, hold, names(number), node, 1, due)
            commands.append(("FCALL", "bench_small_reserve", 1, SMALL_BASE, *arguments))
        return commands

    return prepare


def fill_small(client: redis_py.Redis) -> None:
    """Load the small function and give it the same stock."""
    client.function_load(_small_source.read_text(), replace=True)
    pipe = client.pipeline(transaction=False)
    for number in range(SKUS):
        for node in NODES:
            pipe.execute_command("FCALL", "bench_small_fill", 1, SMALL_BASE, sku(number), node, PLENTY)
    pipe.execute()


def handlers_of(ledger: Ledger) -> ReservationHandlers:
    """Return the handlers as the server has them."""
    return ReservationHandlers(
        ledger,
        new_id=new_reservation_id,
        lines_max=500,
        durability=common_pb2.DURABILITY_DEMO,
        outcomes=Telemetry().outcomes,
    )


def inside(size: Size) -> list[Row]:
    """Small function, bare, engine; uniform and hot."""
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(0.001)  # as the service does
    try:
        with ledger_of_own() as (ledger, redis):
            fill(ledger)
            client = redis_py.Redis(unix_socket_path=redis.socket)
            fill_small(client)
            return _compare(size, ledger, client, redis.pid)
    finally:
        sys.setswitchinterval(switch_interval)


def _compare(size: Size, ledger: Ledger, client: redis_py.Redis, redis_pid: int) -> list[Row]:
    calls = size.block_calls
    handlers = handlers_of(ledger)
    trial = Engine(handlers, uniform, redis_pid)
    tried = in_turns(2, {str(n): partial(trial.run, n, calls // 2) for n in WINDOWS_TRIED})
    best = max(WINDOWS_TRIED, key=lambda n: tried[str(n)].median)
    say(
        "  engine by calls under way: "
        + ", ".join(f"{n}: {short(tried[str(n)].median)}/s" for n in WINDOWS_TRIED)
    )
    engine, engine_hot = Engine(handlers, uniform, redis_pid), Engine(handlers, hot, redis_pid)
    bare = Bare(client, bare_commands(ledger, uniform), calls, redis_pid)
    bare_hot = Bare(client, bare_commands(ledger, hot), calls, redis_pid)
    small = Bare(client, small_commands(uniform), calls, redis_pid)
    meter = Meter([os.getpid(), redis_pid])
    rates = in_turns(
        size.blocks,
        {
            "small": small,
            "bare": bare,
            "bare hot": bare_hot,
            "engine": partial(engine.run, best, calls),
            "engine hot": partial(engine_hot.run, best, calls),
        },
    )
    say(
        f"  {best} calls under way; others used {meter.used()[1]:.1f} cores; processor time a call, Python + Redis:"
    )
    by_name = {"small": small, "bare": bare, "bare hot": bare_hot}
    all_costs = {name: arm.costs for name, arm in by_name.items()}
    all_costs |= {"engine": engine.costs, "engine hot": engine_hot.costs}
    for name, costs in all_costs.items():
        say(f"    {name:<10} {costs.python_us:6.1f} + {costs.redis_us:6.1f} µs")
    return [
        _row("reserve: engine ÷ bare", rates["engine"], rates["bare"], ENGINE_TARGET),
        _by_cpu(bare.costs, engine.costs, ENGINE_TARGET),
        _row("  bare: one hot sku ÷ uniform", rates["bare hot"], rates["bare"], HOT_TARGET),
        _row("  engine: one hot sku ÷ uniform", rates["engine hot"], rates["engine"], HOT_TARGET),
        _row("reserve: bare ÷ small function", rates["bare"], rates["small"], BARE_TARGET),
        _by_cpu(small.costs, bare.costs, BARE_TARGET),
        Row(
            measure="  bare against 43 k/s",
            figure=f"{short(rates['bare'].median)}/s",
            ratio=rates["bare"].median / SMALL_IN_DESIGN,
            target=f"≥ {BARE_TARGET}",
            met=rates["bare"].median >= BARE_TARGET * SMALL_IN_DESIGN,
        ),
    ]


def _by_cpu(base: Costs, mine: Costs, target: float) -> Row:
    ratio = base.us / mine.us
    return Row(
        measure="  the same by processor time, Python + Redis",
        figure=f"{base.us:.0f} µs ÷ {mine.us:.0f} µs",
        ratio=ratio,
        target=f"≥ {target}",
        met=ratio >= target,
    )


def _row(measure: str, mine: Rates, other: Rates, target: float) -> Row:
    ratio = mine.over(other)
    say(f"  {measure.strip()}: {spread(ratio)}")
    return Row(
        measure=measure,
        figure=f"{short(mine.median)}/s ÷ {short(other.median)}/s",
        ratio=ratio[0],
        target=f"≥ {target}",
        met=ratio[0] >= target,
    )


_runs: Iterator[int] = itertools.count()


def create_arm(load: Load, server: Server, size: Size, *, names: Callable[[int], str] = uniform) -> Arm:
    """Return CreateReservation through gRPC, with fresh requests for each block."""

    def requests() -> list[bytes]:
        count = int(12_000 * size.block_s)
        run = f"{secrets.token_hex(4)}{next(_runs)}"
        return [request.SerializeToString() for request in create_requests(names, count, run)]

    return Arm(load, server, CREATE, size, requests, once=True)


def through_grpc(load: Load, server: Server, echo: Server, size: Size) -> tuple[list[Row], Arm]:
    """Compare CreateReservation with an empty echo."""
    create = create_arm(load, server, size)
    empty = [b""] * 64
    rates = in_turns(size.blocks, {"create": create, "echo": Arm(load, echo, ECHO, size, lambda: empty)})
    say(
        f"  server {create.cpu_us:.0f} µs a call; {create.shed} of {create.calls + create.shed} shed; "
        f"others used {create.others:.1f} cores"
    )
    return [_row("CreateReservation ÷ empty echo", rates["create"], rates["echo"], SERVICE_TARGET)], create


def run(size: Size) -> list[Row]:
    """Measure all."""
    say("small function, bare, engine")
    rows = inside(size)
    with filled_service() as server, echo_server() as echo, client() as load:
        say("CreateReservation and echo")
        return rows + through_grpc(load, server, echo, size)[0]
