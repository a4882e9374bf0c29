"""The primary changes under load: by Sentinel, by Cluster, by a slot that moves. Nothing torn, lost or sold twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any  # Any: redis' clients answer unions

import msgspec
import pytest
from redis.exceptions import RedisError
from redis.sentinel import Sentinel

from availability.ledger import calls
from availability.ledger.commit_queue import QueueSettings
from availability.ledger.connection import ConnectionSettings, translate
from availability.ledger.errors import LedgerError, LedgerUnreachable
from availability.ledger.ledger import Ledger, LedgerSettings, fingerprint
from availability.ledger.preflight import inspect
from availability.replica.replica import Replica
from availability.replica.settings import ReplicaSettings
from availability.service.delta_codec import pack
from tests.faults.audit import active_holds, audit, positions_of
from tests.faults.lab import META, deadline, delta, poll, reserve
from tests.faults.topology import NAME, READY_S, Cluster, Node, Watched

pytestmark = pytest.mark.timeout(600)
CLIENTS, THREADS = 3, 2
PAUSE_S = 0.01
"""Between two calls of a thread: what is sold out before the primary is gone proves nothing."""
CALL_S = 3.0
UNITS = 1000
CONFIRMED = QueueSettings(wait_replicas=1)
"""As in the profile ha-confirmed."""


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    try:
        made.start()
        yield made
    finally:
        made.discard()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        made.discard()


@pytest.fixture
def connect() -> Iterator[Callable[..., Ledger]]:
    """A way to make ledgers at an address, one per client."""
    made: list[Ledger] = []

    def make(url: str, queue: QueueSettings = CONFIRMED) -> Ledger:
        connection = ConnectionSettings(url=url, timeout_s=2.0)
        made.append(Ledger(LedgerSettings(connection=connection, queue=queue, auto_create=True)))
        made[-1].open("failover-lab")
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


def insist(call: Callable[[], Any], what: str) -> Any:
    """Call until there is an answer, as callers do: with the same ids."""

    def answer() -> Any:
        try:
            return call()
        except LedgerError:
            return None

    return poll(answer, what, within_s=READY_S)


def _reserve(ledger: Ledger, call: calls.Reserve) -> calls.HoldReply:
    return ledger.reserve(call, deadline(CALL_S))


def receive(ledger: Ledger, sku: str, units: int, **fields: Any) -> None:
    raw, _ = pack(delta("RECEIPT", sku, "n1", units, **fields), "erp")
    reply = insist(
        lambda: ledger.submit_deltas("erp", [raw], facts_only=False, deadline=deadline(CALL_S)).wait(),
        "stock is received",
    )
    assert ledger.decode_deltas(reply).details == []


class Sale:
    """Everybody reserves one unit at a time, until there is none or they are stopped; what failed is repeated."""

    def __init__(self, ledgers: list[Ledger], sku: str) -> None:
        self.granted: list[str] = []
        self._sku = sku
        self._stopped = threading.Event()
        self._failed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(ledger, f"{sku} {i} {j}"))
            for i, ledger in enumerate(ledgers)
            for j in range(THREADS)
        ]

    def _run(self, ledger: Ledger, name: str) -> None:
        number = 0
        try:
            while not self._stopped.wait(PAUSE_S):
                number += 1
                call = reserve(f"{name} {number}", [(self._sku, 1)])
                reply = insist(partial(_reserve, ledger, call), f"{name} {number} is answered")
                if reply.status != "RESERVED":
                    assert reply.status == "INSUFFICIENT_STOCK"
                    return
                self.granted.append(reply.reservation_id)
        except BaseException as error:  # told by finish
            self._failed.append(error)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def goes_on(self, units: int = 60) -> None:
        """Wait until so many more units are granted."""
        goal = len(self.granted) + units
        poll(lambda: len(self.granted) >= goal or self._failed, "the sale goes on", within_s=READY_S)

    def stop(self) -> None:
        self._stopped.set()

    def finish(self) -> None:
        """Wait for the end. Each id was granted once."""
        for thread in self._threads:
            thread.join(2 * READY_S)
        assert self._failed == []
        assert not any(thread.is_alive() for thread in self._threads)
        assert len(self.granted) == len(set(self.granted))

    def check(self, client: Any, units: int) -> None:
        """The ledger agrees with itself and with what its callers were told."""
        keys = audit(client)
        held = {name for name, places in active_holds(keys).items() if (self._sku, "n1") in places}
        assert held == set(self.granted)
        assert positions_of(keys)[self._sku, "n1"][:4] == (units, 0, len(held), 0)


def test_a_primary_that_dies_is_followed_by_sentinel(
    watched: Watched, connect: Callable[..., Ledger], full: bool
) -> None:
    """Killed under load, ha-confirmed: no unit sold twice, no acknowledged reserve lost, each id once; reads follow."""
    assert [one for one in inspect(watched.url, "ha-confirmed") if one.severity != "ok"] == []
    ledgers = [connect(watched.url) for _ in range(CLIENTS)]
    replica = Replica(ledgers[0], ReplicaSettings(auto_create=True), time.monotonic, random.Random(1))
    replica.start()
    try:
        for round_ in range(3 if full else 1):
            sku, units = f"sku {round_}", 400
            receive(ledgers[0], sku, units)
            before = ledgers[-1].head()
            sale = Sale(ledgers, sku)
            sale.start()
            sale.goes_on()
            dead = poll(watched.primary, "there is a primary", within_s=READY_S)
            dead.kill()
            watched.sentinels[round_].kill()  # it was on the same machine
            sale.finish()
            assert len(sale.granted) == units
            promoted = poll(watched.primary, "there is another primary", within_s=READY_S)
            assert promoted is not dead
            sale.check(promoted.client, units)
            for ledger in ledgers:
                assert ledger.head().epoch > before.epoch
            poll(partial(_has_followed, replica, ledgers[-1]), "the replica has followed", within_s=READY_S)
            assert list(replica.batch("web", [sku])[0]) == [0]
            if full:
                dead.start()
                watched.sentinels[round_].start()
                watched.settle()
    finally:
        replica.stop()


def _has_followed(replica: Replica, ledger: Ledger) -> bool:
    return replica.ready and replica.version >= ledger.head().version


def test_a_demoted_primary_is_left_by_all(
    watched: Watched, connect: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover on request leaves the old primary alive: who reads and who writes turns to the new one."""
    ledgers = [connect(watched.url) for _ in range(2)]
    receive(ledgers[0], "a", 9)
    old = poll(watched.primary, "there is a primary", within_s=READY_S)
    watched.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", NAME)
    poll(lambda: old.client.role()[0] not in (b"master", "master"), "it was demoted", within_s=READY_S)
    for number, ledger in enumerate(ledgers):
        call = reserve(f"q{number}", [("a", 1)])
        assert insist(partial(_reserve, ledger, call), "it is answered").status == "RESERVED"
        assert insist(ledger.head, "a read is answered").epoch == 2
    primary = poll(watched.primary, "there is a primary", within_s=READY_S)
    audit(primary.client)
    # A Sentinel that is behind the others: the server itself says that it is no primary.
    replica = next(node for node in watched.nodes if node is not primary)
    monkeypatch.setattr(Sentinel, "discover_master", lambda *_: ("127.0.0.1", replica.port))
    reader = Ledger(LedgerSettings(connection=ConnectionSettings(url=watched.url)))
    with pytest.raises(LedgerUnreachable):
        reader.head()
    reader.close()


