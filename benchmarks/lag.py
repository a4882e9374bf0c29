"""Read-after-write lag: how long after a write's answer plain reads still show the time before it.

Reservations are made at a fixed rate, whether or not the last ones were answered. A share of the answers is
followed at once by GetAvailability without min_version, again and again until its version has reached the write's.
Two figures: until the read that showed it was sent (0 where it was the first), and until that read was answered,
which has a whole call in it.
"""

from __future__ import annotations

import secrets
import threading
import time
from functools import partial
from typing import Any

import grpc

from availability.domain.version import Version
from availability.v1 import availability_pb2 as av
from availability.v1 import reservation_pb2 as res
from benchmarks.common import CHANNEL, Meter, Row, Server, Size, quantile, say
from benchmarks.load import TIMEOUT_S, Load, client, metadata, unary
from benchmarks.reads import GET, filled_service
from benchmarks.reserves import CREATE, create_requests, uniform

WRITES_PER_S = 1_000
PROBE_EVERY = 5
TARGET_MS = 20.0
WARM_UP_S = 1.0


def write_and_read(address: str, token: str, seconds: float) -> dict[str, list[float]]:
    """In the client: return milliseconds as lists, by name."""
    count = int((seconds + WARM_UP_S) * WRITES_PER_S)
    requests = [
        request.SerializeToString() for request in create_requests(uniform, count, secrets.token_hex(4))
    ]
    create = unary(address, CREATE)
    get = unary(address, GET)
    headers = metadata(token)
    found: dict[str, list[float]] = {
        "write": [],
        "read": [],
        "sent": [],
        "answered": [],
        "late": [],
        "shed": [],
    }
    errors: list[Exception] = []
    open_calls = threading.Semaphore(0)

    def look(request: bytes, wanted: Version, answered_at: float, attempt: int) -> None:
        sent_at = time.perf_counter()

        def seen(future: Any) -> None:
            try:
                answer = av.GetAvailabilityResponse.FromString(future.result())
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    errors.append(error)
                open_calls.release()
                return
            now = time.perf_counter()
            found["read"].append((now - sent_at) * 1e3)
            if Version.parse(answer.availability.as_of.version) < wanted:
                look(request, wanted, answered_at, attempt + 1)
                return
            found["sent"].append((sent_at - answered_at) * 1e3 if attempt else 0.0)
            found["answered"].append((now - answered_at) * 1e3)
            open_calls.release()

        get.future(request, timeout=TIMEOUT_S, metadata=headers).add_done_callback(seen)

    def written(number: int, sent_at: float, future: Any) -> None:
        now = time.perf_counter()
        try:
            answer = res.CreateReservationResponse.FromString(future.result())
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # shed, as an overloaded server must
                found["shed"].append((now - sent_at) * 1e3)
            else:
                errors.append(error)
            open_calls.release()
            return
        found["write"].append((now - sent_at) * 1e3)
        if number % PROBE_EVERY or number < WARM_UP_S * WRITES_PER_S:
            open_calls.release()
            return
        request = av.GetAvailabilityRequest(channel=CHANNEL, sku=uniform(number)).SerializeToString()
        look(request, Version.parse(answer.version), now, 0)

    began = time.perf_counter()
    for number, request in enumerate(requests):
        due = began + number / WRITES_PER_S
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        elif number >= WARM_UP_S * WRITES_PER_S:
            found["late"].append(-wait * 1e3)
        future = create.future(request, timeout=TIMEOUT_S, metadata=headers)
        future.add_done_callback(partial(written, number, time.perf_counter()))
    for _ in requests:
        open_calls.acquire()
    if errors:
        raise RuntimeError(f"{len(errors)} calls failed, the first with {errors[0]}")
    found["took"] = [time.perf_counter() - began]
    return found


def measure(load: Load, server: Server, size: Size) -> list[Row]:
    """Run it once."""
    meter = Meter([server.pid, load.pid])
    found = load.run(write_and_read, server.grpc, server.token, size.lag_s)
    (server_s, client_s), others = meter.used()
    took = found["took"][0]
    rate = len(found["write"]) / took
    for name in ("write", "read", "sent", "answered"):
        values = found[name]
        figures = ", ".join(f"p{share * 100:g} {quantile(values, share):.1f}" for share in (0.5, 0.9, 0.99))
        say(f"  {name:<8} {figures}, most {max(values):.1f} ms ({len(values):,})")
    say(
        f"  {rate:.0f} writes/s, {len(found['shed']):,} shed; the client was late for {len(found['late']):,}; server "
        f"{server_s / took:.2f}, client {client_s / took:.2f}, others {others:.1f} cores"
    )
    p99_sent, p99_answered = quantile(found["sent"], 0.99), quantile(found["answered"], 0.99)
    return [
        Row(
            measure=f"read-after-write lag p99 at {rate:,.0f} writes/s",
            figure=f"{p99_sent:.1f} ms",
            ratio=p99_sent / TARGET_MS,
            target=f"≤ {TARGET_MS:.0f} ms",
            met=p99_sent <= TARGET_MS and rate > 0.95 * WRITES_PER_S,
        ),
        Row(
            measure="  until that read's answer, a whole call included",
            figure=f"{p99_answered:.1f} ms (any read: p99 {quantile(found['read'], 0.99):.1f} ms)",
        ),
    ]


def run(size: Size) -> list[Row]:
    """Measure."""
    with filled_service() as server, client() as load:
        return measure(load, server, size)
