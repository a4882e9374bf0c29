"""Latencies: reads against the calls under way, reserves at half and nine tenths of capacity, and a mixed load.

Reads and the mixed load are closed loops: so many calls are under way, each followed by the next. Reserves come at
random moments at a mean rate, whatever became of the last ones, and their time counts from the moment they were due,
so that no queue is hidden.
"""

from __future__ import annotations

import random
import secrets

from availability.v1 import stock_pb2 as stk
from benchmarks.common import (
    NODES,
    SOURCE,
    Found,
    Plot,
    Row,
    Server,
    Size,
    quantile,
    receipt,
    say,
    short,
    sku,
)
from benchmarks.load import Load, client, closed_loop, open_loop, timed_loop
from benchmarks.reads import GET, filled_service, get_requests
from benchmarks.reserves import CREATE, create_requests, uniform

APPLY = "/availability.v1.StockService/ApplyDeltas"
READ_RATE_MAX = 20_000
WRITE_RATE_MAX = 12_000
CAPACITY_IN_FLIGHT = 64
SHARES = (0.5, 0.9)
MIX = {"read": 0.95, "reserve": 0.04, "delta": 0.01}
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def creates(count: int) -> list[bytes]:
    """Return reserves with ids of their own."""
    return [request.SerializeToString() for request in create_requests(uniform, count, secrets.token_hex(6))]


def reads(load: Load, server: Server, size: Size) -> list[Found]:
    """Read with ever more calls under way."""
    requests = get_requests()
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in QUANTILES}
    rates: list[tuple[float, float]] = []
    rows: list[Found] = []
    for under_way in size.concurrencies:
        count = int(READ_RATE_MAX * (size.block_s + 1))
        calls = [("read", GET, requests[n % len(requests)]) for n in range(count)]
        found = load.run(timed_loop, server.grpc, calls, server.token, size.block_s, under_way)
        took = {name: quantile(found["read"], share) for name, share in QUANTILES.items()}
        rate = found["rate"][0]
        for name, value in took.items():
            lines[name].append((under_way, value))
        rates.append((under_way, rate))
        told = ", ".join(f"{name} {value:.2f}" for name, value in took.items())
        say(f"  {under_way} under way: {short(rate)}/s; {told} ms")
        rows.append(
            Row(measure=f"GetAvailability, {under_way} under way", figure=f"{short(rate)}/s; {told} ms")
        )
    title = "GetAvailability by calls under way"
    return [
        *rows,
        Plot(
            name="read_latency", title=title, x="calls under way", y="ms", lines=lines, log_x=True, log_y=True
        ),
        Plot(
            name="read_rate",
            title=title,
            x="calls under way",
            y="answers a second",
            lines={"GetAvailability": rates},
            log_x=True,
        ),
    ]


def reserves(load: Load, server: Server, size: Size) -> list[Found]:
    """Find what the service can take, then reserve at shares of it."""
    count = int(WRITE_RATE_MAX * (size.block_s + 1))
    capacity, _, _ = load.run(
        closed_loop, server.grpc, CREATE, server.token, creates(count), True, size.block_s, CAPACITY_IN_FLIGHT
    )
    rows: list[Found] = [Row(measure="CreateReservation, capacity", figure=f"{short(capacity)}/s")]
    lines: dict[str, list[tuple[float, float]]] = {}
    for share in SHARES:
        rate = capacity * share
        requests = creates(int(rate * (size.open_loop_s + 2) * 1.5))
        found = load.run(
            open_loop, server.grpc, CREATE, server.token, requests, rate, size.open_loop_s, int(share * 100)
        )
        values = found["answered"]
        told = ", ".join(f"{name} {quantile(values, at):.1f}" for name, at in QUANTILES.items())
        answered = len(values) / size.open_loop_s
        late = quantile(found["late"], 0.99)
        say(
            f"  at {share:.0%}: {told} ms, {len(found['shed'])} shed; the client was late by p99 {late:.1f} ms"
        )
        rows.append(
            Row(
                measure=f"CreateReservation at {share:.0%} of capacity, random arrivals",
                figure=f"{short(answered)}/s; {told} ms; {len(found['shed'])} shed",
            )
        )
        ordered = sorted(values)
        lines[f"{share:.0%} of {short(capacity)}/s"] = [
            (n / 100, ordered[min(len(ordered) - 1, int(n / 100 * len(ordered)))]) for n in range(1, 100)
        ]
    plot = Plot(
        name="reserve_latency",
        title="CreateReservation, random arrivals",
        x="share of calls",
        y="ms at most",
        lines=lines,
        log_y=True,
    )
    return [*rows, plot]


def mixed(load: Load, server: Server, size: Size) -> list[Found]:
    """Read, reserve and take deltas at once."""
    rng = random.Random(4)
    count = int(READ_RATE_MAX * (size.block_s + 1))
    gets, made = get_requests(), iter(creates(int(count * MIX["reserve"] * 1.5) + 100))
    stream, number = secrets.token_hex(4), 0
    calls: list[tuple[str, str, bytes]] = []
    for kind in rng.choices(list(MIX), weights=list(MIX.values()), k=count):
        if kind == "read":
            calls.append((kind, GET, gets[rng.randrange(len(gets))]))
        elif kind == "reserve":
            calls.append((kind, CREATE, next(made)))
        else:
            number += 1
            name, node = sku(number * 7_919 % 10_000), NODES[number % len(NODES)]
            delta = receipt(name, node, 1, stream="", sequence=0)
            delta.event_id = f"{stream}-{number}"  # by ids: calls of many threads keep no order
            request = stk.ApplyDeltasRequest(source=SOURCE, deltas=[delta])
            calls.append((kind, APPLY, request.SerializeToString()))
    found = load.run(timed_loop, server.grpc, calls, server.token, size.block_s, CAPACITY_IN_FLIGHT)
    rows: list[Found] = [
        Row(measure="mixed load: 95 % reads, 4 % reserves, 1 % deltas", figure=f"{short(found['rate'][0])}/s")
    ]
    for kind in MIX:
        if found[kind]:
            told = ", ".join(f"{name} {quantile(found[kind], at):.1f}" for name, at in QUANTILES.items())
            rows.append(Row(measure=f"  {kind} ({len(found[kind]):,} answers)", figure=f"{told} ms"))
            say(f"  {kind}: {told} ms")
    return rows


def run(size: Size) -> list[Found]:
    """Measure all three."""
    with filled_service() as server, client() as load:
        say("reads by calls under way")
        rows = reads(load, server, size)
        say("reserves at random moments")
        rows += reserves(load, server, size)
        say("mixed load")
        return rows + mixed(load, server, size)
