"""Read-after-write lag: how long after a write's answer plain reads still show the time before it.

Reservations are made at a fixed rate, whether or not the last ones were answered. A share of the answers is
followed at once by GetAvailability without min_version, again and again until its version has reached the write's.
Two figures: until the read that showed it was sent (0 where it was the first), and until that read was answered,
which has a whole call in it. Measured twice: with the writes made elsewhere, as by the other servers of a group, so
that the replica alone is asked; and with every write through the same server, which then is busy with them.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import msgspec

from availability.domain.version import Version
from availability.ledger import calls
from availability.ledger.commit_queue import Pending
from availability.v1 import availability_pb2 as av
from availability.v1 import reservation_pb2 as res
from benchmarks.common import (
    CALL_TIMEOUT_S,
    CHANNEL,
    Meter,
    Row,
    Server,
    Size,
    open_ledger,
    quantile,
    reserve_call,
    say,
)
from benchmarks.load import TIMEOUT_S, Load, client, metadata, unary
from benchmarks.reads import GET, filled_service
from benchmarks.reserves import CREATE, create_requests, uniform

WRITES_PER_S = 1_000
PROBE_EVERY = 5
TARGET_MS = 20.0
WARM_UP_S = 1.0
_REPLY = msgspec.msgpack.Decoder(calls.HoldReply)


class Prober:
    """Reads after writes, and what it found in milliseconds, by name."""

    def __init__(self, address: str, token: str) -> None:
        self._get = unary(address, GET)
        self._headers = metadata(token)
        self.found: dict[str, list[float]] = {
            name: [] for name in ("write", "read", "sent", "answered", "late", "shed")
        }
        self.errors: list[Exception] = []
        self._open = threading.Semaphore(0)

    def written(self, number: int, sent_at: float, version: str) -> None:
        """Note a write that was answered, and look for a share of them."""
        now = time.perf_counter()
        self.found["write"].append((now - sent_at) * 1e3)
        if number % PROBE_EVERY or number < WARM_UP_S * WRITES_PER_S:
            self._open.release()
            return
        request = av.GetAvailabilityRequest(channel=CHANNEL, sku=uniform(number)).SerializeToString()
        self._look(request, Version.parse(version), now, 0)

    def failed(self, sent_at: float, error: Exception) -> None:
        """Note a write that was shed, as an overloaded server must, or that failed."""
        if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.found["shed"].append((time.perf_counter() - sent_at) * 1e3)
        else:
            self.errors.append(error)
        self._open.release()

    def pace(self, count: int, write: Callable[[int], None]) -> dict[str, list[float]]:
        """Write so many times at the rate, wait for all, and return what was found."""
        began = time.perf_counter()
        for number in range(count):
            wait = began + number / WRITES_PER_S - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            elif number >= WARM_UP_S * WRITES_PER_S:
                self.found["late"].append(-wait * 1e3)
            write(number)
        for _ in range(count):
            self._open.acquire()
        if self.errors:
            raise RuntimeError(f"{len(self.errors)} calls failed, the first with {self.errors[0]}")
        self.found["took"] = [time.perf_counter() - began]
        return self.found

    def _look(self, request: bytes, wanted: Version, answered_at: float, attempt: int) -> None:
        sent_at = time.perf_counter()

        def seen(future: Any) -> None:
            try:
                answer = av.GetAvailabilityResponse.FromString(future.result())
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.errors.append(error)
                self._open.release()
                return
            now = time.perf_counter()
            self.found["read"].append((now - sent_at) * 1e3)
            if Version.parse(answer.availability.as_of.version) < wanted:
                self._look(request, wanted, answered_at, attempt + 1)
                return
            self.found["sent"].append((sent_at - answered_at) * 1e3 if attempt else 0.0)
            self.found["answered"].append((now - answered_at) * 1e3)
            self._open.release()

        self._get.future(request, timeout=TIMEOUT_S, metadata=self._headers).add_done_callback(seen)


def through_the_server(address: str, token: str, seconds: float) -> dict[str, list[float]]:
    """In the client: write by CreateReservation, and read from the same server."""
    count = int((seconds + WARM_UP_S) * WRITES_PER_S)
    made = create_requests(uniform, count, secrets.token_hex(4))
    requests = [request.SerializeToString() for request in made]
    create, headers, prober = unary(address, CREATE), metadata(token), Prober(address, token)

    def answered(number: int, sent_at: float, future: Any) -> None:
        try:
            answer = res.CreateReservationResponse.FromString(future.result())
        except grpc.RpcError as error:
            prober.failed(sent_at, error)
        else:
            prober.written(number, sent_at, answer.version)

    def write(number: int) -> None:
        future = create.future(requests[number], timeout=TIMEOUT_S, metadata=headers)
        future.add_done_callback(partial(answered, number, time.perf_counter()))

    return prober.pace(count, write)


def elsewhere(address: str, token: str, redis_url: str, seconds: float) -> dict[str, list[float]]:
    """In the client: write with the engine straight to Redis, and read from the server."""
    count = int((seconds + WARM_UP_S) * WRITES_PER_S)
    run = secrets.token_hex(4)
    prober = Prober(address, token)
    ledger = open_ledger(redis_url)

    def answered(number: int, sent_at: float, pending: Pending) -> None:
        try:
            reply = _REPLY.decode(pending.wait())
            if reply.status != "RESERVED":
                raise RuntimeError(f"not reserved: {reply.status}")
        except Exception as error:  # told by the one who waits for all
            prober.failed(sent_at, error)
        else:
            prober.written(number, sent_at, reply.version)

    def write(number: int) -> None:
        call = reserve_call(number, uniform(number), run=run)
        sent_at = time.perf_counter()
        pending = ledger.submit("reserve", call, time.monotonic() + CALL_TIMEOUT_S)
        pending.on_done(partial(answered, number, sent_at, pending))

    try:
        return prober.pace(count, write)
    finally:
        ledger.close()


def told(name: str, found: dict[str, list[float]], meter: Meter, *, met_by: float | None) -> list[Row]:
    """Print what was found and make its rows; ``met_by``: milliseconds at most, where there is a target."""
    (server_s, client_s), others = meter.used()
    took = found["took"][0]
    rate = len(found["write"]) / took
    say(f"  {name}")
    for what in ("write", "read", "sent", "answered"):
        values = found[what]
        figures = ", ".join(f"p{share * 100:g} {quantile(values, share):.1f}" for share in (0.5, 0.9, 0.99))
        say(f"    {what:<8} {figures}, most {max(values):.1f} ms ({len(values):,})")
    say(
        f"    {rate:.0f} writes/s, {len(found['shed']):,} shed; the client was late for {len(found['late']):,}; server "
        f"{server_s / took:.2f}, client {client_s / took:.2f}, others {others:.1f} cores"
    )
    p99_sent, p99_answered = quantile(found["sent"], 0.99), quantile(found["answered"], 0.99)
    return [
        Row(
            measure=f"read-after-write lag p99, {rate:,.0f} writes/s {name}",
            figure=f"{p99_sent:.1f} ms",
            ratio=None if met_by is None else p99_sent / met_by,
            target="" if met_by is None else f"≤ {met_by:.0f} ms",
            met=None if met_by is None else p99_sent <= met_by and rate > 0.95 * WRITES_PER_S,
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


def measure(load: Load, server: Server, size: Size) -> list[Row]:
    """Run both."""
    rows = []
    meter = Meter([server.pid, load.pid])
    found = load.run(elsewhere, server.grpc, server.token, server.redis, size.lag_s)
    rows += told("made elsewhere", found, meter, met_by=TARGET_MS)
    meter = Meter([server.pid, load.pid])
    found = load.run(through_the_server, server.grpc, server.token, size.lag_s)
    rows += told("through the same server", found, meter, met_by=TARGET_MS)
    return rows