def test_a_slot_moves_and_its_server_dies(
    cluster: Cluster, connect: Callable[..., Ledger], full: bool
) -> None:
    """Under load the slot moves to a primary that has just joined, which dies: no operation is torn or lost."""
    cluster.start(primaries=3)
    cluster.replicate(cluster.add(1)[0], poll(cluster.owner, "somebody serves the slot", within_s=READY_S))
    url = cluster.url  # what joins later is found all the same
    ledgers = [connect(url) for _ in range(CLIENTS)]
    rounds = 2 if full else 1
    for round_ in range(rounds):
        sku, units = f"sku {round_}", 1_000_000
        receive(ledgers[0], sku, units)
        sale = Sale(ledgers, sku)
        sale.start()
        sale.goes_on()
        joined, *replicas = cluster.add(3)
        cluster.move_slot(joined)
        for replica in replicas:
            cluster.replicate(replica, joined)
        sale.goes_on()
        joined.kill()
        sale.goes_on()
        sale.stop()
        sale.finish()
        owner = poll(cluster.owner, "somebody serves the slot", within_s=READY_S)
        assert owner in replicas
        sale.check(owner.client, units)
        (epoch,) = {ledger.head().epoch for ledger in ledgers}
        assert epoch >= 2 * round_ + 3
        joined.start()


