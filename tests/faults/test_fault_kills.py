"""kill -9 of Redis and of the server under load: whatever was acknowledged is there (FAILURES section 2, number 5)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from availability.ledger.embedded import EmbeddedRedis
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import Dump, audit, check_ends, entries
from tests.faults.lab import BASE, Process, deadline, delta, poll, runs
from tests.model import Refusal
from tests.wire import Service

KILLS = 4
KILLS_FULL = 30
SHOPPERS = 5
ACKNOWLEDGED_BETWEEN = 40
RETRY_S = 60.0
SKUS = 4


@dataclass
class Journal:
    """What was acknowledged: version by request id, and events."""

    versions: dict[str, str] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledged(self) -> int:
        with self._lock:
            return len(self.versions) + len(self.received)

    def note(self, request_id: str, version: str, outcome: str) -> None:
        with self._lock:
            self.versions[request_id] = version
            self.outcomes[outcome] += 1

    def note_receipt(self, sku: str) -> None:
        with self._lock:
            self.received.append(sku)


class Shopper:
    """One client that asks again, with the same ids, until it is answered; wherever the server is by then."""

    def __init__(self, process: Process, journal: Journal, number: int, seed: int) -> None:
        self._process = process
        self._journal = journal
        self._number = number
        self._random = random.Random(seed * 100 + number)
        self._service: Service | None = None
        self._address = ""

    def run(self) -> None:
        turn = 0
        try:
            while not self._journal.stop.is_set():
                self._buy(f"{self._number}.{turn}")
                turn += 1
        except BaseException as failure:
            self._journal.failures.append(failure)
            raise
        finally:
            if self._service is not None:
                self._service.close()

    def _insist(self, call: Callable[[Service], None]) -> None:
        until = deadline(RETRY_S)
        while True:
            try:
                if self._service is None or self._address != self._process.grpc:
                    self._address = self._process.grpc
                    self._service = Service(self._address)
                call(self._service)
                return
            except Refusal as refusal:
                temporary = refusal.reason in ("LEDGER_UNREACHABLE", "LEDGER_NOT_READY", "DEADLINE_EXCEEDED")
                if not (temporary or refusal.reason.startswith(("UNAVAILABLE", "CANCELLED"))):
                    raise
                if time.monotonic() > until:
                    raise
                self._service = None if refusal.reason.startswith("UNAVAILABLE") else self._service
                time.sleep(0.02)  # no storm of retries while nobody is there

    def _buy(self, name: str) -> None:
        sku = f"sku {self._random.randrange(SKUS)}"
        event = delta("RECEIPT", sku, "n1", 2, event_id=f"receipt {name}")
        self._insist(lambda s: receive(s, event))
        self._journal.note_receipt(sku)
        held: list[str] = []

        def hold(service: Service) -> None:
            answer = service.reserve(f"hold {name}", "web", [(sku, 1)])
            assert answer.outcome == "RESERVED"
            held[:] = [answer.reservation_id]
            self._journal.note(f"hold {name}", str(service.version), "held")

        self._insist(hold)
        sell = self._random.random() < 0.5

        def end(service: Service) -> None:
            if sell:
                service.commit(f"end {name}", held[0], order_ref=f"order {name}")
            else:
                service.release(f"end {name}", held[0])
            self._journal.note(f"end {name}", str(service.version), "sold" if sell else "given back")

        if self._random.random() < 0.9:
            self._insist(end)


def receive(service: Service, event: stk.Delta) -> None:
    answer = service.call(service.stock.ApplyDeltas, stk.ApplyDeltasRequest(source="erp", deltas=[event]))
    assert next(iter(answer.results)) in (stk.DELTA_RESULT_APPLIED, stk.DELTA_RESULT_DUPLICATE)


@pytest.mark.timeout(900)
def test_whatever_was_acknowledged_survives_kills(
    make_process: Callable[..., Process], seed: int, full: bool
) -> None:
    """Redis and the server are killed in turns under load: each acknowledged call is there once, at its version."""
    process = make_process()
    process.start()
    rng = random.Random(seed)
    journal = Journal()
    shoppers = [
        threading.Thread(target=Shopper(process, journal, number, seed).run) for number in range(SHOPPERS)
    ]
    for shopper in shoppers:
        shopper.start()
    try:
        for number in range(KILLS_FULL if full else KILLS):
            wanted = journal.acknowledged() + ACKNOWLEDGED_BETWEEN + rng.randrange(40)
            poll(lambda: journal.failures or journal.acknowledged() >= wanted, "work goes on", within_s=60)  # noqa: B023
            kill_one(process, redis_only=number % 2 == 0)
        wanted = journal.acknowledged() + ACKNOWLEDGED_BETWEEN
        poll(lambda: journal.failures or journal.acknowledged() >= wanted, "work goes on", within_s=60)
    finally:
        journal.stop.set()
        for shopper in shoppers:
            shopper.join()
    assert not journal.failures
    with process.redis() as client:
        keys = audit(client)
    compare(keys, journal)
    redis_pid = process.redis_pid()
    process.kill()
    poll(lambda: not runs(redis_pid), "no Redis outlives its server", within_s=10)
    process.start()
    with process.redis() as client:
        again = audit(client)
    logged = [(e.version, e.raw) for e in entries(keys)]
    assert [(e.version, e.raw) for e in entries(again)][: len(logged)] == logged
    service = Service(process.grpc)
    names = [f"sku {n}" for n in range(SKUS)]
    assert [quantity for quantity, _ in service.sellables("web", names)] == [
        sum(2 for sku in journal.received if sku == name) - promised(again, name) for name in names
    ]
    service.close()


def kill_one(process: Process, *, redis_only: bool) -> None:
    """Kill Redis (the server starts it again), or the server, which is started again at once."""
    redis_pid = process.redis_pid()
    if redis_only:
        os.kill(redis_pid, signal.SIGKILL)
        poll(lambda: not runs(redis_pid), "Redis is gone")
    else:
        process.kill()
        process.start()
        poll(lambda: not runs(redis_pid), "no Redis outlives its server", within_s=10)


def compare(keys: Dump, journal: Journal) -> None:
    """The log holds each acknowledged request once, at the version that was told."""
    logged: Counter[str] = Counter()
    version_of: dict[str, str] = {}
    for entry in entries(keys):
        request_id = entry.record().request_id
        if request_id:
            logged[request_id] += 1
            version_of[request_id] = str(entry.version)
    lost = journal.versions.keys() - logged.keys()
    assert not lost, f"acknowledged and lost: {sorted(lost)[:5]} of {len(lost)}"
    assert set(logged.values()) == {1}
    assert version_of == journal.versions
    ends = check_ends(keys)
    assert (ends["committed"], ends["released"]) == (journal.outcomes["sold"], journal.outcomes["given back"])
    assert len(keys[BASE + "due"]) == journal.outcomes["held"] - ends["committed"] - ends["released"]


def promised(keys: Dump, sku: str) -> int:
    """Units of a sku that holds and orders have, as the log's last word says."""
    last = 0
    for entry in entries(keys):
        for p in entry.record().positions:
            if p.sku == sku:
                last = p.reserved + p.committed
    return last


def test_a_killed_server_leaves_no_redis_behind_and_frees_its_data(
    make_process: Callable[..., Process],
) -> None:
    """After kill -9 of a server that just started its Redis ends too, and the same data can be served at once."""
    process = make_process()
    process.start()
    service = Service(process.grpc)
    receive(service, delta("RECEIPT", "a", "n1", 5, event_id="first"))
    service.close()
    redis_pid = process.redis_pid()
    process.kill()
    process.start()
    poll(lambda: not runs(redis_pid), "no Redis outlives its server", within_s=10)
    service = Service(process.grpc)
    assert service.sellables("web", ["a"]) == [(5, "IN_STOCK")]  # whoever says that it serves answers reads
    service.close()


def test_data_in_use_by_a_server_are_not_served_twice(make_process: Callable[..., Process]) -> None:
    """A server on a data directory that another one uses refuses with one clear line."""
    process = make_process()
    other = EmbeddedRedis(process.data_dir / "redis")
    other.start()
    try:
        code, lines = process.refuses()
    finally:
        other.stop()
    assert code != 0
    assert len(lines) == 1
    assert "in use by another server" in lines[0]
