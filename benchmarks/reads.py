"""Reads through gRPC with everything on, beside an echo; batches, beside a handler that only packs columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from availability.v1 import availability_pb2 as av
from benchmarks.arms import Arm
from benchmarks.common import (
    CHANNEL,
    SKUS,
    Row,
    Server,
    Size,
    echo_server,
    fill,
    in_turns,
    open_ledger,
    say,
    service,
    short,
    sku,
    spread,
)
from benchmarks.echo import COLUMNS, COLUMNS_LENGTH, ECHO, ECHO_LIKE_OURS
from benchmarks.load import Load, client

GET = "/availability.v1.AvailabilityService/GetAvailability"
BATCH_GET = "/availability.v1.AvailabilityService/BatchGetAvailability"
READ_TARGET = 0.8
BATCH_TARGET = 1_000_000
BATCH_IN_FLIGHT = 8


@contextmanager
def filled_service(*, strict: bool = False, workers: int = 1) -> Iterator[Server]:
    """Run the service with stock in it."""
    with service(strict=strict, workers=workers) as server:
        ledger = open_ledger(server.redis)
        try:
            fill(ledger)
        finally:
            ledger.close()
        yield server


def get_requests() -> list[bytes]:
    return [
        av.GetAvailabilityRequest(channel=CHANNEL, sku=sku(number)).SerializeToString()
        for number in range(SKUS)
    ]


def batch_requests() -> list[bytes]:
    return [
        av.BatchGetAvailabilityRequest(
            channel=CHANNEL, skus=[sku((first * 97 + i * 7) % SKUS) for i in range(COLUMNS_LENGTH)]
        ).SerializeToString()
        for first in range(50)
    ]


def single(load: Load, server: Server, echo: Server, size: Size) -> tuple[list[Row], dict[str, Arm]]:
    """Compare GetAvailability with an empty echo."""
    requests, empty = get_requests(), [b""] * 64
    arms = {
        "get": Arm(load, server, GET, size, lambda: requests),
        "echo": Arm(load, echo, ECHO, size, lambda: empty),
        "like ours": Arm(load, echo, ECHO_LIKE_OURS, size, lambda: empty),
    }
    rates = in_turns(size.blocks, dict(arms))
    ratio = rates["get"].over(rates["echo"])
    say(
        f"  get {short(rates['get'].median)}/s, echo {short(rates['echo'].median)}/s, ratio {spread(ratio)}; "
        f"server {arms['get'].cpu_us:.0f} and {arms['echo'].cpu_us:.0f} µs a call; echo registered as ours is "
        f"{rates['like ours'].over(rates['echo'])[0]:.2f} of echo; {arms['get'].shed} of "
        f"{arms['get'].calls + arms['get'].shed} shed; others used {arms['get'].others:.1f} cores"
    )
    by_cpu = arms["echo"].cpu_us / arms["get"].cpu_us
    rows = [
        Row(
            measure="GetAvailability, everything on ÷ empty echo",
            figure=f"{short(rates['get'].median)}/s ÷ {short(rates['echo'].median)}/s",
            ratio=ratio[0],
            target=f"≥ {READ_TARGET}",
            met=ratio[0] >= READ_TARGET,
        ),
        Row(
            measure="  the same by the server's processor time",
            figure=f"{arms['echo'].cpu_us:.0f} µs ÷ {arms['get'].cpu_us:.0f} µs",
            ratio=by_cpu,
            target=f"≥ {READ_TARGET}",
            met=by_cpu >= READ_TARGET,
        ),
    ]
    return rows, arms


def batches(load: Load, server: Server, echo: Server, size: Size) -> list[Row]:
    """Compare a batch of 1,000 with a handler that packs columns it has ready."""
    requests = batch_requests()
    arms = {
        "batch": Arm(load, server, BATCH_GET, size, lambda: requests, in_flight=BATCH_IN_FLIGHT),
        "bare": Arm(load, echo, COLUMNS, size, lambda: requests, in_flight=BATCH_IN_FLIGHT),
    }
    rates = in_turns(size.blocks, dict(arms))
    ratio = rates["batch"].over(rates["bare"])
    skus = rates["batch"].median * COLUMNS_LENGTH
    cpu = arms["batch"].cpu_us
    say(
        f"  batch {short(skus)} skus/s, bare {short(rates['bare'].median * COLUMNS_LENGTH)}, ratio {spread(ratio)}; "
        f"server {cpu:.0f} and {arms['bare'].cpu_us:.0f} µs a batch; others used {arms['batch'].others:.1f} cores"
    )
    return [
        Row(
            measure="BatchGetAvailability of 1,000, skus/s ÷ bare columns",
            figure=f"{short(skus)}/s ÷ {short(rates['bare'].median * COLUMNS_LENGTH)}/s",
            ratio=ratio[0],
            target=f"≥ {short(BATCH_TARGET)} skus/s",
            met=skus >= BATCH_TARGET,
        ),
        Row(
            measure="  what one core of the server could answer",
            figure=f"{short(COLUMNS_LENGTH / cpu * 1e6)} skus/s ({cpu:.0f} µs a batch)",
        ),
    ]


def run(size: Size) -> list[Row]:
    """Measure both."""
    with filled_service() as server, echo_server() as echo, client() as load:
        say("GetAvailability and echo")
        rows, _ = single(load, server, echo, size)
        say("BatchGetAvailability")
        return rows + batches(load, server, echo, size)