def test_a_slot_that_moves_key_by_key_tears_nothing(
    cluster: Cluster, connect: Callable[..., Ledger], seed: int, full: bool
) -> None:
    """While keys are here and there each call and read is done wholly or refused; the same ids finish it afterwards."""
    rng = random.Random(seed)
    cluster.start(primaries=2)
    ledger, reader = (connect(cluster.url, queue=QueueSettings()) for _ in range(2))
    calls_made, numbers = Counter[str](), count(1)
    received, holds = 0, 0  # times UNITS, and how many were made first

    def extend(number: int) -> calls.Extend:
        key = calls.RequestKey(
            f"x{number}", 7, fingerprint(b"%d" % number), 0, "tester", ""
        )  # all in one bucket
        return calls.Extend(key, f"r-hold {number % holds}", 7_200_000 + number)

    for round_ in range(8 if full else 2):
        received += 1
        receive(ledger, "a", UNITS, stream="s", source_sequence=received)
        insist(partial(_reserve, ledger, reserve(f"hold {round_}", [("a", 1)])), "a hold is made")
        holds += 1
        insist(partial(ledger.extend, extend(-round_), deadline(READY_S)), "the bucket of ids is there")
        source = poll(cluster.owner, "somebody serves the slot", within_s=READY_S)
        target = next(node for node in cluster.nodes if node is not source)
        cluster.open_slot(source, target)
        found = sorted(cluster.keys_at(source))
        unfinished: list[calls.Extend | calls.Reserve] = []
        rng.shuffle(found)
        asked = set(rng.sample(found, min(len(found), 40)))
        for name in found:
            if name not in asked:
                cluster.move_key(source, target, name)
                continue
            raw, _ = pack(delta("RECEIPT", "a", "n1", UNITS, stream="s", source_sequence=received + 1), "erp")
            if _sent(source, ledger, "deltas", calls.Deltas("erp", [raw], True, 1), calls_made):
                received += 1
            number = next(numbers)
            for name_of, call in (("extend", extend(number)), ("reserve", reserve(f"q{number}", [("a", 1)]))):
                if not _sent(source, ledger, name_of, call, calls_made):
                    unfinished.append(call)
            try:
                (state,) = ledger.skus(["a"]).skus
            except LedgerUnreachable:
                calls_made["read refused"] += 1
            else:
                assert state.positions[0].on_hand == UNITS * received
            cluster.move_key(source, target, name)
        assert cluster.keys_at(source) == []
        cluster.close_slot(source, target)
        assert reader.head().ledger_id == ledger.ledger_id  # who only reads turns without an error
        for call in unfinished:
            if isinstance(call, calls.Reserve):
                reply = insist(partial(_reserve, ledger, call), "it is finished")
                assert reply.status == "RESERVED", reply
            else:
                insist(partial(ledger.extend, call, deadline(READY_S)), "it is finished")
        keys = audit(target.client)
        on_hand, _, reserved, _, _ = positions_of(keys)["a", "n1"]
        assert (on_hand, reserved) == (UNITS * received, len(active_holds(keys)))
    assert min(calls_made[what] for what in ("done", "refused", "read refused")) > 0, calls_made


def _sent(source: Node, ledger: Ledger, name: str, call: object, made: Counter[str]) -> bool:
    """Send a call straight to the server that the slot leaves: done, or refused as what may be sent again."""
    payload = msgspec.msgpack.encode(call)
    try:
        head = ledger.library.function(name), 1, META, ledger.queue.epoch, payload
        reply = msgspec.msgpack.decode(source.client.execute_command("FCALL", *head))
    except RedisError as error:
        if not isinstance(translate(error), LedgerUnreachable):
            raise
        made["refused"] += 1
        return False
    assert reply[0] in ("OK", "RESERVED"), reply
    assert name != "deltas" or reply[3] == [], reply
    made["done"] += 1
    return True
